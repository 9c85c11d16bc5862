"""Metadata files of single pictures: `frog.json` or `frog.txt` beside `frog.png`, in a folder or in a tar.

gallery-dl's default names, `frog.png.json` and `frog.png.txt`, count as well. Beside a tar lies what img2dataset knows
of it: `00012.parquet` (which downloads failed, and why) and `00012_stats.json`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from curate.sources.listing import Found

SUFFIXES = (".json", ".txt")
"""In the order in which they are asked: a .json usually knows more."""

OF_TARS = (".parquet", "_stats.json")

MAX_BYTES = 1 << 24
"""A larger file is no metadata of one picture."""


def attach(files: Mapping[str, Found]) -> Iterator[Found]:
    """The pictures and tars among the files of one folder (or tar), by name, each with its sidecars."""
    owned = {
        name: [sidecar for sidecar in _names(name) if sidecar in files and files[sidecar].error is None]
        for name in files
        if not name.endswith(SUFFIXES)
    }
    metadata = {sidecar for sidecars in owned.values() for sidecar in sidecars}
    for name, item in files.items():
        if name not in metadata:
            beside = tuple(files[sidecar] for sidecar in owned.get(name, ()))
            yield dataclasses.replace(item, sidecars=beside) if beside else item


def _names(picture: str) -> list[str]:
    stem = picture[: len(picture) - len(PurePosixPath(picture).suffix)]
    if picture.endswith(".tar"):
        return [stem + suffix for suffix in OF_TARS]
    return [base + suffix for suffix in SUFFIXES for base in (picture, stem)]


def parse(name: str, data: bytes) -> Mapping[str, Any]:
    """The keys and values of a sidecar; a .txt holds tags. Raises ValueError where its content is something else."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are no metadata of one picture")
    text = data.decode("utf-8-sig")
    if name.endswith(".txt"):
        return {"tags": text}
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}, not an object")
    return values
