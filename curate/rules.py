"""Rules of the stage `filter`: conditions in SQL, each with a reason and the numbers behind it."""

from collections.abc import Sequence
from typing import NamedTuple


class Rule(NamedTuple):
    """A reason to drop a picture: SQL that is true for it, and SQL for the numbers behind it."""

    reason: str
    fails: str
    detail: str


VERDICT = "STRUCT(reason VARCHAR, detail VARCHAR)"
"""What a rule says of a picture that fails it; null while none has failed."""


def judge(asked: Sequence[Rule]) -> str:
    """SQL for the verdict: the one there is, else that of the first rule that a picture fails."""
    cases = " ".join(
        f"WHEN {rule.fails} THEN {{'reason': '{rule.reason}', 'detail': json_object({rule.detail})}}" for rule in asked
    )
    return f"CASE WHEN verdict IS NOT NULL THEN verdict {cases} END::{VERDICT}"
