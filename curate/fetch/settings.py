"""Settings of what is fetched, the section `fetch` of a pipeline."""

from pydantic import NonNegativeInt, PositiveInt

from shared.settings import Settings


class FetchSettings(Settings):
    """What is fetched of a list of URLs or a dataset, and how."""

    HOW = frozenset({"rows", "threads", "timeout", "retries", "retry_failed"})

    url: str = "url"
    """Column of a list that holds the URLs. A .txt has one URL per line and no columns."""
    caption: str | None = None
    """Column to be used as caption, where it has another name than `caption`."""
    columns: tuple[str, ...] | None = None
    """Other columns to keep as metadata. Default: all that JSON can hold."""
    image: str | None = None
    """Column of a dataset that holds the pictures. Default: the one whose feature is `Image`."""
    config: str | None = None
    """Configuration of a dataset. Default: its default, or its only one."""
    split: str | None = None
    """Split of a dataset. Default: its only one."""
    revision: str | None = None
    """Commit, branch or tag of a dataset of the hub. Default: the newest commit when fetching begins."""
    rows: PositiveInt = 1000
    """Rows per tar, the unit of resume. Another value holds for rows that come later, in a dataset for none."""
    threads: PositiveInt = 32
    """Downloads at once in each worker."""
    timeout: PositiveInt = 10
    """Seconds without an answer, or without more of it, after which a download has failed."""
    retries: NonNegativeInt = 2
    """How often a download that may succeed later is tried again, after 1, 2, 4, ... seconds."""
    retry_failed: bool = False
    """Try again the downloads that failed in earlier runs, except those that will hardly ever succeed (such as 404)."""


SETTINGS = FetchSettings
