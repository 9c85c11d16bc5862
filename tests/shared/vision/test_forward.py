"""A model on the CPU, and on a GPU where there is one."""

import numpy as np
import pytest
import torch
from torch import nn

from shared.vision.forward import Forward, devices

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


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


def expected(batch: np.ndarray) -> np.ndarray:
    return ((batch / 255.0 - MEAN) / STD).mean(axis=(1, 2))


def test_pictures_are_normalised():
    forward = Forward(Means(), MEAN, STD, torch.device("cpu"), "float16")
    assert forward.precision == "float32"
    np.testing.assert_allclose(forward.launch(pixels(), 7).result(), expected(pixels())[:7], atol=1e-5)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(capsys):
    forward = Forward(Means(limit=3), MEAN, STD, torch.device("cpu"), "float32")
    for _ in range(2):
        np.testing.assert_allclose(forward.launch(pixels(), 10).result(), expected(pixels()), atol=1e-5)
    assert capsys.readouterr().out.splitlines() == [
        "out of memory on cpu: the batch is halved to 5",
        "out of memory on cpu: the batch is halved to 2",
    ]
    assert forward._model.asked == [10, 5] + [2] * 10


def test_one_picture_that_does_not_fit_is_an_error():
    forward = Forward(Means(limit=0), MEAN, STD, torch.device("cpu"), "float32")
    with pytest.raises(torch.OutOfMemoryError):
        forward.launch(pixels(), 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_and_says_how_long_it_worked():
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 32))
    plain, found = (
        Forward(model, MEAN, STD, device, "float32").launch(pixels(), 9)
        for device in (torch.device("cpu"), devices()[0])
    )
    np.testing.assert_allclose(found.result(), plain.result(), atol=2e-3)
    assert 0 <= found._forward.waited() <= 1
