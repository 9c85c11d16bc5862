"""Sealed documents: what was written is read, anything else is noticed."""

import json

from hypothesis import given
from hypothesis import strategies as st

from shared.sealed import is_sealed, seal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text().filter("seal".__ne__), VALUES, max_size=4)


@given(DOCUMENTS)
def test_what_was_sealed_is_whole_and_says_the_same(about):
    document = seal(about)
    assert is_sealed(document)
    found = json.loads(document)
    assert seal(found) == document
    del found["seal"]
    assert found == about


@given(DOCUMENTS, st.data())
def test_any_other_bytes_are_not(about, data):
    document = seal(about)
    position = data.draw(st.integers(0, len(document) - 1))
    other = data.draw(st.integers(1, 255))
    assert not is_sealed(document[:position])
    assert not is_sealed(document[:position] + bytes([document[position] ^ other]) + document[position + 1 :])
    assert not is_sealed(document + b" ")
    assert not is_sealed(json.dumps(about).encode())
