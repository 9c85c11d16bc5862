"""Pictures a second that the stage `compose` turns into captions, from table to table.

    python bench/bench_compose.py [PICTURES]

30 tags per picture: two that say who is there, a character, an artist, the rest drawn from 20,000 by Zipf's law;
rating, quality, year, and for half of the pictures a sentence. Two workers; the time includes starting them.
Beside it, the plain way: one row after the other as dictionaries, the preset `tags` alone.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from caption.compose import STAGE
from caption.variants import GROUPS
from shared.engine import LocalEngine
from shared.stages import DECISIONS, TAG, Job, Stage
from shared.tables import GROUP_ROWS, write_parts

WORKERS, TAGS, DECIDER = 2, 30, "filter"
SETTINGS: dict[str, dict[str, Any]] = {
    "default: tags, text, tags_text": {},
    "illustration: tags, augmented (3 copies), xml, text, tags_text": {
        "variants": ["tags", "augmented", "xml", "text", "tags_text"]
    },
    "augmented (10 copies)": {
        "variants": {"many": {"order": "illustrious", "shuffle": True, "dropout": 0.3, "copies": 10}}
    },
}
MERGE = pa.schema(
    [("image_id", pa.string()), ("tags", pa.list_(TAG)), ("caption", pa.string()), ("rating", pa.string())]
)
QUALITY = pa.schema([("image_id", pa.string()), ("quality_tag", pa.string()), ("year_tag", pa.string())])
ENDINGS = ("hair", "eyes", "dress", "shirt", "bow", "background", "smile", "ornament", "sleeves", "sky")


def merged(pictures: int) -> Iterator[pa.RecordBatch]:
    """Rows of `merge`, by image id."""
    random = np.random.default_rng(0)
    ids = sorted(hashlib.sha256(str(number).encode()).hexdigest() for number in range(pictures))
    names = np.array([f"word{number}_{ENDINGS[number % len(ENDINGS)]}" for number in range(20_000)])
    for start in range(0, pictures, GROUP_ROWS):
        part = ids[start : start + GROUP_ROWS]
        chosen = np.minimum(random.zipf(1.2, (len(part), TAGS - 4)), 20_000) - 1
        rows = [
            {
                "image_id": image_id,
                "tags": [
                    *({"name": name, "category": "general", "origin": "source"} for name in names[row].tolist()),
                    {"name": "1girl", "category": "general", "origin": "source"},
                    {"name": "solo", "category": "general", "origin": "source"},
                    {"name": f"character_{row[0]}_(series)", "category": "character", "origin": "source"},
                    {"name": f"artist_{row[1]}", "category": "artist", "origin": "source"},
                ],
                "caption": "A girl with long hair stands in a field and smiles." if row[0] % 2 else None,
                "rating": "general",
            }
            for image_id, row in zip(part, chosen, strict=True)
        ]
        yield pa.RecordBatch.from_pylist(rows, MERGE)


def write_tables(folder: Path, pictures: int) -> dict[str, Path]:
    """The tables that `compose` reads."""
    tables = {name: folder / name for name in ("merge", DECIDER, "quality")}
    for table in tables.values():
        table.mkdir()
    write_parts(merged(pictures), tables["merge"], MERGE)
    ids = pq.read_table(tables["merge"], columns=["image_id"])["image_id"].to_pylist()
    keep(ids, tables[DECIDER])
    said = [{"image_id": image_id, "quality_tag": "best quality", "year_tag": "newest"} for image_id in ids]
    pq.write_table(pa.Table.from_pylist(said, QUALITY), tables["quality"] / "part-00000.parquet")
    return tables


def seconds_of(stage: Stage[Any], folder: Path, tables: dict[str, Path], settings: dict[str, Any]) -> float:
    """Seconds of a stage behind tables of which `DECIDER` decides."""
    folder.mkdir()
    job = Job(
        source="",
        settings=stage.settings(**settings),
        folder=folder,
        tables=tables,
        deciders=(DECIDER,),
        engine=LocalEngine(WORKERS),
    )
    start = time.perf_counter()
    stage.run(job)
    return time.perf_counter() - start


def keep(ids: Iterable[str], folder: Path) -> None:
    """Write decisions to keep these pictures."""
    kept = [{"image_id": image_id, "keep": True} for image_id in ids]
    pq.write_table(pa.Table.from_pylist(kept, DECISIONS), folder / "part-00000.parquet")


def plain(tables: dict[str, Path]) -> float:
    """Seconds of a loop over rows that writes nothing but `tags`."""
    start = time.perf_counter()
    captions = []
    for batch in pq.ParquetFile(tables["merge"] / "part-00000.parquet").iter_batches():
        for row in batch.to_pylist():
            ordered = [tag for group in GROUPS for tag in row["tags"] if tag["category"] == group]
            captions.append(", ".join(tag["name"].replace("_", " ") for tag in ordered))
    return (time.perf_counter() - start) / len(captions)


def main() -> None:
    """Every setting, and the plain loop."""
    pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 4 * 65_536
    with tempfile.TemporaryDirectory() as folder:
        tables = write_tables(Path(folder), pictures)
        for number, (name, settings) in enumerate(SETTINGS.items()):
            seconds = seconds_of(STAGE, Path(folder) / f"out{number}", tables, settings)
            print(f"{name}: {pictures / seconds:,.0f} pictures/s on {WORKERS} cores")
        print(f"plain loop, tags alone: {1 / plain(tables):,.0f} pictures/s on 1 core")


if __name__ == "__main__":
    main()
