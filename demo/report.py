"""What the pipeline made of the corpus, held against the truth the corpus was drawn with."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
from rich.table import Table

from shared.progress import console

EXPECTED = {
    "original": {"kept", "kept as one with its copy"},
    "byte_copy": {"kept as one with its copy"},
    "reencode": {"near: near_duplicate", "exact: pixel_copy"},
    "resize": {"near: near_duplicate"},
    "crop": {"near: near_duplicate"},
    "costume_variant": {"kept"},
    "corrupt": {"ingest: undecodable", "ingest: not_an_image", "ingest: empty_file"},
    "flat": {"filter: flat"},
    "tiny": {"filter: too_small"},
}
"""Outcomes that are right for each kind of planted file."""


def compare(truth: Path, work: Path) -> None:
    """Print, for every kind of file in the corpus, how many were kept or dropped and whether that was right."""
    outcomes = read_outcomes(work)
    table = Table("planted", "files", "right", "what became of them", title="the corpus against its truth")
    with truth.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for kind, expected in EXPECTED.items():
        counts = Counter(outcomes[row["file"]] for row in rows if row["kind"] == kind)
        right = sum(count for outcome, count in counts.items() if outcome in expected)
        became = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        table.add_row(kind, str(counts.total()), f"{right / counts.total():.0%}", became)
    console.print(table)


def read_outcomes(work: Path) -> dict[str, str]:
    """What became of each file: `kept`, or the stage and reason it was dropped for."""
    curated = _rows(f"SELECT locations FROM read_parquet('{work}/curated/part-*.parquet')")
    rejects = _rows(f"SELECT locations, stage, reason FROM read_parquet('{work}/rejects.parquet')")
    outcomes = {file: f"{stage}: {reason}" for files, stage, reason in rejects for file in files}
    for (files,) in curated:
        outcomes |= dict.fromkeys(files, "kept" if len(files) == 1 else "kept as one with its copy")
    return outcomes


def _rows(query: str) -> list[Any]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()
