"""Pictures that are not files yet: a list of URLs, or a dataset, is fetched into a folder of tars.

What is fetched are the bytes as they are: nothing is decoded or encoded. A run that was killed goes on where it
stopped, and what is in a finished tar is never fetched again. `curate.fetch.tars` describes the layout.
"""

from pathlib import Path

from curate.fetch.settings import FetchSettings
from curate.fetch.tars import sweep
from shared.engine import Engine
from shared.errors import UserError

DATASETS = "datasets:"
LISTS = (".csv", ".jsonl", ".parquet", ".txt")


def is_fetched(source: str) -> bool:
    """Whether `source` is a list of URLs or a dataset; anything else is read in place.

    Raises UserError where it is the name of a list that is not there.
    """
    if source.startswith(DATASETS):
        return True
    if Path(source).suffix not in LISTS or Path(source).is_dir():
        return False
    if not Path(source).is_file():
        raise UserError(f"{source}: no such file; a list of URLs is a file on this machine ({', '.join(LISTS)})")
    return True


def fetch(source: str, folder: Path, settings: FetchSettings, engine: Engine) -> None:
    """Bring the tars in `folder` up to date with `source`, for which `is_fetched` holds.

    Raises UserError where the list or the dataset, or its columns, cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if source.startswith(DATASETS):
        from curate.fetch.datasets import fetch_dataset

        fetch_dataset(source.removeprefix(DATASETS), folder, settings, engine)
    else:
        from curate.fetch.urls import fetch_urls

        fetch_urls(Path(source), folder, settings, engine)
