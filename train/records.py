"""Records of a run's steps: a file of JSON, a line for each."""

import json
from pathlib import Path
from typing import Any

from shared.files import full_disk_named, write_text

METRICS, VALIDATION, SKIPPED = "metrics.jsonl", "validation.jsonl", "skipped.jsonl"
"""Of every step, of every look at held-out pictures, of steps that were not taken."""


class Records:
    """A file that is appended to. A resumed run leaves the records of an uninterrupted one: those from `first_step` on,
    which it will make again, are dropped.

    Only one process writes them.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self._path = path
        kept = [record for record in read(path) if record["step"] < first_step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, which has a `step`. Raises UserError when the disk is full."""
        with full_disk_named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none where it is absent; a line cut off by a kill is left out."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records
