"""The work directory of `curate run`: where things lie, and what the last run left."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.errors import UserError
from shared.files import write_text
from shared.pipelines import Pipeline


def normal(source: str) -> str:
    """The address of a source in one form: a folder or file on this machine as an absolute path."""
    return source if ":" in source else str(Path(source).resolve())


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
        folder = folder.absolute()  # For workers on other machines, which start elsewhere.
        self.folder = folder
        self.tables = folder / "tables"
        self.curated = folder / "curated"
        self.rejects = folder / "rejects.parquet"
        self.pipeline = folder / "pipeline.yaml"
        self._record = folder / "tables.json"
        self._running = folder / ".running"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out. The lock goes with the process, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another `curate run` is at work here") from None
            try:
                yield
            finally:
                self._running.unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether a run is at work here now."""
        try:
            with (self.folder / ".lock").open() as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def note_running(self, stage: str, folder: Path) -> None:
        """Write down, for `curate status`, which stage begins and the folder that it writes."""
        self._running.write_text(f"{stage}\n{folder.relative_to(self.folder)}", encoding="utf-8")

    def running(self) -> tuple[str, Path, float] | None:
        """The stage that is at work (or was, when the run was killed), its folder, and when it began."""
        try:
            stage, folder = self._running.read_text(encoding="utf-8").split("\n")
            return stage, self.folder / folder, self._running.stat().st_mtime
        except (OSError, ValueError):
            return None

    def claim(self, source: str, pictures: Path | None, pipeline: Pipeline) -> None:
        """Write down what runs here, and the folder into which the source is fetched, if it has to be.

        Raises UserError where the directory belongs to another source.
        """
        address = normal(source)
        if self.folder.resolve().is_relative_to(address):
            raise UserError(f"{self.folder}: lies inside the source {address}; give a --work directory outside of it")
        if self.pipeline.exists():
            earlier = self.saved()["source"]
            if earlier != address:
                raise UserError(
                    f"{self.folder}: was made from {earlier}, not from {address}; give another --work directory"
                )
        fetched = {"pictures": str(pictures.relative_to(self.folder))} if pictures else {}
        document = {"source": address} | fetched | pipeline.document()
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
        write_text(self._record, json.dumps(asdict(record), indent=2))
