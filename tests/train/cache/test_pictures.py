"""From files to the autoencoder's pixels."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.corpus import Corpus
from shared.images import Unreadable
from train.cache.pictures import prepare


def save(path: Path, image: Image.Image) -> str:
    """Write a picture; returns its id."""
    image.save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gradient(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.mgrid[:height, :width].sum(0).astype(np.uint8)[..., None].repeat(3, 2))


def test_a_picture_of_a_legal_size_is_not_touched(tmp_path: Path):
    image = gradient(96, 64)
    found = prepare(Corpus(str(tmp_path)), save(tmp_path / "a.png", image), ["a.png"], 128, 16)
    assert np.array_equal(found.pixels, np.asarray(image))
    assert (found.original_size, found.fit.crop) == ((96, 64), (0, 0, 96, 64))


def test_scaled_and_cut_in_one_go(tmp_path: Path):
    image = gradient(210, 100)
    found = prepare(Corpus(str(tmp_path)), save(tmp_path / "a.png", image), ["a.png"], 128, 16)
    left, top, right, _ = found.fit.crop
    assert found.pixels.shape == (found.fit.height, found.fit.width, 3)
    # A gradient shows where its pixels come from: its brightness is column + row (no value wraps within a row's blur).
    scale = (right - left) / found.fit.width
    expected = left + top + (np.mgrid[: found.fit.height, : found.fit.width].sum(0) + 1) * scale - 1
    inner = (slice(4, -4), slice(4, -60))
    assert np.abs(found.pixels[inner][..., 0] - expected[inner]).max() < 1


def test_antialiased(tmp_path: Path):
    stripes = Image.fromarray(np.tile(np.uint8([0, 255]), (512, 256))[..., None].repeat(3, 2))
    found = prepare(Corpus(str(tmp_path)), save(tmp_path / "a.png", stripes), ["a.png"], 128, 16)
    assert found.pixels.shape == (128, 128, 3)
    assert np.abs(found.pixels[:, 4:-4].astype(int) - 127).max() < 4


def test_any_copy_serves(tmp_path: Path):
    image_id = save(tmp_path / "copy.png", gradient(32, 32))
    (tmp_path / "changed.png").write_bytes(b"something else")
    assert prepare(Corpus(str(tmp_path)), image_id, ["gone.png", "changed.png", "copy.png"], 128, 16).original_size == (
        32,
        32,
    )


@pytest.mark.parametrize(
    ("locations", "reason"),
    [
        ([], "unreadable"),
        (["gone.png"], "unreadable"),
        (["gone.png", "other.png"], "changed"),
        (["broken.png"], "undecodable"),
        (["small.png"], "too_small"),
    ],
)
def test_reasons(tmp_path: Path, locations: list[str], reason: str):
    save(tmp_path / "other.png", gradient(33, 33))
    save(tmp_path / "small.png", gradient(15, 90))
    broken = tmp_path / "broken.png"
    save(broken, gradient(64, 64))
    broken.write_bytes(broken.read_bytes()[:-60])
    last = tmp_path / (locations or ["other.png"])[-1]
    right = reason in ("undecodable", "too_small")
    image_id = hashlib.sha256(last.read_bytes()).hexdigest() if right else "0" * 64
    with pytest.raises(Unreadable) as raised:
        prepare(Corpus(str(tmp_path)), image_id, locations, 128, 16)
    assert raised.value.reason == reason
    assert str(tmp_path) not in raised.value.detail, "does not depend on where the corpus lies"
