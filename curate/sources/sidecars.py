"""Metadata files of single pictures: `frog.json` or `frog.txt` beside `frog.png`.

gallery-dl's default names, `frog.png.json` and `frog.png.txt`, count as well.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from curate.sources.listing import Found

SUFFIXES = (".json", ".txt")
"""In the order in which they are asked: a .json usually knows more."""


def attach(files: Mapping[str, Found]) -> Iterator[Found]:
    """The pictures among the files of one folder, by name, each with its sidecars."""
    owned = {
        name: [sidecar for sidecar in _names(name) if sidecar in files and files[sidecar].error is None]
        for name in files
        if not name.endswith(SUFFIXES)
    }
    metadata = {sidecar for sidecars in owned.values() for sidecar in sidecars}
    for name, item in files.items():
        if name not in metadata:
            beside = tuple(files[sidecar] for sidecar in owned.get(name, ()))
            yield dataclasses.replace(item, sidecars=beside)


def _names(picture: str) -> list[str]:
    return [base + suffix for suffix in SUFFIXES for base in (picture, PurePosixPath(picture).stem)]


def read(path: Path) -> Mapping[str, Any]:
    """The keys and values of a sidecar; a .txt holds tags.

    Raises OSError, or ValueError where the content is not what the name says.
    """
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".txt":
        return {"tags": text}
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}, not an object")
    return values
