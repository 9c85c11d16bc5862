import hashlib

import pytest

from shared.fingerprint import differences, fingerprint


def test_it_is_the_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256('{"a":[1,2.5],"b":"é"}'.encode()).hexdigest()[:16]
    assert fingerprint({"b": "é", "a": (1, 2.5)}) == expected


def test_every_value_and_the_order_of_lists_count() -> None:
    variants = [{}, {"a": None}, {"a": 0}, {"a": False}, {"a": 0.0}, {"a": "0"}, {"a": [1, 2]}, {"a": [2, 1]}]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(TypeError):
        fingerprint({"a": object()})


def test_differences_are_those_of_the_fingerprint() -> None:
    same = {"name": "vae", "shape": [1, 2]}
    assert differences(same, {"shape": (1, 2), "name": "vae"}) == []
    assert differences({**same, "scale": 1}, {**same, "scale": 1.0}) == ["scale: expected 1, found 1.0"]
    assert differences({"hash": None}, {}) == ["hash: expected null, found nothing"]
    assert differences({}, {"b": "x", "a": 2}) == ["a: expected nothing, found 2", 'b: expected nothing, found "x"']
