"""Whether a text of a model may become a caption.

Models that describe pictures fail in known ways: they repeat themselves, refuse, stop in the middle of a sentence, talk
about the task, write lists, name the wrong character. What can be mended is (`clean`), the rest has a reason.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from caption.prompts import Known
from caption.write import one_line, spell

SHORTEST, LONGEST = 4, 4000
"""Words that a text must have, and characters that it may have."""

REPEATS = 3
"""So often in a row is a loop; sentences of MANY words must not come back at all."""
MANY = 5
PERIOD = 30
"""Words of the longest loop."""
LOOP_WORDS = 6
"""A loop covers at least so many words: "knock, knock, knock" is none."""

MOST_WORDS = 6
"""Words of the longest name that is looked for."""

_SUBJECT = (
    r"(?:image|picture|illustration|artwork|drawing|photo(?:graph)?|painting|scene|digital art(?:work|\s?ing)?|"
    r"anime(?:-style)?\s(?:image|illustration|artwork|drawing|picture))"
)
_SHOWS = (
    r"(?:shows|depicts|features|portrays|presents|displays|captures|showcases|illustrates|contains|"
    r"is\s(?:showing|depicting|of)|is(?=\san?\s))"
)
_META = (
    re.compile(rf"(?:in\s)?(?:this|the)\s{_SUBJECT},\s", re.IGNORECASE),
    re.compile(rf"(?:this|the)\s{_SUBJECT}\s{_SHOWS}\s", re.IGNORECASE),
    re.compile(r"(?:caption|description|answer|short|long)\s?:\s+", re.IGNORECASE),
    re.compile(r"(?:sure|certainly|of course)[,!.]\s+(?:here(?:'s|\sis)\s[^:\n]{,80}:\s+)?", re.IGNORECASE),
    re.compile(r"here(?:'s|\sis)\s[^:\n]{,80}:\s+", re.IGNORECASE),
)
"""How models begin when they should begin with the picture."""

_LEFT_OVER = re.compile(rf"^(?:(?:this|the)\s{_SUBJECT}\s{_SHOWS}\s|(?:that|how|what)\s)", re.IGNORECASE)
"""What `clean` could not take away, or left behind."""
_CHAT = re.compile(
    r"\b(?:let me know if|would you like|feel free to)\b|"
    r"\b(?:the|these|given|provided|listed)\s(?:given\s|provided\s|listed\s)?(?:tags|facts)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(?:^|[.!?:]\s+)(?:unfortunately,?\s|(?:i'?m\s|i\sam\s)?(?:very\s)?sorry,?\s(?:but\s)?)?"
    r"i(?:\s(?:can(?:not|'t)|am\s(?:sorry|unable|not able)|do not have|won't|will not|apologi[sz]e)|"
    r"'m\s(?:sorry|unable|not able|an ai))\b|\bas an ai\b|\bas a(?:\slarge)? language model\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'"[^"]*"|「[^」]*」|『[^』]*』')
_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_MARKUP = re.compile(
    r"^\s*(?:#{1,6}\s|[-*•]\s|\d{1,2}[.)]\s)|\*\*|```|</?[a-z_]\w*/?>|<\|", re.MULTILINE | re.IGNORECASE
)
_STUTTER = re.compile(r"(\S.{0,9}?)\1{11,}", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])[\"']?\s+")
_WORD = re.compile(r"\w+(?:['-]\w+)*")
_END = re.compile(r"[.!?…][\"')\]」』]*$")
_CALLED = re.compile(r"\b(?:named|called|known as|identified as)\s[\"']?(\w+)\b")


class Problem(NamedTuple):
    """Why a text is not used."""

    reason: str
    """A stable word: empty, too_short, too_long, truncated, loop, refusal, meta, markup, language, wrong_name."""
    detail: str


class Names:
    """The characters of a corpus, to find those that a picture does not have.

    A name of one word (saber, rose) may be any word of a sentence: it counts behind "named" or "called" alone.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Names in booru spelling; what stands in brackets behind a name (a series, an outfit) is not looked for."""
        words = {_key(_words(spell(_bare(name)))) for name in names}
        self._names = {name for name in words if 0 < len(name) <= MOST_WORDS}

    def strange(self, text: str, known: Known) -> str | None:
        """A name in `text` of a character that is not in the picture's tags, nor to be read in it.

        Tags that there are none of say nothing about who is in a picture.
        """
        own = [frozenset(_words(spell(name))) for group in _said(known) for name in group]
        if not own:
            return None
        read = frozenset(_words(known["text"] or ""))
        for written, words in self._candidates(text):
            if _key(words) in self._names and not any(said.issuperset(words) for said in (*own, read)):
                return written
        return None

    def _candidates(self, text: str) -> Iterator[tuple[str, Sequence[str]]]:
        """Everything in a text that may be a name: runs of words of which the first and the last are capitalised."""
        for found in _CALLED.finditer(text):
            if _is_capital(found[1]):
                yield found[1], _words(found[1])
        for sentence in re.split(r"[.!?;:,()\"\n]", text):
            written = _WORD.findall(sentence)
            for start, first in enumerate(written):
                if _is_capital(first):
                    yield from _runs(written[start : start + MOST_WORDS])


def _runs(written: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    for length in range(2, len(written) + 1):
        if _is_capital(written[length - 1]):
            run = " ".join(written[:length])
            yield run, _words(run)


def _said(known: Known) -> tuple[list[str], ...]:
    return known["characters"], known["copyright"], known["artist"], known["general"]


def _bare(name: str) -> str:
    return re.sub(r"_\([^()]*\)", "", name)


def _is_capital(word: str) -> bool:
    return not word[0].islower() and not word[0].isdigit()


def _words(text: str) -> list[str]:
    return [re.sub(r"'s$", "", word) for word in _WORD.findall(text.lower())]


def _key(words: Sequence[str]) -> tuple[str, ...]:
    """The same whichever of the names comes first: Hatsune Miku, Miku Hatsune."""
    return tuple(sorted(words))


NOBODY = Names([])


def clean(text: str) -> str:
    """Without what surrounds the description: quotation marks around it all, words about the task before it.

    Quotation marks become straight, as in all other captions.
    """
    text = _unquoted(text.translate(_STRAIGHT).strip())
    for _ in range(3):  # "Sure! Here is the caption: This image shows a frog."
        for pattern in _META:
            if (found := pattern.match(text)) and _is_sentence(text[found.end() :]):
                text = _capitalised(_unquoted(text[found.end() :].strip()))
    return text


def _unquoted(text: str) -> str:
    inside = text[1:-1]
    return inside.strip() if text == f'"{inside}"' and '"' not in inside else text


def _is_sentence(rest: str) -> bool:
    return len(_words(rest)) >= SHORTEST and not re.match(r"(?:that|how|what|us)\b", rest.strip(), re.IGNORECASE)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def problem(text: str, finish: str, known: Known, names: Names = NOBODY) -> Problem | None:
    """What is wrong with a cleaned text, or None; `finish` is why the model stopped: stop, length, content_filter."""
    if finish == "content_filter":
        return Problem("refusal", "the server filtered it")
    if not text:
        return Problem("empty", "there is no text")
    said = _QUOTED.sub('""', text)
    for reason, found in (
        ("refusal", _match(_REFUSAL, said)),
        ("loop", _loop(text)),
        ("language", _foreign(said)),
        ("markup", _markup(text)),
        ("meta", _match(_CHAT, said) or _match(_LEFT_OVER, said)),
        ("truncated", _cut_off(text, finish)),
        ("too_short", f"fewer than {SHORTEST} words" if len(_words(text)) < SHORTEST else ""),
        ("too_long", f"{len(text)} characters, more than {LONGEST}" if len(text) > LONGEST else ""),
        ("wrong_name", names.strange(text, known)),
    ):
        if found:
            return Problem(reason, one_line(found)[:200])
    return None


def _match(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[0] if found else ""


def _markup(text: str) -> str:
    if text[0] in "{[" and text[-1] in "}]":
        return text[:40]
    return _match(_MARKUP, text)


def _cut_off(text: str, finish: str) -> str:
    if finish == "length":
        return "it reached max_tokens"
    return "" if _END.search(text) else f"does not end like a sentence: {text[-40:]}"


def _foreign(text: str) -> str:
    """Whether most letters are of other alphabets than the Latin one, as in Chinese."""
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum(letter < "\u0250" for letter in letters)
    return f"{latin} of {len(letters)} letters are Latin" if 2 * latin < len(letters) else ""


def _loop(text: str) -> str:
    """What a text repeats: words over and over, a sentence, or letters."""
    words = _words(text)
    for period in range(1, min(PERIOD, len(words) // REPEATS) + 1):
        if end := _repeats(words, period):
            return " ".join(words[end - period : end])
    sentences = [" ".join(found) for found in map(_words, _SENTENCE.split(text)) if len(found) >= MANY]
    seen: set[str] = set()
    for sentence in sentences:
        if sentence in seen:
            return sentence
        seen.add(sentence)
    return _match(_STUTTER, text)[:40]


def _repeats(words: Sequence[str], period: int) -> int:
    """Where the words begin to be those of `period` words ago, REPEATS times; 0 if they never are."""
    needed = max((REPEATS - 1) * period, LOOP_WORDS - period)
    same = 0
    for at in range(period, len(words)):
        same = same + 1 if words[at] == words[at - period] else 0
        if same >= needed:
            return at + 1
    return 0
