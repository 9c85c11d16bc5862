"""Downloads through img2dataset, many at once, the bodies kept as they are.

Of img2dataset this uses the class that downloads one shard, in the process of the engine's worker: its command
would start two more processes per shard, each of which imports PyTorch and more.
"""

import importlib
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from curate.fetch.lists import ascii_url
from curate.fetch.settings import FetchSettings
from curate.fetch.tars import Spool
from shared.errors import UserError

NOT_DOWNLOADED = "not_downloaded"

PAUSE = 1.0
"""Seconds before the first try after a failure; before each further one twice as many."""

_FOREVER = re.compile(r"HTTP Error (3\d\d|4(?!08|25|29)\d\d)|X-Robots-Tag")
"""Messages of downloads that will hardly ever succeed: gone, forbidden, a loop of redirects."""

NO_LEARNING = ["noai", "noimageai", "noindex", "noimageindex"]
"""Directives of the header X-Robots-Tag by which a site refuses; those that img2dataset heeds by default."""


def is_transient(message: str) -> bool:
    """Whether a download that failed with this message may succeed later."""
    return _FOREVER.search(message) is None


def require_img2dataset() -> None:
    """Raises UserError where img2dataset is not installed."""
    if importlib.util.find_spec("img2dataset") is None:
        raise UserError("a list of URLs needs img2dataset: pip install 'illustrious-lu[download]'")


def download(urls: Mapping[int, str], settings: FetchSettings, spool: Spool) -> dict[int, str]:
    """Download each URL into the spool, under its number; returns what went wrong, for those that failed.

    Failures that may be over soon are tried again, all of them together after a pause.
    """
    failed: dict[int, str] = {}
    waiting = dict(urls)
    for attempt in range(settings.retries + 1):
        if not waiting:
            break
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        answers = _Answers(spool)
        _download(waiting, settings, answers)
        for number in waiting:
            failed.pop(number, None)
            if number not in spool:
                failed[number] = answers.failed.get(number, "no answer from img2dataset")
        waiting = {number: urls[number] for number, message in failed.items() if is_transient(message)}
    return failed


class _Answers:
    """What img2dataset takes for the writer of a shard."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.failed: dict[int, str] = {}

    def write(self, body: bytes | None, _key: str, _caption: str | None, about: Mapping[str, Any]) -> None:
        """Called for each URL, in the order in which they are answered."""
        if body is None:
            self.failed[about["number"]] = about["error_message"]
        else:
            self._spool.add(about["number"], body)

    def close(self) -> None:
        """Nothing is held back."""


def _download(urls: Mapping[int, str], settings: FetchSettings, answers: _Answers) -> None:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # It would ask the network for a newer version of itself.
    downloader = importlib.import_module("img2dataset.downloader").Downloader  # Not above: it takes seconds.
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "shard.arrow"
        table = pa.table({"number": list(urls), "url": [ascii_url(url) for url in urls.values()]})
        with pa.ipc.new_file(shard, table.schema) as writer:
            writer.write_table(table)
        downloader(
            sample_writer_class=lambda *_: answers,
            resizer=_unchanged,
            thread_count=min(settings.threads, len(urls)),
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=table.column_names,
            timeout=settings.timeout,
            number_sample_per_shard=len(urls),
            oom_shard_count=5,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=NO_LEARNING,
        ).download_shard((0, str(shard)))


def _unchanged(body: BinaryIO, _boxes: object) -> tuple[bytes, None, None, None, None, None]:
    """In place of img2dataset's resizer: the bytes, four sizes that nobody asks for, and no error."""
    return body.read(), None, None, None, None, None
