"""Tags that count persons: 1girl, 2boys, 6+girls, multiple_girls."""

import re
from collections.abc import Iterable

Persons = tuple[str, str]
"""Kind (girl, boy, other), and number as it is written."""

PERSONS = r"(\d+\+?|multiple_)(girl|boy|other)s?"
"""A tag that counts: the number and the kind, in booru spelling."""

_PERSONS = re.compile(PERSONS)


def persons(name: str) -> Persons | None:
    """What a tag counts, None if it does not."""
    found = _PERSONS.fullmatch(name)
    return (found[2], found[1]) if found else None


def contradicts(one: Persons, said: Iterable[Persons]) -> bool:
    """Whether a number of persons cannot be, by what is said of their kind; `multiple` is any number but 1."""
    kind, number = one
    return any(kind == other and not _agree(number, there) for other, there in said)


def _agree(number: str, other: str) -> bool:
    return number == other or ("multiple_" in (number, other) and "1" not in (number, other))
