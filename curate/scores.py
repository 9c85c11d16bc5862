"""Conditions of the stage `filter` on the scores of the stage `aesthetic`.

A percentile is the share of a group that scores lower, plus half of those that score the same, the picture itself
included: it does not depend on how ties are ordered, and a picture alone is at 0.5. The group are the pictures that
no rule before drops, whatever the other conditions say of them: the order of conditions does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow.parquet as pq
from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from curate.rules import Rule
from shared.errors import UserError
from shared.settings import Settings


def _alone(value: Any) -> Any:
    """The name of one score stands for the score with weight 1."""
    return {value: 1.0} if isinstance(value, str) else value


def _by_name(weights: Mapping[str, float]) -> Mapping[str, float]:
    """Put scores in order: their sum depends on it, and the fingerprint does not see it."""
    return dict(sorted(weights.items()))


class Condition(Settings):
    """What a picture must score. One of `min` and `min_percentile` is given."""

    of: Annotated[Mapping[str, PositiveFloat], Field(min_length=1), BeforeValidator(_alone), AfterValidator(_by_name)]
    """A score, or scores with their weights."""
    min: float | None = None
    """Least score; of several: least weighted sum."""
    min_percentile: float | None = Field(default=None, ge=0, le=1)
    """Least percentile. Several scores are mixed as the weighted sum of their percentiles, which is ranked again."""
    within: tuple[Literal["rating", "year"], ...] = ()
    """What pictures have in common that a percentile compares. Those without a rating or a date have that in common."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.min is None) == (self.min_percentile is None):
            raise ValueError("give one of min and min_percentile; two conditions may name the same score")
        if self.within and self.min_percentile is None:
            raise ValueError("within is for min_percentile: a least score is the same for all pictures")
        return self


def check(conditions: Sequence[Condition], known: Sequence[str] | None) -> None:
    """Raise UserError where a score is not among the `known` ones; None: nothing computes scores."""
    if conditions and known is None:
        raise UserError("filter.scores: needs the stage curate.aesthetic before curate.filter in the pipeline")
    for name in _names(conditions):
        if name not in (known or ()):
            raise UserError(f"filter.scores: no score {name!r}; there are: {', '.join(known or ())}")


def scores_in(tables: Mapping[str, Path]) -> list[str] | None:
    """Names of the scores in the table of the stage `aesthetic`, if there is one."""
    if "aesthetic" not in tables:
        return None
    part = next(tables["aesthetic"].glob("part-*.parquet"))
    return [score.name for score in pq.read_schema(part).field("scores").type]


def unscored(conditions: Sequence[Condition]) -> list[Rule]:
    """The rule that a picture has every score that a condition names."""
    if not conditions:
        return []
    missing = ", ".join(f"CASE WHEN {_score(name)} IS NULL THEN {_text(name)} END" for name in _names(conditions))
    missing = f"[name FOR name IN [{missing}] IF name IS NOT NULL]"
    return [Rule("unscored", f"len({missing}) > 0", f"'missing', {missing}")]


def compared(conditions: Sequence[Condition], judged: str) -> str:
    """SQL for the rows of `judged` (verdict, rating, year, scores) with the numbers that `score_rules` look at.

    Of condition N: value_N is the score or the weighted sum, place_N the percentile, and peers_N the number of
    pictures that it compares.
    """
    values = "".join(f", {_sum(condition, _score)} AS value_{n}" for n, condition in enumerate(conditions))
    query = f"SELECT *{values} FROM {judged}"
    for n, condition in enumerate(conditions):
        if condition.min_percentile is not None:
            query = _placed(query, n, condition)
    return query


def _placed(query: str, n: int, condition: Condition) -> str:
    group = ", ".join(["verdict IS NULL", *condition.within])
    value = f"value_{n}"
    if len(condition.of) > 1:
        value = f"mixed_{n}"
        mixed = _sum(condition, lambda name: _percentile(_score(name), group))
        query = f"SELECT *, {mixed} AS {value} FROM ({query})"
    peers = f"count(*) OVER (PARTITION BY {group})"
    return f"SELECT *, {_percentile(value, group)} AS place_{n}, {peers} AS peers_{n} FROM ({query})"


def _percentile(value: str, group: str) -> str:
    """SQL for the percentile of a value, (lower + equal / 2) / all, rounded once."""
    window = f"(PARTITION BY {group} ORDER BY {value})"
    lower, not_higher = f"rank() OVER {window} - 1", f"count(*) OVER {window}"  # By default, a frame ends with ties.
    return f"({lower} + {not_higher}) / (2 * count(*) OVER (PARTITION BY {group}))"


def score_rules(conditions: Sequence[Condition]) -> list[Rule]:
    """A rule for each condition, about the rows of `compared`."""
    return [_rule(n, condition) for n, condition in enumerate(conditions)]


def _rule(n: int, condition: Condition) -> Rule:
    scores = ", ".join(f"{_text(name)}, {_score(name)}" for name in condition.of)
    scores = f"'scores', json_object({scores})"
    if condition.min_percentile is None:
        assert condition.min is not None
        least = _number(condition.min)
        return Rule("aesthetic", f"value_{n} < {least}", f"{scores}, 'value', value_{n}, 'min', {least}")
    least = _number(condition.min_percentile)
    group = ", ".join(f"'{column}', {column}" for column in condition.within)
    detail = f"'percentile', place_{n}, 'min_percentile', {least}, 'within', json_object({group}), 'of', peers_{n}"
    return Rule("aesthetic", f"place_{n} < {least}", f"{scores}, {detail}")


def _names(conditions: Sequence[Condition]) -> list[str]:
    return sorted({name for condition in conditions for name in condition.of})


def _sum(condition: Condition, term: Callable[[str], str]) -> str:
    """SQL for the weighted sum of what `term` gives for each score."""
    return " + ".join(f"{_number(weight)} * {term(name)}" for name, weight in condition.of.items())


def _score(name: str) -> str:
    return f"scores[{_text(name)}]"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _number(value: float) -> str:
    """A double to the last bit: a plain 0.3 would be a DECIMAL."""
    return f"'{value!r}'::DOUBLE"
