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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from shared.engine import Engine
from shared.files import atomic_file
from shared.fingerprint import fingerprint
from shared.progress import Meter
from shared.stages import LIVE


@dataclass(frozen=True)
class Shard:
    """A run of consecutive items of one generation, and the part that holds their results."""

    todo: Path
    offset: int
    rows: int
    part: Path

    def items(self) -> pa.Table:
        """The items of this shard."""
        return pq.read_table(self.todo).slice(self.offset, self.rows)


@dataclass(frozen=True)
class WorkList:
    """The list in `folder`; items with equal `keys` are the same item."""

    folder: Path
    keys: tuple[str, ...]
    shard_rows: int

    def extend(self, items: pa.Table) -> int:
        """Write the items that are not listed yet as a new generation, in their order; returns how many.

        Of several items with equal keys the first counts.
        """
        generation, keys = len(self._todos()), list(self.keys)
        connection = duckdb.connect()
        connection.register("items", items.append_column("_row", pa.array(range(len(items)), pa.int64())))
        known = [pq.read_table(todo, columns=keys) for todo in self._todos()]
        connection.register("known", pa.concat_tables([items.select(keys).slice(0, 0), *known]))
        columns = ", ".join(keys)
        new = connection.sql(
            f"SELECT min(_row) AS _row FROM items ANTI JOIN known USING ({columns}) GROUP BY {columns} ORDER BY _row"
        )
        items = items.take(new.to_arrow_table()["_row"])
        if len(items):
            with atomic_file(self.folder / f"todo-{generation:05}.parquet") as temporary:
                pq.write_table(items, temporary)
        return len(items)

    def declare(self, items: pa.Table) -> str:
        """Write down which items are in the corpus now (`live.parquet`): rows of others are not seen any more.

        Returns a digest of them. Nothing is written when nothing has changed.
        """
        live = items.select(list(self.keys))
        path = self.folder / LIVE
        if not (path.exists() and pq.read_table(path).equals(live)):
            with atomic_file(path) as temporary:
                pq.write_table(live, temporary)
        return fingerprint(live.to_pydict())

    def shards(self) -> list[Shard]:
        """Every shard of every generation, in order."""
        return [
            Shard(
                todo,
                offset,
                min(self.shard_rows, rows - offset),
                self.folder / f"part-{generation:05}-{offset // self.shard_rows:05}.parquet",
            )
            for generation, todo in enumerate(self._todos())
            for rows in [pq.read_metadata(todo).num_rows]
            for offset in range(0, rows, self.shard_rows)
        ]

    def _todos(self) -> list[Path]:
        return sorted(self.folder.glob("todo-*.parquet"))


def process(shards: Sequence[Shard], function: Callable[[Shard], None], engine: Engine, label: str, unit: str) -> None:
    """Run `function` (which must write the shard's part) over every shard whose part is missing."""
    pending = [shard for shard in shards if not shard.part.exists()]
    if not pending:
        return
    total = sum(shard.rows for shard in shards)
    done = total - sum(shard.rows for shard in pending)
    with Meter(label, total, unit, done) as meter:
        for rows in engine.map(partial(_finish, function), pending):
            meter.advance(rows)


def _finish(function: Callable[[Shard], None], shard: Shard) -> int:
    function(shard)
    return shard.rows
