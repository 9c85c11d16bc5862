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
    return [
        f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
        for key in keys
        if expected.get(key) != found.get(key)
    ]
