"""What people write beside pictures, in one form: the keys of boorus and of gallery-dl become typed columns.

A value of a wrong type never stops anything: it is left out, and an error says so.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from shared.spelling import tag_name
from shared.stages import TAG

METADATA = pa.schema(
    [
        pa.field("tags", pa.list_(TAG)),
        pa.field("caption", pa.string()),
        pa.field("rating", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("favorites", pa.int64()),
        pa.field("created_at", pa.timestamp("ms", tz="UTC")),
        pa.field("source_url", pa.string()),
        pa.field("post_id", pa.string()),
        pa.field("parent_id", pa.string()),
    ]
)

RATINGS = ("general", "sensitive", "questionable", "explicit")
"""From the mildest to the most explicit."""

CATEGORIES = ("general", "character", "copyright", "artist", "meta")

_RATING_NAMES = {"safe": "general"} | {rating: rating for rating in RATINGS} | {rating[0]: rating for rating in RATINGS}


def parse(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Columns of METADATA (only those that are given), and what was wrong with the rest."""
    columns: dict[str, Any] = {}
    errors: list[str] = []
    for column, (keys, convert) in _COLUMNS.items():
        for key in keys:
            value = raw.get(key)
            if column in columns or value is None or value in ("", [], {}):
                continue
            try:
                columns[column] = convert(value)
            except (ValueError, OverflowError, OSError) as error:
                errors.append(f"{key}: {error}")
    tags = _tags(raw, errors)
    return columns | ({"tags": tags} if tags else {}), errors


def clean(text: str) -> str:
    """Text that can be stored: JSON may smuggle in halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().strip()


def split_tags(text: str) -> list[str]:
    """Cut a line of tags at commas and line breaks, else at semicolons, else at blanks.

    A semicolon separates only behind a tag: `;d` and `;)` are tags of their own.
    """
    for separator in (r"[,\n]", r"(?<=[^\s;]);"):
        parts = re.split(separator, text.strip())
        if len(parts) > 1:
            return parts
    return text.split()


def _tags(raw: Mapping[str, Any], errors: list[str]) -> list[dict[str, str]]:
    """The tags in the order in which they are given; categories from the keys that know them."""
    categories: dict[str, str] = {}
    names: dict[str, None] = {}
    for key, category, value in _tag_values(raw):
        try:
            given = [tag_name(clean(text)) for text in _names(value, split=key not in ("artist", "artists"))]
        except ValueError as error:
            errors.append(f"{key}: {error}")
            continue
        for name in given:
            names[name] = None
            if category != "general":
                categories.setdefault(name, category)
    names.pop("", None)
    return [{"name": name, "category": categories.get(name, "general"), "origin": "source"} for name in names]


def _tag_values(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(key, category, value) of everything that holds tags."""
    for key in ("tags", "tag_string"):
        value = raw.get(key)
        if isinstance(value, Mapping):  # e621: names by category
            yield from ((key, name if name in CATEGORIES else "general", names) for name, names in value.items())
        else:
            yield key, "general", value
    for category in CATEGORIES:
        yield from ((key, category, raw.get(key)) for key in (f"tag_string_{category}", f"tags_{category}"))
    yield from ((key, "artist", raw.get(key)) for key in ("artist", "artists"))


def _names(value: Any, split: bool) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return split_tags(value) if split else [value]
    if isinstance(value, list):
        wrong = [item for item in value if not isinstance(item, str)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not a tag")
        return value
    raise ValueError(f"{value!r} is neither text nor a list")


def _text(value: Any) -> str:
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str) or not clean(value):
        raise ValueError(f"{value!r} is not text")
    return clean(value)


def _rating(value: Any) -> str:
    rating = _RATING_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if rating is None:
        raise ValueError(f"{value!r} is not one of {', '.join(_RATING_NAMES)}")
    return rating


def _number(value: Any) -> float:
    if isinstance(value, dict):  # e621: {"up": 5, "down": 0, "total": 5}
        value = value.get("total")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _count(value: Any) -> int:
    number = _number(value)
    if not 0 <= number < 2**63:
        raise ValueError(f"{value!r} is not a count")
    return int(number)


def _time(value: Any) -> datetime:
    """ISO 8601 or seconds since 1970; without a zone it is UTC."""
    if isinstance(value, str) and not value.strip().isdigit():
        time = datetime.fromisoformat(value.strip())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return datetime.fromtimestamp(_number(value), UTC)


def _identifier(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not an identifier")
    return clean(str(value))


_COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "caption": (("caption", "description", "text"), _text),
    "rating": (("rating",), _rating),
    "score": (("score",), _number),
    "favorites": (("fav_count", "favorites", "favorite_count"), _count),
    "created_at": (("created_at", "date"), _time),
    "source_url": (("source_url", "source", "sources", "url"), _text),
    "post_id": (("post_id", "id"), _identifier),
    "parent_id": (("parent_id", "parent"), _identifier),
}
"""The keys in which each column is looked for, in order, and what makes a value of it."""
