"""URLs become tars: a shard of the list, one tar.

What is on the list is written down (in `.list`) before anything is fetched, so that the tars depend on the list
alone; rows that come later go into tars of their own. A URL is fetched once, with the metadata of its first row.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.fetch.download import NOT_DOWNLOADED, download, is_transient, require_img2dataset
from curate.fetch.lists import ITEMS, read_list
from curate.fetch.settings import FetchSettings
from curate.fetch.tars import Failure, Picture, Spool, read_failures, read_pictures, write_tar
from shared.corpus import state
from shared.engine import Engine
from shared.files import write_text
from shared.progress import Meter, console
from shared.worklist import Shard, WorkList, process


def fetch_urls(path: Path, folder: Path, settings: FetchSettings, engine: Engine) -> None:
    """Fetch what is new in a list. Raises UserError where it cannot be used, or img2dataset is missing."""
    _extend(path, folder, settings)
    shards = [replace(shard, part=_tar(folder, shard)) for shard in WorkList(folder / ".list", ("url",), 1).shards()]
    again = [shard for shard in shards if shard.part.exists() and _waits(shard)] if settings.retry_failed else []
    if again or not all(shard.part.exists() for shard in shards):
        require_img2dataset()
    function = partial(fetch_shard, settings)
    process(shards, function, engine, "fetch", "URLs")
    if again:
        with Meter("fetch again", len(again), "tars") as meter:
            for _ in engine.map(function, again):
                meter.advance()


def fetch_shard(settings: FetchSettings, shard: Shard) -> None:
    """Write the tar of one shard. Where it is there already, what failed and may succeed now is tried again."""
    items = shard.items().to_pylist()
    with Spool(shard.part.parent) as spool:
        failures: dict[int, Failure] = {}
        if shard.part.exists():
            failures = {number: one for number, one in read_failures(shard.part).items() if not one.transient}
            for number, data in read_pictures(shard.part):
                spool.add(number, data)
        for number, item in enumerate(items):
            if item["error"]:
                failures[number] = Failure(item["url"], item["error"], item["detail"])
        wanted = {n: item["url"] for n, item in enumerate(items) if n not in failures and n not in spool}
        for number, message in download(wanted, settings, spool).items():
            failures[number] = Failure(wanted[number], NOT_DOWNLOADED, message, is_transient(message))

        def rows() -> Iterator[Picture | Failure]:
            for number, item in enumerate(items):
                yield failures.get(number) or Picture(spool.read(number), item["metadata"])

        write_tar(shard.part, rows())


def _extend(path: Path, folder: Path, settings: FetchSettings) -> None:
    """Put what is new in the list on the work list. A file that has not changed since is not read."""
    seen, now = folder / ".list" / "seen", f"{path.resolve()} {state(path.stat())}"
    if seen.exists() and seen.read_text(encoding="utf-8") == now:
        return
    spooled = folder / ".rows.tmp"  # An error while it is read must not pass through DuckDB.
    rows = 0
    with pq.ParquetWriter(spooled, ITEMS) as writer:
        for batch in read_list(path, settings):
            writer.write_batch(batch)
            rows += len(batch)
    with pq.ParquetFile(spooled) as file:
        items = pa.RecordBatchReader.from_batches(ITEMS, file.iter_batches())
        new = WorkList(folder / ".list", ("url",), settings.rows).extend(items)
    spooled.unlink()
    write_text(seen, now)
    rest = f", {rows - new:,} with a URL that was listed before" if rows > new else ""
    console.print(f"{path.name}: {rows:,} rows, {new:,} new{rest}", markup=False)


def _tar(folder: Path, shard: Shard) -> Path:
    return folder / f"tar{shard.part.stem.removeprefix('part')}.tar"


def _waits(shard: Shard) -> bool:
    return any(failure.transient for failure in read_failures(shard.part).values())
