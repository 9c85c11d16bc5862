"""A model on the CPU, and on a GPU where there is one."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from shared.device import devices
from shared.images import decode
from shared.vision.feeder import ROOM, Batch, Problem
from shared.vision.forward import Forward
from shared.vision.geometry import Geometry
from shared.vision.nvjpeg import squares
from tests.shared.test_images import encode

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
GEOMETRY = Geometry(8, "squash", "bicubic")
CPU = torch.device("cpu")


class Means(nn.Module):
    """The mean of each channel; out of memory above a number of pictures."""

    def __init__(self, limit: int = 1000) -> None:
        super().__init__()
        self.limit = limit
        self.asked: list[int] = []

    def forward(self, pictures):
        self.asked.append(len(pictures))
        if len(pictures) > self.limit:
            raise torch.OutOfMemoryError
        return pictures.mean(dim=(2, 3))


def pixels(count: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def batch(rows: int, jpegs: dict[int, bytes] | None = None) -> Batch:
    """A decoded batch of up to ten; the rows of the `jpegs` have no pixels yet."""
    values, room = pixels(), np.zeros((10, ROOM), np.uint8)
    for row, data in (jpegs or {}).items():
        values[row] = 0
        room[row, : len(data)] = np.frombuffer(data, np.uint8)
    done: Future[list[Problem | int]] = Future()
    done.set_result([len((jpegs or {}).get(row, b"")) for row in range(rows)])
    return Batch(0, values, room, rows, (done,))


def computed(forward: Forward, given: Batch) -> np.ndarray:
    return forward.launch(forward.bring(given, GEOMETRY)).result()[: given.rows]


def expected(values: np.ndarray) -> np.ndarray:
    return ((values / 255.0 - MEAN) / STD).mean(axis=(1, 2))


def test_pictures_are_normalised():
    forward = Forward(Means(), MEAN, STD, CPU, "float16")
    assert forward.precision == "float32"
    np.testing.assert_allclose(computed(forward, batch(7)), expected(pixels())[:7], atol=1e-5)


def test_the_batch_may_be_reused_when_it_was_brought():
    forward, given = Forward(Means(), MEAN, STD, CPU, "float32"), batch(10)
    brought = forward.bring(given, GEOMETRY)
    given.pixels[:] = 0
    np.testing.assert_allclose(forward.launch(brought).result(), expected(pixels()), atol=1e-5)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(capsys):
    forward = Forward(Means(limit=3), MEAN, STD, CPU, "float32")
    for _ in range(2):
        np.testing.assert_allclose(computed(forward, batch(10)), expected(pixels()), atol=1e-5)
    assert capsys.readouterr().out.splitlines() == [
        "out of memory on cpu: the batch is halved to 5",
        "out of memory on cpu: the batch is halved to 2",
    ]
    assert forward._model.asked == [10, 5] + [2] * 10


def test_one_picture_that_does_not_fit_is_an_error():
    forward = Forward(Means(limit=0), MEAN, STD, CPU, "float32")
    with pytest.raises(torch.OutOfMemoryError):
        computed(forward, batch(10))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_a_gpu_gives_the_same_and_says_how_long_it_worked():
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 32))
    forwards = [Forward(model, MEAN, STD, device, "float32") for device in (CPU, devices()[0])]
    plain, found = (computed(forward, batch(9)) for forward in forwards)
    np.testing.assert_allclose(found, plain, atol=2e-3)
    assert 0 <= forwards[1].worker.waited() <= 1


def jpeg(seed: int, size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    """A soft picture: noise would show how decoders round, not whether they agree."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    return encode(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode), "JPEG", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_a_gpu_decodes_as_the_processor_does(mode):
    geometry = Geometry(48, mode, "bicubic")
    files = [jpeg(seed, (400 + seed, 300), quality=95) for seed in range(5)]
    files += [jpeg(7, (333, 500), "L"), jpeg(8, (301, 203), subsampling=0), jpeg(9, (640, 480), restart_marker_rows=1)]
    files += [jpeg(10, (400, 300), "CMYK")]  # nvJPEG refuses it: then each is decoded alone.
    arrays = [np.frombuffer(data, np.uint8) for data in files]
    found = squares(arrays, geometry, devices()[0]).cpu().numpy().astype(int)
    for data, square in zip(files, found, strict=True):
        difference = np.abs(square - geometry.apply(decode(data).image))
        assert difference.mean() < 0.6
        assert difference.max() <= 6


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_jpegs_take_their_places_among_the_pixels():
    white = encode(Image.new("RGB", (64, 48), "white"), "JPEG", quality=100)
    found = computed(Forward(Means(), MEAN, STD, devices()[0], "float32"), batch(10, {3: white, 7: white}))
    values = pixels()
    values[[3, 7]] = 255
    np.testing.assert_allclose(found, expected(values), atol=1e-2)
