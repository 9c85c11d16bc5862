"""What is known about tags: categories, aliases and implications, from files that others publish.

What contradicts itself in them never decides by chance, and is reported:

    not active     an alias or implication that was deleted or not approved  ignored
    nothing        an alias or implication without a name, or to itself     ignored
    tag            an alias of a name that is a tag of its own              ignored: the tag stays
    safety         an alias that would hide a tag of the safety rule        ignored
    ambiguous      an alias of several tags                                 the most frequent, then the first by name
    alias cycle    an alias that leads back to itself                       ignored
    implied cycle  an implication that leads back to itself                 ignored
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow.parquet as pq

from caption.graph import Graph, closure, cycles, without
from shared.errors import UserError
from shared.safety import MINOR_TAGS
from shared.spelling import tag_name

CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"}
"""Danbooru's numbers."""

COLUMNS = ("antecedent_name", "consequent_name", "status")
"""Of a dump of aliases or implications, as boorus publish them."""

Pairs = Iterable[tuple[str, str]]
"""Antecedent and consequent."""


class Entry(NamedTuple):
    """A tag that has a row of its own."""

    category: str
    pictures: int = 0


class Problem(NamedTuple):
    """What was wrong with a statement."""

    kind: Literal["not active", "nothing", "tag", "safety", "ambiguous", "alias cycle", "implied cycle"]
    name: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Canonical names and what they mean. Empty, it knows how to spell."""

    tags: Mapping[str, Entry] = field(default_factory=dict)
    """Tags with a row of their own."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """The canonical name of every other name: no value is a key."""
    implied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """All tags that follow from a tag, directly or not, by name. Canonical; no tag follows from itself."""
    problems: tuple[Problem, ...] = ()

    def resolve(self, text: str) -> str:
        """The canonical name of a tag in any spelling."""
        name = tag_name(text)
        return self.aliases.get(name, name)

    def report(self) -> Iterator[str]:
        """What it holds, and what was wrong with the files."""
        if self.tags or self.aliases or self.implied:
            found = f"{len(self.tags):,} tags, {len(self.aliases):,} aliases"
            yield f"  vocabulary: {found}, {len(self.implied):,} tags that imply others"
        for kind, count in sorted(Counter(problem.kind for problem in self.problems).items()):
            first = next(problem for problem in self.problems if problem.kind == kind)
            others = ", ".join(first.others) or "nothing"
            yield f"  ignored or decided in it: {count:,} x {kind}, for example {first.name}: {others}"


def build(tags: Mapping[str, Entry], aliases: Pairs, implications: Pairs) -> Vocabulary:
    """Follow all chains. The order of what is given does not matter."""
    problems: list[Problem] = []
    targets = _aliases(tags, aliases, problems)
    implied = _implied(targets, implications, problems)
    return Vocabulary(tags, targets, implied, tuple(problems))


def _aliases(tags: Mapping[str, Entry], pairs: Pairs, problems: list[Problem]) -> dict[str, str]:
    wanted: dict[str, set[str]] = defaultdict(set)
    for name, target in sorted(set(pairs)):
        if not name or target in ("", name):
            problems.append(Problem("nothing", name, (target,)))
        elif name in tags:
            problems.append(Problem("tag", name, (target,)))
        elif name in MINOR_TAGS and target not in MINOR_TAGS:
            problems.append(Problem("safety", name, (target,)))
        else:
            wanted[name].add(target)
    chosen: dict[str, frozenset[str]] = {}
    for name, options in wanted.items():
        ranked = sorted(
            options,
            key=lambda option: (option not in MINOR_TAGS, -tags[option].pictures if option in tags else 1, option),
        )
        chosen[name] = frozenset(ranked[:1])
        if len(ranked) > 1:
            problems.append(Problem("ambiguous", name, tuple(ranked)))
    graph = _broken(chosen, "alias cycle", problems)
    return {name: next(end for end in ends if not graph.get(end)) for name, ends in closure(graph).items() if ends}


def _implied(aliases: Mapping[str, str], pairs: Pairs, problems: list[Problem]) -> dict[str, tuple[str, ...]]:
    direct: dict[str, set[str]] = defaultdict(set)
    for given in sorted(set(pairs)):
        name, target = (aliases.get(one, one) for one in given)
        if not name or target in ("", name):
            problems.append(Problem("nothing", given[0], (given[1],)))
        else:
            direct[name].add(target)
    graph = _broken({name: frozenset(targets) for name, targets in direct.items()}, "implied cycle", problems)
    return {name: tuple(sorted(targets)) for name, targets in closure(graph).items() if targets}


def _broken(graph: Graph, kind: Literal["alias cycle", "implied cycle"], problems: list[Problem]) -> Graph:
    """The graph without its cycles."""
    edges = cycles(graph)
    problems += [Problem(kind, name, (target,)) for name, target in sorted(edges)]
    return without(graph, edges)


def read_vocabulary(tags: Path | None, aliases: Path | None, implications: Path | None) -> Vocabulary:
    """The vocabulary of files; each may be missing. Raises UserError where one cannot be used."""
    entries, own = read_tags(tags) if tags else ({}, [])
    further, gone = read_pairs(aliases) if aliases else ([], [])
    implied, never = read_pairs(implications) if implications else ([], [])
    found = build(entries, [*own, *further], implied)
    inactive = (Problem("not active", name, (target,)) for name, target in sorted({*gone, *never}))
    return replace(found, problems=(*inactive, *found.problems))


def read_tags(path: Path) -> tuple[dict[str, Entry], list[tuple[str, str]]]:
    """Tags and aliases of a list as autocomplete tools have it: name, category number, count, "alias,alias"."""
    entries: dict[str, Entry] = {}
    aliases: list[tuple[str, str]] = []
    row: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.reader(file):
                text, category, count, others = row
                name = tag_name(text)
                entries[name] = Entry(CATEGORIES[category], int(count))
                aliases += [(tag_name(alias), name) for alias in _split(others)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a list of tags") from None
    except (ValueError, KeyError, csv.Error):
        known = ", ".join(f"{number} {name}" for number, name in CATEGORIES.items())
        raise UserError(
            f'{path}: {row!r:.80}: a row is name, category, count, "alias,alias"; categories are {known}'
        ) from None
    return entries, aliases


def _split(aliases: str) -> list[str]:
    """Cut at commas, but for those inside an alias: no alias starts with an underscore."""
    return [alias for alias in re.split(",(?!_)", aliases) if alias]


def read_pairs(path: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The aliases or implications of a dump (.jsonl, .csv with a header, or .parquet): active ones, and all others."""
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise UserError(f"{path}: a dump of aliases or implications is one of .csv, .jsonl, .parquet")
    active: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    row: Any = None
    try:
        for row in _rows(path):
            name, target, status = (row[column] for column in COLUMNS)
            pairs = active if status == "active" else others
            pairs.append((tag_name(name or ""), tag_name(target or "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path}: {row!r:.80}: {error!r}; a row has {', '.join(COLUMNS)}") from None
    return active, others


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        yield from pq.read_table(path).to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
        else:
            yield from (json.loads(line) for line in file if line.strip())
