"""What is left to chance."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption.draw import draw, numbers, staying
from caption.variants import GROUPS, Variant
from caption.write import Tag, make_tag

NEVER = {"count", "character", "rating", "quality", "text"}


def tag(name: str, group: str, always: bool = False) -> Tag:
    made = make_tag(name, group, always)
    assert made is not None
    return made


names = st.text("abcdefgh_", min_size=1, max_size=6)
pairs = st.tuples(names, st.sampled_from([group for group in GROUPS if group not in ("count", "text")]), st.booleans())
pictures = st.lists(pairs, unique_by=lambda pair: pair[0]).map(
    lambda found: sorted(
        [tag("1girl", "general"), tag("frog", "general"), *(tag(*pair) for pair in found)], key=lambda one: one.rank
    )
)
variants = st.builds(
    Variant,
    name=st.just("x"),
    order=st.just("illustrious"),
    shuffle=st.booleans(),
    dropout=st.one_of(st.just("illustrious"), st.floats(0, 1, exclude_max=True)),
    quality_dropout=st.sampled_from([0.0, 0.5, 1.0]),
)


def in_groups(tags: list[Tag]) -> list[list[Tag]]:
    return [[one for one in tags if one.group == group] for group in GROUPS]


@given(pictures, variants, st.integers(), st.text(max_size=5), st.integers(0, 5))
def test_invariants(tags, variant, seed, image_id, copy):
    found = draw(tags, variant, seed, image_id, copy)
    assert found == draw(tags, variant, seed, image_id, copy)
    assert not Counter(found) - Counter(tags), "a subset"
    for one in tags:
        if one.fixed and not (one.group == "quality" and variant.quality_dropout):
            assert one in found, "never dropped"
    assert all(one.fixed for one in tags if one.group in NEVER)
    assert [one for group in in_groups(found) for one in group] == found, "groups stay in their order"
    if not variant.shuffle:
        assert found == [one for one in tags if one in found], "dropout keeps the order"
    if not variant.dropout and not variant.quality_dropout:
        assert sorted(found, key=lambda one: (one.rank, one.name)) == sorted(tags, key=lambda one: (one.rank, one.name))


@given(st.lists(names, min_size=1, unique=True), st.floats(0, 1, exclude_max=True), st.integers())
def test_something_always_stays(found, dropout, seed):
    tags = [tag("safe", "rating"), *(tag(name, "general") for name in found), tag("best quality", "quality")]
    variant = Variant(name="x", order="xml", dropout=dropout, quality_dropout=1)
    drawn = draw(tags, variant, seed, "a", 0)
    assert [one.group for one in drawn] == ["rating"] + ["general"] * (len(drawn) - 1)
    assert len(drawn) > 1


FORTY = [tag(f"tag{number}", "general") for number in range(40)]


def drawn(times: int, **settings) -> list[list[Tag]]:
    variant = Variant(name="x", order="illustrious", **settings)
    return [draw(FORTY, variant, 0, str(number), 0) for number in range(times)]


def test_levels_are_as_often_as_published():
    sizes = Counter(len(tags) for tags in drawn(10_000, dropout="illustrious"))
    shares = {size: count / 10_000 for size, count in sizes.items()}
    assert shares == pytest.approx({12: 0.30, 16: 0.20, 6: 0.10, 4: 0.04, 40: 0.36}, abs=0.015)


@pytest.mark.parametrize(
    ("chance", "counts"),
    [
        (0.0, {5: 5, 12: 10, 50: 15}),
        (0.3, {5: 5, 20: 15, 50: 20}),
        (0.55, {5: 5, 9: 6}),
        (0.61, {3: 3, 9: 4}),
        (0.65, {9: 9}),
    ],
)
def test_levels_keep_as_many_as_published(chance, counts):
    assert {count: staying(chance, count) for count in counts} == counts


def test_dropout_and_shuffling_are_fair():
    found = drawn(4_000, dropout=0.3, shuffle=True)
    kept = Counter(one.name for tags in found for one in tags)
    assert all(count / 4_000 == pytest.approx(0.7, abs=0.04) for count in kept.values())
    assert len(kept) == 40
    first = Counter(tags[0].name for tags in found)
    assert all(50 < first[one.name] < 160 for one in FORTY), "each comes first equally often: 100 times"
    before = sum(tags.index(FORTY[0]) < tags.index(FORTY[1]) for tags in found if {*FORTY[:2]} <= {*tags})
    assert before / sum({*FORTY[:2]} <= {*tags} for tags in found) == pytest.approx(0.5, abs=0.05)


def test_the_quality_has_a_chance_of_its_own():
    tags = [tag("frog", "general"), tag("masterpiece", "quality")]
    variant = Variant(name="x", order="illustrious", quality_dropout=0.1)
    gone = sum(len(draw(tags, variant, 0, str(number), 0)) == 1 for number in range(5_000))
    assert gone / 5_000 == pytest.approx(0.1, abs=0.015)


def test_every_part_of_the_key_counts():
    keys = [(0, "a", "x", 0), (1, "a", "x", 0), (0, "b", "x", 0), (0, "a", "y", 0), (0, "a", "x", 1), (0, "ax", "", 0)]
    assert len({numbers(*key, 3) for key in keys}) == len(keys)
    assert numbers(0, "a", "x", 0, 5)[:3] == numbers(0, "a", "x", 0, 3)


def test_numbers_are_shake128():
    digest = hashlib.shake_128(b"7\x00x\x002\x00a").hexdigest(16)
    expected = tuple(int.from_bytes(bytes.fromhex(half), "little") for half in (digest[:16], digest[16:]))
    assert numbers(7, "a", "x", 2, 2) == expected
