"""How pictures are brought together for the encoder."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.cache import latents
from train.cache.latents import Place, batches
from train.cache.pictures import Prepared
from train.cache.resolution import Fit


def prepared(side: int) -> Prepared:
    return Prepared(np.zeros((side, side, 3), np.uint8), Fit(side, side, (0, 0, side, side)), (side, side))


@given(st.lists(st.integers(1, 40), max_size=400), st.integers(1, 9))
def test_every_picture_is_in_one_batch_of_its_shape(sides: list[int], size: int):
    pictures = [(Place(index, 0), prepared(side)) for index, side in enumerate(sides)]
    found = list(batches(pictures, size))
    assert sorted(place.item for batch in found for place, _ in batch) == list(range(len(sides)))
    for batch in found:
        assert 1 <= len(batch) <= size
        assert len({picture.pixels.shape for _, picture in batch}) == 1


def test_few_pictures_wait():
    taken = 0

    def pictures():
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield Place(index, 0), prepared(index % 200 + 1)

    given_back = 0
    for batch in batches(pictures(), 8):
        given_back += len(batch)
        assert taken - given_back <= latents.WAITING
