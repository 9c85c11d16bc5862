"""`curate run`: a source goes through the stages of a pipeline and becomes a dataset.

A table's folder is named by a fingerprint of everything that its rows depend on, so what is there already is
never computed again, and a run that was killed goes on where it stopped.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import duckdb

from curate import filter as filter_
from curate import review
from curate.fetch import fetch, is_fetched
from curate.fetch.settings import FetchSettings
from curate.publish import publish
from curate.work import Record, Work, normal
from shared.corpus import Corpus
from shared.engine import Engine
from shared.errors import UserError
from shared.files import atomic_folder
from shared.fingerprint import fingerprint
from shared.pipelines import Pipeline, StageSpec
from shared.progress import clock, console
from shared.stages import Job

VERSION = 2
"""Raised when `publish` writes other bytes for the same tables."""

NEEDED = ("ingest", "posts", "metadata", "pixels", "exact", "merge", "filter")
"""Stages without which there is no dataset; `filter` because its safety rule has no off switch."""


def run(source: str, pipeline: Pipeline, work: Work, engine: Engine) -> None:
    """Bring `work` up to date with `source` and `pipeline`.

    Raises UserError before anything is written where the two cannot be used, or not in this directory.
    """
    _check(source, pipeline)
    with work.locked():
        pictures = _pictures(source, pipeline, work, engine)
        tables: dict[str, Path] = {}
        deciders: tuple[str, ...] = ()
        upstream = ""
        for spec in pipeline.stages:
            start = time.monotonic()
            job = Job(
                source=pictures,
                settings=spec.settings,
                folder=work.tables / spec.name,
                tables=dict(tables),
                deciders=deciders,
                engine=engine,
            )
            tables[spec.name], upstream = _table(spec, job, upstream, work)
            deciders += (spec.name,) if spec.stage.decides else ()
            _note(work, tables)
            console.print(f"{spec.name}: {clock(time.monotonic() - start)}")
        _publish(pipeline, work, tables, fingerprint([VERSION, upstream]))


def _pictures(source: str, pipeline: Pipeline, work: Work, engine: Engine) -> str:
    """Where the pictures lie: the source, or the folder into which it is fetched first."""
    if not is_fetched(source):
        work.claim(source, None, pipeline)
        _sweep(work)
        return normal(source)
    settings = cast(FetchSettings, pipeline.sections["fetch"])
    folder = work.folder / "fetched" / fingerprint(settings.what())
    work.claim(source, folder, pipeline)
    _sweep(work)
    fetch(source, folder, settings, engine)
    return str(folder.resolve())


def _table(spec: StageSpec, job: Job[Any], upstream: str, work: Work) -> tuple[Path, str]:
    """Write a stage's table, unless it is there, below `job.folder`.

    Returns its folder, and the fingerprint of everything up to here; `upstream` is that of the stages before.
    """
    own = [spec.module, spec.stage.version, spec.settings.what()]
    if spec.stage.incremental:
        folder = job.folder / fingerprint(own)
        work.note_running(spec.name, folder)
        digest = _run(spec, replace(job, folder=folder))
        return folder, fingerprint([upstream, own, digest])
    upstream = fingerprint([upstream, own])
    folder = job.folder / upstream
    if not folder.exists():
        work.note_running(spec.name, folder)
        with atomic_folder(folder) as temporary:
            _run(spec, replace(job, folder=temporary))
    return folder, upstream


def _run(spec: StageSpec, job: Job[Any]) -> str | None:
    try:
        return spec.stage.run(job)
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        if isinstance(error, duckdb.IOException) and "write" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"stage {spec.name}: {reason}; what is finished is kept: make room for {job.folder} and start again"
        ) from error


def _check(source: str, pipeline: Pipeline) -> None:
    if not is_fetched(source) and not Corpus(source).exists():
        raise UserError(f"{source}: no such folder; give the folder that holds the pictures")
    names = [spec.name for spec in pipeline.stages]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(f"pipeline {pipeline.name!r} lacks the stage {missing[0]!r}; needed: {', '.join(NEEDED)}")
    filter_.check_pipeline(pipeline)
    review.check_pipeline(pipeline)


def _note(work: Work, tables: Mapping[str, Path]) -> None:
    """Record the tables so far; those of later stages stay recorded as long as nothing before them has changed."""
    now = [(name, str(folder.relative_to(work.folder))) for name, folder in tables.items()]
    if list(work.record().tables.items())[: len(now)] != now:
        work.write_record(Record(dict(now)))


def _publish(pipeline: Pipeline, work: Work, tables: dict[str, Path], state: str) -> None:
    """Write the dataset, unless it is there and made of the same tables."""
    if work.record().published == state and work.curated.exists() and work.rejects.exists():
        return
    publish(pipeline.stages, tables, work.curated, work.rejects)
    work.write_record(Record(work.record().tables, state))


def _sweep(work: Work) -> None:
    """Remove what killed runs left half-written; the lock says that nobody is writing."""
    for leftover in [*work.folder.glob(".*.tmp"), *work.folder.glob(".*.old"), *work.tables.rglob(".*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
