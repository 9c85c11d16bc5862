"""The spelling of tags: one for all sources, taggers and vocabularies."""

import re

_FULLWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Fullwidth forms of ASCII. Other compatibility forms are left alone: names of boorus have them (ranma_½)."""


def tag_name(text: str) -> str:
    r"""A tag in booru spelling: lower case, single underscores for blanks. Spelling it again changes nothing.

    Captions escape parentheses with backslashes, boorus do not; one without a partner is an arm: \(^o^)/.
    """
    name = re.sub(r"[\s_]+", "_", text.translate(_FULLWIDTH).lower()).strip("_")
    while 0 < name.count("\\(") == name.count("\\)"):
        name = name.replace("\\(", "(").replace("\\)", ")")
    return name
