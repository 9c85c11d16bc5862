"""Fingerprints: a short name for everything that changes the bytes of a result."""

import hashlib
import json
from typing import Any


def fingerprint(parts: Any) -> str:
    """First 16 hex digits of the sha256 of `parts` as canonical JSON.

    64 bits name a few hundred folders of one work directory: a clash is out of reach.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The fields in which two descriptions differ, one readable line each."""
    keys = sorted(expected.keys() | found.keys())
    shown = [(key, _show(expected, key), _show(found, key)) for key in keys]
    return [f"{key}: expected {left}, found {right}" for key, left, right in shown if left != right]


def _show(description: dict[str, Any], key: str) -> str:
    """A field as the JSON that `fingerprint` sees."""
    return json.dumps(description[key], sort_keys=True, ensure_ascii=False) if key in description else "nothing"
