"""Resolutions: nothing enlarged, areas bounded, shapes kept."""

from hypothesis import given
from hypothesis import strategies as st

from train.cache.resolution import MAX_TOKENS, fit

SIDES = st.integers(1, 9000)


@given(SIDES, SIDES, st.sampled_from([64, 128, 512, 1024]))
def test_every_picture_fits_its_limits(width: int, height: int, area: int):
    found = fit(width, height, area, 16)
    if found is None:
        assert min(width, height) < 16
        return
    assert found.width % 16 == found.height % 16 == 0
    assert found.width * found.height <= area**2
    assert found.width <= width, "never enlarged"
    assert found.height <= height, "never enlarged"
    assert max(found.width, found.height) <= 16 * MAX_TOKENS
    left, top, right, bottom = found.crop
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    crop_aspect = (right - left) / (bottom - top)
    assert abs(crop_aspect / (found.width / found.height) - 1) < 1e-6, "scaled evenly"
    assert (right - left > width - 1e-6) or (bottom - top > height - 1e-6), "only one direction is cut"


@given(st.integers(512, 6000), st.integers(512, 6000))
def test_ordinary_pictures_lose_little(width: int, height: int):
    if max(width, height) / min(width, height) > 3:
        return
    found = fit(width, height, 1024, 16)
    assert found is not None
    left, top, right, bottom = found.crop
    assert (right - left) * (bottom - top) / (width * height) > 0.96
    bound = min(1024**2, width * height)
    assert found.width * found.height > 0.9 * bound


def test_exact_sizes_are_left_alone():
    for width, height in ((1024, 1024), (768, 1344), (512, 512)):
        found = fit(width, height, 1024, 16)
        assert found is not None
        assert (found.width, found.height) == (width, height)
        assert found.crop == (0, 0, width, height)


def test_the_best_of_the_neighbouring_sizes():
    # By hand: 200 x 100 at area 128 scales to 181 x 90.5; of 176/192 x 80/96 only 176 x 80 has a legal area,
    # beside 160 x 80, which keeps the shape exactly but is no neighbour.
    found = fit(200, 100, 128, 16)
    assert found is not None
    assert (found.width, found.height) == (176, 80)


def test_too_small():
    assert fit(15, 400, 1024, 16) is None
    thin = fit(16, 4000, 1024, 16)
    assert thin is not None
    assert (thin.width, thin.height) == (16, 4000)
