"""How pictures are brought together for the encoder."""

import threading
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.cache import latents
from train.cache.latents import ahead, batches
from train.cache.pictures import Prepared
from train.cache.resolution import Fit


def prepared(side: int) -> Prepared:
    return Prepared(np.zeros((side, side, 3), np.uint8), Fit(side, side, (0, 0, side, side)), (side, side))


@given(st.lists(st.integers(1, 40), max_size=400), st.integers(1, 9))
def test_every_picture_is_in_one_batch_of_its_shape(sides: list[int], size: int):
    pictures = [(index, prepared(side)) for index, side in enumerate(sides)]
    found = list(batches(pictures, size))
    assert sorted(index for batch in found for index, _ in batch) == list(range(len(sides)))
    for batch in found:
        assert 1 <= len(batch) <= size
        assert len({picture.pixels.shape for _, picture in batch}) == 1


def test_few_pictures_wait():
    taken = 0

    def pictures():
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield index, prepared(index % 200 + 1)

    given_back = 0
    for batch in batches(pictures(), 8):
        given_back += len(batch)
        assert taken - given_back <= latents.WAITING


def test_ahead_keeps_the_order_and_runs_only_a_little_ahead():
    started = 0
    lock = threading.Lock()

    def slow(number: int) -> int:
        nonlocal started
        with lock:
            started += 1
        time.sleep(0.002 * (number % 3))
        return number

    for index, number in enumerate(ahead(slow, range(60))):
        assert number == index
        assert started - index <= 2 * latents.THREADS + 1


def test_ahead_stops_when_its_results_are_not_wanted_any_more():
    results = ahead(str, range(10**9))
    assert next(results) == "0"
    results.close()
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]
