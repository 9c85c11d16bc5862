"""From tags and sentences to the text of a caption."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from xml.sax.saxutils import escape

from caption import sections
from caption.persons import PERSONS
from caption.variants import GROUPS, ORDERS, Order

COUNT = re.compile(rf"{PERSONS}|solo|no_humans")
"""Tags that say who is there. They come first."""

FIXED = frozenset({"count", "character", "rating", "quality", "text"})
"""Groups that dropout leaves alone. Illustrious never drops what must stay controllable (arXiv 2409.19946, section 3.2:
provocative tags, and by chance names); the quality has a chance of its own."""

SAID = frozenset({"rating", "text", "quality", "year"})
"""Groups of what is said of a picture beside its tags."""

KAOMOJI = frozenset(
    {"0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^"}
    | {"o_o", "u_u", "x_x", "|_|", "||_||"}
)
"""Tags in which the underscore is a mouth, as in the WD taggers' own scripts."""

LONGEST_TEXT = 200
"""Characters. More is a page, which nobody asks for: it is not mentioned."""

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, escaped or not (XML 1.0, production 2)."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag as it is written."""

    name: str
    group: str
    """One of GROUPS."""
    rank: int
    """Place of the group in GROUPS."""
    text: str
    xml: str
    section: str
    """Where it stands in XML, if it is general."""
    fixed: bool
    """Never dropped."""


@lru_cache(maxsize=1 << 18)
def make_tag(name: str, category: str, fixed: bool = False) -> Tag | None:
    """A tag in booru spelling as it is written; None if it is not about the picture (`meta`: highres, commentary)."""
    group = "count" if COUNT.fullmatch(name) else category
    if group not in GROUPS:
        return None
    text = spell(name)
    rank = GROUPS.index(group)
    return Tag(name, group, rank, text, in_xml(text), sections.section(name), fixed or group in FIXED)


def make_text(text: str | None) -> Tag | None:
    """Legible text as a caption mentions it; None if there is none, or a page of it."""
    line = one_line(text).replace('"', "'")
    if not line or len(line) > LONGEST_TEXT:
        return None
    return Tag("text", "text", GROUPS.index("text"), f'text "{line}"', in_xml(line), "", True)


def spell(name: str) -> str:
    """A tag as people write it: blanks for underscores."""
    return name if name in KAOMOJI else name.replace("_", " ")


def one_line(text: str | None) -> str:
    """Text without line breaks and double blanks."""
    return " ".join((text or "").split())


def in_xml(text: str) -> str:
    """Text as it may stand between two XML tags."""
    return escape(NO_XML.sub("", text))


def write(order: str | None, tags: Iterable[Tag], sentences: str) -> str:
    """A caption of tags, sentences or both. Without an order, the only tag is the text in the picture."""
    if order == "xml":
        return xml(tags, sentences)
    if order is None:
        return " ".join([sentences, *(tag.text for tag in tags)])
    written = line(tags, ORDERS[order])
    return f"{written}. {sentences}" if sentences else written


def line(tags: Iterable[Tag], order: Order) -> str:
    """Tags, given in the order of GROUPS, in the order of a recipe, within each group as they are given."""
    if order.groups is GROUPS:
        return ", ".join([tag.text for tag in tags])
    groups: dict[str, list[str]] = {group: [] for group in order.groups}
    for tag in tags:
        groups[tag.group].append(tag.text)
    groups["rating"] = [order.ratings.get(rating, rating) for rating in groups["rating"]]
    return ", ".join([text for texts in groups.values() for text in texts])


def xml(tags: Iterable[Tag], sentences: str) -> str:
    """Tags grouped as NewBie-image is prompted (huggingface.co/NewBie-AI/NewBie-image-Exp0.1).

    Who is alone has all that is personal; of several characters, tags do not say who has what: they are named only.
    Elements for series, rating, year, text and sentences are ours, and so are the blanks in tags.
    """
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    places: dict[str, list[str]] = {place: [] for place in (*sections.PERSONAL, *sections.GENERAL)}
    for tag in tags:
        (places[tag.section] if tag.group == "general" else groups[tag.group]).append(tag.xml)
    names, people = groups["character"], sections.people(groups["count"])
    gender = [f"1{people[0]}"] if len(set(people)) == 1 and people[0] else []
    characters = [{"n": [name], "gender": gender} for name in names]
    if len(people) == 1:
        characters = [{"n": names, "gender": gender} | {place: places.pop(place) for place in sections.PERSONAL}]
    general = {"count": groups["count"], "series": groups["copyright"], "artists": groups["artist"]}
    general |= {"rating": groups["rating"], **places}
    general |= {"quality": groups["quality"], "year": groups["year"], "text": groups["text"]}
    blocks = [_block(f"character_{number}", parts) for number, parts in enumerate(characters, 1)]
    caption = [f"<caption>{in_xml(sentences)}</caption>"] if sentences else []
    return "\n".join([*blocks, _block("general_tags", general), *caption])


def _block(name: str, parts: dict[str, list[str]]) -> str:
    inside = [f"<{part}>{', '.join(texts)}</{part}>" for part, texts in parts.items() if texts]
    return "\n".join([f"<{name}>", *inside, f"</{name}>"])
