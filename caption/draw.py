"""What chance decides about a caption: which tags it has, and in which order. The same on every machine, forever.

The numbers are a function of seed, picture, variant and copy alone: another picture, another variant or more copies
change nothing of a caption.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter, itemgetter

from caption.variants import Variant
from caption.write import SAID, Tag, in_xml, spell

LEVELS = ((0.30, 0.3, 10), (0.20, 0.4, 15), (0.10, 0.0, 6), (0.04, 0.0, 4))
"""Multi-level dropout of Illustrious (arXiv 2409.19946, section 3.2): with this chance, this share of the tags stays,
but no fewer than this number; else all. We count only those that may be dropped."""

SPAN = 2**64


def numbers(seed: int, image_id: str, variant: str, copy: int, count: int) -> tuple[int, ...]:
    """`count` integers below 2**64: SHAKE128 (FIPS 202) of the four, cut into little-endian words."""
    key = f"{seed}\0{variant}\0{copy}\0{image_id}".encode()
    return struct.unpack(f"<{count}Q", hashlib.shake_128(key).digest(8 * count))


def draw(tags: Sequence[Tag], variant: Variant, seed: int, image_id: str, copy: int) -> list[Tag]:
    """The tags of a caption, in the order of their groups. At least one stays that is not merely said of the picture.

    Each tag draws one number: the lowest are dropped, the others stand in their order where they are shuffled. One is
    enough: which numbers are the lowest says nothing about the order of the rest.
    """
    level, quality, *drawn = numbers(seed, image_id, variant.name, copy, 2 + len(tags))
    stay = list(zip(drawn, tags, strict=True))
    if variant.shuffle:
        stay.sort(key=itemgetter(0))
    if variant.dropout:
        limit = _limit(stay, level, variant.dropout)
        last = next(pair for pair in reversed(stay) if pair[1].group not in SAID)
        stay = [pair for pair in stay if pair[0] >= limit or pair[1].fixed]
        if all(tag.group in SAID for _, tag in stay):
            stay.append(last)
    if quality < variant.quality_dropout * SPAN:
        stay = [pair for pair in stay if pair[1].group != "quality"]
    return sorted([tag for _, tag in stay], key=attrgetter("rank"))


def rename(
    tags: Sequence[Tag], variant: Variant, seed: int, image_id: str, copy: int, names: Mapping[str, Sequence[str]]
) -> list[Tag]:
    """The tags of a caption, some under another of their `names` (in booru spelling, by name), in the same order.

    Each has the chance `variant.other_names`, decided by one number, which also chooses among several names.
    """
    drawn = numbers(seed, image_id, f"{variant.name}\0names", copy, len(tags))
    limit = variant.other_names * SPAN
    return [
        _renamed(tag, others[number % len(others)]) if number < limit and (others := names.get(tag.name)) else tag
        for number, tag in zip(drawn, tags, strict=True)
    ]


@lru_cache(maxsize=1 << 18)
def _renamed(tag: Tag, name: str) -> Tag:
    return replace(tag, text=spell(name), xml=in_xml(spell(name)))


def _limit(drawn: Sequence[tuple[int, Tag]], level: int, dropout: float | str) -> float:
    """The number from which on a tag stays."""
    if not isinstance(dropout, str):
        return dropout * SPAN
    free = sorted([number for number, tag in drawn if not tag.fixed], reverse=True)
    stay = staying(level / SPAN, len(free))
    return free[stay - 1] if stay else SPAN


def staying(chance: float, count: int) -> int:
    """How many of `count` tags stay at the level that a number in [0, 1) falls into."""
    for share, part, least in LEVELS:
        if chance < share:
            return min(count, max(round(part * count), least))
        chance -= share
    return count
