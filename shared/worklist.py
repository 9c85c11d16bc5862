"""Append-only lists of work: what is new becomes new shards, finished shards are never touched again.

A folder holds the list and the results side by side:

    todo-00000.parquet                      the items known at the first run: generation 0
    part-00000-00000.parquet, ...           their results, one part per shard of `shard_rows` items
    todo-00001.parquet                      items that came later
    part-00001-00000.parquet, ...

The cut into shards is written down (as the todo files) before any work starts, so the parts depend only on
the list, not on the number of workers nor on where an earlier run was killed.

Items that have left the corpus keep their results; `live.parquet`, the keys of those in it now, hides them.
"""

import filecmp
import hashlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.database import open_database
from shared.engine import Engine
from shared.errors import UserError
from shared.files import atomic_file
from shared.progress import Meter
from shared.stages import LIVE, sql
from shared.tables import read, row_groups

_SHARD_ROWS, _WEIGHT = b"shard_rows", b"weight"


@dataclass(frozen=True)
class Shard:
    """A run of consecutive items of one generation, and the part that holds their results."""

    todo: Path
    offset: int
    rows: int
    part: Path
    weight: int
    """What the shard counts for in the progress of the whole."""

    def __str__(self) -> str:
        return f"{self.part.name} (items {self.offset} to {self.offset + self.rows} of {self.todo})"

    def items(self) -> pa.Table:
        """The items of this shard; of the list, only the row groups in which they lie are read."""
        with pq.ParquetFile(self.todo) as file:
            tables, first = [], 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                low, high = max(self.offset - first, 0), min(self.offset + self.rows - first, rows)
                if low < high:
                    tables.append(file.read_row_group(group).slice(low, high - low))
                first += rows
        return pa.concat_tables(tables)


@dataclass(frozen=True)
class WorkList:
    """The list in `folder`; items with equal `keys` are the same item."""

    folder: Path
    keys: tuple[str, ...]
    shard_rows: int
    weight: str | None = None
    """Column with the weight of an item in the progress, such as its bytes; by default each counts for one."""

    def extend(self, items: pa.Table | pa.RecordBatchReader, shard_rows: int | None = None) -> int:
        """Write the items that are not listed yet as a new generation, in their order; returns how many.

        Of several items with equal keys the first counts. `shard_rows` is another size for the shards of this
        generation.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {_SHARD_ROWS: str(shard_rows or self.shard_rows), _WEIGHT: self.weight or ""}
        schema = items.schema.with_metadata(about)
        path = self.folder / f"todo-{len(self._todos()):05}.parquet"
        rows = 0
        with open_database(self.folder) as database, atomic_file(path) as temporary:
            database.register("items", items)
            with pq.ParquetWriter(temporary, schema) as writer:
                for group in row_groups(read(database, self._new()), schema):
                    writer.write_table(group)
                    rows += len(group)
            if not rows:
                temporary.unlink()
        return rows

    def _new(self) -> str:
        """SQL for what of the relation `items` no generation holds."""
        keys = ", ".join(self.keys)
        known = "".join(f" ANTI JOIN read_parquet('{sql(todo)}') USING ({keys})" for todo in self._todos())
        return f"""
            WITH numbered AS (SELECT *, row_number() OVER () AS _row FROM items)
            SELECT * EXCLUDE (_row) FROM numbered{known}
            QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY _row) = 1
            ORDER BY _row
        """

    def allow_empty(self, schema: pa.Schema) -> None:
        """Give a list that never had an item an empty part, so that its table can be read."""
        path = self.folder / "part-empty.parquet"
        if not self._todos() and not path.exists():
            with atomic_file(path) as temporary:
                pq.write_table(schema.empty_table(), temporary)

    def declare(self, items: pa.Table | pa.RecordBatchReader) -> str:
        """Write down which items are in the corpus now (`live.parquet`): rows of others are not seen any more.

        Returns a digest of them. The file is not touched when nothing has changed.
        """
        path, digest = self.folder / LIVE, hashlib.sha256()
        schema = pa.schema([items.schema.field(key) for key in self.keys])
        with atomic_file(path) as temporary:
            with pq.ParquetWriter(temporary, schema) as writer:
                for group in row_groups(items.to_batches() if isinstance(items, pa.Table) else items, schema):
                    writer.write_table(group)
                    rows = pc.binary_join_element_wise(*(column.cast(pa.string()) for column in group.columns), "\x1f")
                    digest.update("".join(f"{row}\x1e" for row in rows.to_pylist()).encode())
            if path.exists() and filecmp.cmp(temporary, path, shallow=False):
                temporary.unlink()
        return digest.hexdigest()[:16]

    def follow(self, connection: duckdb.DuckDBPyConnection, query: str) -> str:
        """Make the rows of a query the items that are in the corpus now: `extend` and `declare`."""
        self.extend(read(connection, query))
        return self.declare(read(connection, f"SELECT {', '.join(self.keys)} FROM ({query})"))

    def shards(self) -> list[Shard]:
        """Every shard of every generation, in order."""
        return all_shards(self.folder)

    def _todos(self) -> list[Path]:
        return _todos(self.folder)


def all_shards(folder: Path) -> list[Shard]:
    """The shards of the list in `folder`."""
    return [shard for generation, todo in enumerate(_todos(folder)) for shard in _cut(generation, todo)]


def _todos(folder: Path) -> list[Path]:
    return sorted(folder.glob("todo-*.parquet"))


def _cut(generation: int, todo: Path) -> list[Shard]:
    with pq.ParquetFile(todo) as file:
        about = file.metadata.metadata
        rows, shard_rows, weight = file.metadata.num_rows, int(about[_SHARD_ROWS]), about[_WEIGHT].decode()
        weights = pc.fill_null(file.read([weight])[weight], 0).to_numpy() if weight else np.ones(rows, np.int64)
    offsets = range(0, rows, shard_rows)
    return [
        Shard(
            todo,
            offset,
            min(shard_rows, rows - offset),
            todo.with_name(f"part-{generation:05}-{number:05}.parquet"),
            int(weight),
        )
        for number, (offset, weight) in enumerate(zip(offsets, np.add.reduceat(weights, offsets), strict=True))
    ]


def process(
    shards: Sequence[Shard],
    function: Callable[[Shard], None],
    engine: Engine,
    label: str,
    unit: str,
    scale: int = 1,
) -> None:
    """Run `function` (which must write the shard's part) over every shard whose part is missing.

    Progress is counted in `unit`s, each of `scale` of the shards' weight.
    """
    finish(shards, partial(engine.map, partial(_finish, function)), label, unit, scale)


def finish(
    shards: Sequence[Shard],
    work: Callable[[Sequence[Shard]], Iterator[Shard]],
    label: str,
    unit: str,
    scale: int = 1,
    note: Callable[[], str] = str,
    again: Container[Shard] = (),
) -> None:
    """As `process`, for `work` that takes many shards at once, and yields each when its part is written.

    `note` gives a short text for the line of progress; `again` are shards that have a part, and get a better one.
    """
    pending = [shard for shard in shards if shard in again or not shard.part.exists()]
    if not pending:
        return
    total = sum(shard.weight for shard in shards)
    done = total - sum(shard.weight for shard in pending)
    with Meter(label, total, unit, done, scale) as meter:
        for shard in work(pending):
            meter.advance(shard.weight, note())
    if missing := [shard for shard in pending if not shard.part.exists()]:
        raise UserError(f"{missing[0].part}: was written, but is not to be seen here; do all nodes share this folder?")


def _finish(function: Callable[[Shard], None], shard: Shard) -> Shard:
    function(shard)
    return shard
