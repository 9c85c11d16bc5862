"""What made the rows of a work list, written down beside its parts: rows of two models never share a table."""

import json
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import write_text

ABOUT = "about.json"


def read_about(folder: Path) -> dict[str, Any]:
    """What made the parts in a folder."""
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found


def claim(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write down what makes the parts in a folder. Raises UserError where something else made those in it."""
    if not any(folder.glob("part-*.parquet")):
        write_text(folder / ABOUT, json.dumps(about, indent=2))
    earlier = read_about(folder)
    for key in about:
        if earlier.get(key) != json.loads(json.dumps(about[key])):
            raise UserError(
                f"{folder}: what lies here was made with {key} = {earlier.get(key)!r}, now it is {about[key]!r}; "
                "use the same again, or delete the folder to compute everything again"
            )
    return earlier
