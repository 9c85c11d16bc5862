"""Measures, each against somebody else's number or a picture whose number is known."""

import csv
import io
import json

import imagehash
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from curate.measure import SIDE, border, flatness, phash, pixel_hash, read, sharpness
from shared.images import decode


def stored(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def transparent(draw) -> Image.Image:
    """A drawing whose background is transparent, with garbage hidden in it."""
    image = draw(5).convert("RGBA")
    pixels = np.array(image)
    hidden = (pixels[..., :3] == 255).all(axis=-1)
    pixels[hidden] = (200, 0, 50, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_phash_is_imagehash_on_white(mode, make):
    image = transparent(make.draw).convert(mode)
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    assert f"{phash(decode(stored(image)).image):016x}" == str(imagehash.phash(white))
    assert f"{phash(decode(stored(image)).image):016x}" != str(imagehash.phash(image.convert("RGB")))


def test_phash_of_a_palette_with_a_transparent_colour_is_imagehash_on_white(make):
    image = make.draw(6).quantize(16)
    corner = image.getpixel((95, 95))
    expected = image.convert("RGB")
    pixels = np.array(expected)
    pixels[np.array(image) == corner] = 255
    found = decode(stored(image, transparency=corner)).image
    assert f"{phash(found):016x}" == str(imagehash.phash(Image.fromarray(pixels)))


def test_phash_agrees_with_golden_hashes(shared_data):
    golden = json.loads((shared_data / "near_duplicates/imagehash/ground_truth.json").read_text())
    picture = decode((shared_data / "near_duplicates/imagehash/imagehash.png").read_bytes())
    assert f"{phash(picture.image):016x}" == golden["imagehash.png"]["phash"]


def test_phash_is_one_bit_from_the_hashes_of_imagededup(shared_data):
    """imagededup leaves the constant term out of the median and pictures lying on their side."""
    folder = shared_data / "near_duplicates/imagededup"
    golden = json.loads((folder / "golden.json").read_text())
    for name, expected in golden["phash"].items():
        with Image.open(folder / golden["dir"] / name) as image:
            assert (phash(image.convert("RGB")) ^ int(expected, 16)).bit_count() <= 1, name


def test_pixel_hash_groups_files_as_danbooru_does(shared_data):
    folder = shared_data / "near_duplicates/danbooru_dupes"
    with (folder / "ground_truth.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["icc"] == "False"]
    opaque = [row for row in rows if row["mode"] in ("RGB", "L")]
    found = {row["file"]: pixel_hash(decode((folder / row["file"]).read_bytes()).image) for row in opaque}
    for one in opaque:
        for other in opaque:
            same = one["expected_pixel_hash"] == other["expected_pixel_hash"]
            assert (found[one["file"]] == found[other["file"]]) == same, (one["file"], other["file"])


def test_pixel_hash_knows_the_shape():
    assert pixel_hash(Image.new("RGB", (10, 20))) != pixel_hash(Image.new("RGB", (20, 10)))


def test_sharpness_is_the_variance_of_scipys_laplacian(make):
    image = make.draw(3)
    grey = np.asarray(image.convert("L"), dtype=float)
    assert sharpness(image) == pytest.approx(scipy.ndimage.laplace(grey)[1:-1, 1:-1].var())


def noise(deviation: float) -> Image.Image:
    values = np.random.default_rng(0).normal(128, deviation, (300, 200, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def gradient() -> Image.Image:
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(ramp, (300, 1))] * 3, axis=-1))


@pytest.mark.parametrize("image", [Image.new("RGB", (300, 200), "red"), noise(4), gradient()])
def test_pictures_of_nothing_are_flat(image):
    assert flatness(image) == 1


def test_drawings_on_white_are_not_flat(make):
    assert all(flatness(make.draw(seed)) < 0.9 for seed in range(20))
    small = Image.new("RGB", (600, 600), "white")
    small.paste(make.draw(1), (200, 200))
    assert flatness(small) < 0.98


def test_flatness_sees_colours_of_equal_brightness():
    image = Image.new("RGB", (256, 256), (255, 0, 0))
    image.paste((0, 130, 0), (4, 0, 252, 248))
    assert flatness(image) < 0.9


def test_border_is_the_share_of_the_bars():
    texture = np.random.default_rng(0).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    image = Image.new("RGB", (100, 80), "black")
    image.paste(Image.fromarray(texture), (30, 10))
    assert border(image) == pytest.approx(1 - 60 * 50 / (100 * 80))
    assert border(Image.fromarray(texture)) == 0
    assert border(Image.new("RGB", (9, 7), "white")) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_odd_sizes_have_measures(size):
    _, _, found = read(stored(Image.new("RGB", size, "white")), 10**9)
    assert (found.width, found.height) == size
    assert (found.sharpness, found.flatness, found.border) == (0, 1, 1)


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_jpeg_is_measured_like_its_pixels_in_a_png(make):
    """One is reduced by its decoder, the other by us."""
    for seed in range(12):
        data = jpeg(make.draw(seed, (1100, 1500)), quality=92)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        _, small, found = read(data, 10**9)
        _, other, expected = read(stored(image.convert("RGB")), 10**9)
        assert small.size == other.size
        assert SIDE <= max(small.size) < 2 * SIDE
        assert np.abs(np.asarray(small, int) - np.asarray(other, int)).mean() < 1
        assert (found.width, found.height) == (1100, 1500)
        assert found.pixel_hash is None
        assert expected.pixel_hash is None
        assert (found.phash ^ expected.phash).bit_count() <= 2
        assert found.sharpness == pytest.approx(expected.sharpness, rel=0.05)
        assert found.flatness == pytest.approx(expected.flatness, abs=0.03)
        assert found.border == pytest.approx(expected.border, abs=0.02)


@pytest.mark.parametrize("encode", [jpeg, stored])
def test_the_pixels_of_a_blank_picture_are_known(encode, make):
    image = Image.new("RGB", (900, 700), "white")
    image.paste(make.draw(1, (40, 40)), (400, 300))
    data = encode(image)
    assert read(data, 10**9)[2].pixel_hash == pixel_hash(decode(data).image)


def test_phash_of_a_reduced_picture_is_within_two_bits_of_imagehash(shared_data):
    paths = sorted((shared_data / "illustrations").rglob("*.png"))[::4] + sorted(
        (shared_data / "near_duplicates/imagededup").glob("*.jpg")
    )
    distances = []
    for path in paths:
        full = decode(path.read_bytes()).image
        _, _, found = read(path.read_bytes(), 10**9)
        if found.flatness < 0.9:
            distances.append((found.phash ^ phash(full)).bit_count())
    assert len(distances) > 60
    assert np.mean(np.array(distances) <= 2) > 0.98
