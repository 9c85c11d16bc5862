"""JSON documents that carry the sum of what they say, so that a change of any byte of them is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal(about: Mapping[str, Any]) -> bytes:
    """The document of `about`, with its sum in the place of any `seal` that stands there."""
    sealed = {key: value for key, value in about.items() if key != "seal"}
    sealed["seal"] = hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
    return (json.dumps(sealed, indent=2, sort_keys=True) + "\n").encode()


def is_sealed(document: bytes) -> bool:
    """Whether a document is what `seal` made of it, byte by byte."""
    try:
        about = json.loads(document)
    except ValueError:
        return False
    return isinstance(about, dict) and document == seal(about)
