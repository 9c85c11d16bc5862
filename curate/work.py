"""The work directory of `curate run`: where things lie, and what the last run left."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.errors import UserError
from shared.files import write_text
from shared.pipelines import Pipeline


@dataclass(frozen=True)
class Record:
    """`tables.json`: the current tables, and whether the dataset made of them is written."""

    tables: Mapping[str, str]
    """Folder of each stage's table by stage name, in the order of the pipeline."""
    published: str | None = None
    """Fingerprint of what `curated` and `rejects.parquet` were made of."""


class Work:
    """Paths below a work directory, and the few small files that describe it."""

    def __init__(self, folder: Path) -> None:
        if set("*?[") & set(str(folder.resolve())):
            raise UserError(
                f"{folder}: a work directory must not have * ? [ in its path, DuckDB takes them for patterns"
            )
        self.folder = folder
        self.tables = folder / "tables"
        self.curated = folder / "curated"
        self.rejects = folder / "rejects.parquet"
        self.pipeline = folder / "pipeline.yaml"
        self._record = folder / "tables.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out. The lock goes with the process, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another `curate run` is at work here") from None
            yield

    def claim(self, source: Path, pipeline: Pipeline) -> None:
        """Write down what runs here. Raises UserError where the directory belongs to another source."""
        address = str(source.resolve())
        if self.folder.resolve().is_relative_to(address):
            raise UserError(f"{self.folder}: lies inside the source {address}; give a --work directory outside of it")
        if self.pipeline.exists():
            earlier = self.saved()["source"]
            if earlier != address:
                raise UserError(
                    f"{self.folder}: was made from {earlier}, not from {address}; give another --work directory"
                )
        document = {"source": address} | pipeline.document()
        if not self.pipeline.exists() or self.saved() != document:
            write_text(self.pipeline, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))

    def saved(self) -> dict[str, Any]:
        """`pipeline.yaml`. Raises UserError where nothing has run yet."""
        try:
            document: dict[str, Any] = yaml.safe_load(self.pipeline.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.folder}: nothing has run here yet; start with `curate run`") from None
        return document

    def record(self) -> Record:
        """What the last run left, also if it was interrupted."""
        if not self._record.exists():
            return Record({})
        return Record(**json.loads(self._record.read_text(encoding="utf-8")))

    def write_record(self, record: Record) -> None:
        """Replace the record."""
        write_text(self._record, json.dumps({"tables": dict(record.tables), "published": record.published}, indent=2))
