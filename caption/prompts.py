"""What a model is asked about a picture: templates, filled with what the tags say of it."""

import hashlib
import string
from collections.abc import Mapping, Sequence
from typing import TypedDict

from caption.write import COUNT, LONGEST_TEXT, one_line, spell


class Known(TypedDict):
    """What is known of a picture before it is described. Names are in booru spelling."""

    characters: list[str]
    copyright: list[str]
    artist: list[str]
    general: list[str]
    rating: str | None
    text: str | None
    """What can be read in the picture."""


PLACEHOLDERS = tuple(Known.__annotations__)
"""What may stand between braces in a template."""

_GROUNDING = """\
These facts about it are right, though not complete; do not mention that you were given any.
Characters: {characters}
Series: {copyright}
Seen in it: {general}
It can be read in it: {text}"""

STYLES: Mapping[str, str] = {
    "short": f"""\
Describe this illustration in one sentence of at most 30 words: who or what is in it, and what is going on.
{_GROUNDING}
Call the characters by their names. Begin with what is seen, not with words like "The image shows". Write plain text
in English, no list.""",
    "long": f"""\
Describe this illustration in one paragraph of 80 to 150 words: who or what is in it, looks and clothes, expression
and pose, what is going on, where things are, the background, light and colours, how it is drawn and framed.
{_GROUNDING}
Call the characters by their names. Say only what can be seen, without guesses and judgements. Begin with what is
seen, not with words like "The image shows". Write plain text in English, no list.""",
}
"""The styles that are made unless others are set."""


def check_template(template: str) -> str:
    """The template itself. Raises ValueError where it cannot be filled."""
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    for name in _placeholders(template):
        if name not in PLACEHOLDERS:
            raise ValueError(f"unknown placeholder {{{name}}}; there are: {known} (write {{{{ and }}}} for braces)")
    if not template.strip():
        raise ValueError(f"is empty; write what the model is asked, with any of {known}")
    return template


def _placeholders(template: str) -> list[str]:
    """The names between braces; what follows a name counts as a part of it, so that it is refused."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"is no template ({error}); write {{{{ and }}}} for braces") from None
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{how}" if how else "")
        for _, name, how, conversion in parts
        if name is not None
    ]


def fill(template: str, known: Known) -> str:
    """What the model is asked about one picture. A line about things of which nothing is known is left out."""
    values = _values(known)
    lines = []
    for line in template.split("\n"):
        names = _placeholders(line)
        if not names or any(values[name] for name in names):
            lines.append(line.format_map(values))
    return "\n".join(lines).strip()


def _values(known: Known) -> dict[str, str]:
    general = sorted(known["general"], key=lambda name: COUNT.fullmatch(name) is None)  # Who is there comes first.
    text = one_line(known["text"])
    return {
        "characters": _line(known["characters"]),
        "copyright": _line(known["copyright"]),
        "artist": _line(known["artist"]),
        "general": _line(general),
        "rating": known["rating"] or "",
        "text": text if len(text) <= LONGEST_TEXT else "",
    }


def _line(names: Sequence[str]) -> str:
    return ", ".join(map(spell, names))


def seed(image_id: str, style: str, attempt: int) -> int:
    """Of an attempt at a text: 0 to 2**31 - 1, the same on every machine."""
    digest = hashlib.sha256(f"{image_id} {style} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
