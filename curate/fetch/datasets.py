"""Datasets become tars: streamed, a part (some of its files) after the other, each cut into tars of so many rows.

.dataset.json              what was found when fetching began: to that the folder belongs from then on
tar-00003-00000.tar, ...   part 3
.part-00003                there when part 3 is finished
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets
import fsspec
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from curate.fetch.settings import FetchSettings
from curate.fetch.tars import Failure, Picture, fits_json, to_json, write_tar
from shared.corpus import state
from shared.engine import Engine
from shared.errors import UserError
from shared.files import os_error, write_text
from shared.fingerprint import fingerprint
from shared.progress import Meter, console

PARTS = 1024
"""At most; a dataset of fewer files has a part for each."""

_NETWORK = (ConnectionError, TimeoutError, HfHubHTTPError)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a folder of tars is made of; it never changes."""

    name: str
    """Of the dataset on the hub, or its folder."""
    state: str
    """The commit, or a fingerprint of the folder's files."""
    parts: int
    rows: int


def fetch_dataset(name: str, folder: Path, settings: FetchSettings, engine: Engine) -> None:
    """Fetch what is missing of a dataset.

    Raises UserError where there is no such dataset, split or column, where it has changed since fetching began (a
    folder; of the hub the same commit is fetched), and where the connection is lost.
    """
    plan = _plan(name, folder, settings)
    pending = [part for part in range(plan.parts) if not _finished(folder, part).exists()]
    if not pending:
        return
    with Meter("fetch", plan.parts, "parts", plan.parts - len(pending)) as meter:
        rows = 0
        for fetched in engine.map(partial(fetch_part, plan, folder, settings), pending):
            rows += fetched
            meter.advance(note=f"{rows:,} rows")


def fetch_part(plan: Plan, folder: Path, settings: FetchSettings, part: int) -> int:
    """Write the tars of a part that are not there yet; returns how many rows they have."""
    tars = (folder / f"tar-{part:05}-{number:05}.tar" for number in count())
    number, tar = next((number, tar) for number, tar in enumerate(tars) if not tar.exists())
    rows = read_part(plan, settings, part, skip=number * plan.rows)
    fetched = 0
    while head := next(rows, None):
        fetched += write_tar(tar, chain([head], islice(rows, plan.rows - 1)))
        tar = next(tars)
    write_text(_finished(folder, part), "")
    return fetched


def read_part(plan: Plan, settings: FetchSettings, part: int, skip: int) -> Iterator[Picture | Failure]:
    """The rows of a part behind the first `skip`. Raises UserError where the connection is lost."""
    source = _open(plan, settings)
    rows = iter(source.rows.shard(plan.parts, part).skip(skip))
    for number in count(skip):
        name = f"{PurePosixPath(plan.name).name}, part {part}, row {number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except _NETWORK as error:
            raise UserError(f"{name}: {error}; finished tars are kept, start the command again to go on") from None
        except Exception as error:  # Readers raise almost anything on broken files; none of them can go on.
            yield Failure(name, "unreadable", f"{type(error).__name__}: {error}; nothing behind it could be read")
            return
        yield _entry(name, row, source, settings)


class _Source(NamedTuple):
    """A dataset, open."""

    rows: Any
    """An IterableDataset of the columns that are kept."""
    image: str
    labels: dict[str, Any]
    """Features that turn the numbers of some columns into names."""


@lru_cache(maxsize=1)
def _open(plan: Plan, settings: FetchSettings) -> _Source:
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # What it logs, it raises as well.
    try:
        rows = _split(_load(plan, settings), plan.name, settings)._resolve_features()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"datasets:{plan.name}: {error}") from None
    features = rows.features
    image = _image_column(plan.name, features, settings)
    wanted = (*(settings.columns or features), *([settings.caption] if settings.caption else []))
    for column in wanted:
        if column not in features:
            raise UserError(f"datasets:{plan.name}: no column {column!r}, there are: {', '.join(features)}")
    schema = features.arrow_schema
    kept = [name for name in features if name in wanted and name != image and fits_json(schema.field(name).type)]
    if left := [name for name in features if name in wanted and name not in (image, *kept)]:
        console.print(f"{plan.name}: left out, for they hold bytes: {', '.join(left)}", markup=False)
    labels = {name: features[name] for name in kept if isinstance(features[name], datasets.ClassLabel)}
    rows = rows.select_columns([image, *kept]).cast_column(image, datasets.Image(decode=False))
    return _Source(rows, image, labels)


def _load(plan: Plan, settings: FetchSettings) -> Any:
    """The splits of the dataset, or where it was saved without splits, its rows."""
    if not Path(plan.name).exists():
        return datasets.load_dataset(plan.name, settings.config, revision=plan.state, streaming=True)
    if not any((Path(plan.name) / name).exists() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_dataset(plan.name, settings.config, streaming=True)
    saved = datasets.load_from_disk(plan.name)

    def stream(rows: Any) -> Any:
        return rows.to_iterable_dataset(num_shards=max(1, min(len(rows) // plan.rows, PARTS)))

    if isinstance(saved, dict):
        return {name: stream(rows) for name, rows in saved.items()}
    return stream(saved)


def _split(loaded: Any, name: str, settings: FetchSettings) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    wanted = settings.split or (next(iter(loaded)) if len(loaded) == 1 else None)
    if wanted not in loaded:
        problem = f"no split {wanted!r}" if wanted else "has several splits"
        raise UserError(f"datasets:{name}: {problem}; name one with --set fetch.split=NAME: {', '.join(loaded)}")
    return loaded[wanted]


def _image_column(name: str, features: Any, settings: FetchSettings) -> str:
    if settings.image in features:
        return str(settings.image)
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if settings.image is None and len(images) == 1:
        return str(images[0])
    if settings.image is not None:
        problem = f"no column {settings.image!r}"
    else:
        problem = f"several columns of pictures ({', '.join(images)})" if images else "no column of pictures"
    raise UserError(
        f"datasets:{name}: {problem}; name it with --set fetch.image=COLUMN, there are: {', '.join(features)}"
    )


def _entry(name: str, row: dict[str, Any], source: _Source, settings: FetchSettings) -> Picture | Failure:
    image = row.pop(source.image)
    if image is None or (image["bytes"] is None and not image["path"]):
        return Failure(name, "no_image", f"{source.image} is null")
    data, path = image["bytes"], image["path"]
    if data is None:
        try:
            with fsspec.open(path, "rb") as file:
                data = file.read()
        except Exception as error:  # Every file system has errors of its own.
            detail = os_error(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            return Failure(name, "unreadable", f"{path}: {detail}", transient=isinstance(error, _NETWORK))
    for column, label in source.labels.items():
        row[column] = label.int2str(row[column]) if row[column] is not None and row[column] >= 0 else None
    if settings.caption is not None:
        row["caption"] = row.pop(settings.caption)
    return Picture(data, to_json(({"file_name": PurePosixPath(path).name} if path else {}) | row))


def _plan(name: str, folder: Path, settings: FetchSettings) -> Plan:
    """The plan in the folder, else a new one."""
    file = folder / ".dataset.json"
    local = Path(name).exists()
    name = str(Path(name).resolve()) if local else name
    if not file.exists():
        state = _stamp(Path(name)) if local else _commit(name, settings)
        plan = Plan(name=name, state=state, parts=1, rows=settings.rows)
        plan = replace(plan, parts=min(_open(plan, settings).rows.num_shards, PARTS))
        write_text(file, json.dumps(asdict(plan), indent=2))
        return plan
    plan = replace(Plan(**json.loads(file.read_text(encoding="utf-8"))), name=name)
    if local and _stamp(Path(name)) != plan.state:
        raise UserError(f"datasets:{name}: has changed since fetching began; to fetch it anew, remove {folder}")
    return plan


def _commit(name: str, settings: FetchSettings) -> str:
    try:
        return str(huggingface_hub.dataset_info(name, revision=settings.revision).sha)
    except (OSError, ValueError) as error:
        raise UserError(f"datasets:{name}: no such folder, and not found on the hub: {error}") from None


def _stamp(root: Path) -> str:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return fingerprint([(os.fsencode(path.relative_to(root)).hex(), state(path.stat())) for path in files])


def _finished(folder: Path, part: int) -> Path:
    return folder / f".part-{part:05}"
