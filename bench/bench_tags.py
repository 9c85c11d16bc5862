"""Pictures a second that the stage `tags` normalises, from table to table, without and with a tagger.

    python bench/bench_tags.py [PICTURES] [VOCABULARY.csv]

30 tags of a source and 30 of a tagger per picture, drawn by Zipf's law from 20,000 names, every tenth of them an alias
and every fifth implying others. Two workers; the time includes starting them and reading the vocabulary. Beside it, the
plain way: one row after the other as dictionaries, one process.
"""

import csv
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_compose import DECIDER, TAGS, WORKERS, keep, seconds_of

from caption.tags import STAGE
from caption.vocabulary import read_vocabulary
from shared.stages import TAG
from shared.tables import GROUP_ROWS, write_parts

NAMES = 20_000
SCHEMA = pa.schema([("image_id", pa.string()), ("tags", pa.list_(TAG)), ("rating", pa.string())])


def names() -> list[str]:
    """Different tags as they are given: every tenth by an alias."""
    return [f"old{number}" if number % 10 == 9 else f"tag{number}" for number in range(NAMES)]


def write_vocabulary(folder: Path) -> dict[str, Any]:
    """The settings of the stage."""
    with (folder / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows((f"tag{n}", 0, NAMES - n, f"old{n}") for n in range(NAMES))
    with (folder / "implications.jsonl").open("w") as file:
        for number in range(0, NAMES - 10, 5):
            row = {"antecedent_name": f"tag{number + 5}", "consequent_name": f"tag{number // 2}", "status": "active"}
            file.write(json.dumps(row) + "\n")
    return {"vocabulary": folder / "tags.csv", "implications": folder / "implications.jsonl"}


def rows(ids: list[str], origin: str, seed: int) -> Iterator[pa.RecordBatch]:
    """Pictures with tags."""
    random = np.random.default_rng(seed)
    known = np.array(names())
    for start in range(0, len(ids), GROUP_ROWS):
        part = ids[start : start + GROUP_ROWS]
        chosen = known[np.minimum(random.zipf(1.2, (len(part), TAGS)), NAMES) - 1]
        confidence = 0.5 if origin == "tagger" else None
        yield pa.RecordBatch.from_pylist(
            [
                {
                    "image_id": image_id,
                    "tags": [
                        {"name": name, "category": "general", "origin": origin, "confidence": confidence}
                        for name in dict.fromkeys(row.tolist())
                    ],
                    "rating": "general",
                }
                for image_id, row in zip(part, chosen, strict=True)
            ],
            SCHEMA,
        )


def write_tables(folder: Path, pictures: int) -> dict[str, Path]:
    """The tables that `tags` reads."""
    tables = {name: folder / name for name in (DECIDER, "merge", "tagger")}
    for table in tables.values():
        table.mkdir()
    ids = sorted(hashlib.sha256(str(number).encode()).hexdigest() for number in range(pictures))
    write_parts(rows(ids, "source", 0), tables["merge"], SCHEMA)
    write_parts(rows(ids, "tagger", 1), tables["tagger"], SCHEMA)
    keep(ids, tables[DECIDER])
    return tables


def plain(tables: dict[str, Path], settings: dict[str, Any]) -> float:
    """Seconds per picture of a loop over rows that writes nothing."""
    vocabulary = read_vocabulary(settings["vocabulary"], None, settings["implications"])
    parts = [pq.ParquetFile(tables[name] / "part-00000.parquet").iter_batches() for name in ("merge", "tagger")]
    start, done = time.perf_counter(), 0
    for merge, tagger in zip(*parts, strict=True):
        for row, seen in zip(merge.to_pylist(), tagger.to_pylist(), strict=True):
            found = {vocabulary.resolve(tag["name"]): tag for tag in [*row["tags"], *seen["tags"]]}
            for name in list(found):
                for parent in vocabulary.implied.get(name, ()):
                    found.setdefault(parent, {"name": parent, "origin": "rule"})
            done += 1
    return (time.perf_counter() - start) / done


def main() -> None:
    """Both, and the plain loop."""
    pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 4 * 65_536
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tables, settings = write_tables(folder, pictures), write_vocabulary(folder)
        if len(sys.argv) > 2:
            settings["vocabulary"] = Path(sys.argv[2])
        without = {name: table for name, table in tables.items() if name != "tagger"}
        for number, (label, given) in enumerate({"source": without, "source and tagger": tables}.items()):
            seconds = seconds_of(STAGE, folder / f"out{number}", given, settings)
            print(f"{label}: {pictures / seconds:,.0f} pictures/s on {WORKERS} cores")
        print(f"plain loop, source and tagger: {1 / plain(tables, settings):,.0f} pictures/s on 1 core")


if __name__ == "__main__":
    main()
