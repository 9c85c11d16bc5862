"""Tables with a row for every picture that is still kept, written part by part, each in a process of its own."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from caption.pictures import Range, ranges
from shared.progress import Meter
from shared.stages import Job, connect
from shared.tables import read, write_parts

K = TypeVar("K")

WriteRange = Callable[[Mapping[str, Path], Sequence[str], Path, Any, Range], tuple[int, Counter[K]]]
"""Takes tables, deciders, folder and settings of a job and the range of a part, and writes the part. Returns how many
pictures it has, and counts of what happened."""


def write_table(job: Job[Any], label: str, write_range: WriteRange[K]) -> Counter[K]:
    """Write all parts; returns what was counted, of all of them."""
    with job.connect() as connection:
        total, parts = ranges(connection)
    counts: Counter[K] = Counter()
    with Meter(label, total, "pictures") as meter:
        task = partial(write_range, job.tables, job.deciders, job.folder, job.settings)
        for rows, found in job.engine.map(task, parts):
            counts += found
            meter.advance(rows)
    return counts


def write_part(
    tables: Mapping[str, Path],
    deciders: Sequence[str],
    folder: Path,
    part: Range,
    query: str,
    schema: pa.Schema,
    change: Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]],
) -> None:
    """Write what `change` makes of the rows of a query about the pictures of one part."""
    # Of its own, for a cluster may do a task twice.
    temporary = Path(tempfile.mkdtemp(prefix=f".{part.number:05}.", suffix=".tmp", dir=folder))
    with connect(tables, deciders, temporary, part.bounds()) as connection:
        connection.execute("SET threads = 1")  # The other cores have parts of their own.
        write_parts(change(read(connection, query)), temporary, schema)
    (temporary / "part-00000.parquet").replace(folder / f"part-{part.number:05}.parquet")
    shutil.rmtree(temporary)
