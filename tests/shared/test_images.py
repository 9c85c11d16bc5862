import colorsys
import csv
import io
import json
import os
import stat
import struct
import subprocess
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps

from shared.images import Unreadable, decode, is_plain_jpeg, to_rgb

ROOT = Path(__file__).resolve().parents[2]
RANDOM = np.random.default_rng(0)
PRIMARIES = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
"""XYZ of the red, green and blue of sRGB, adapted to D50."""
COLOURS = RANDOM.integers(0, 256, (5, 7, 4), dtype=np.uint8)
RGB, RGBA = Image.fromarray(COLOURS[..., :3]), Image.fromarray(COLOURS)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    picture = decode(data)
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image).astype(int)


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG from its parts, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *((name.encode(), data) for name, data in chunks.items())]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def on_white(rgba: np.ndarray) -> np.ndarray:
    colour, alpha = rgba[..., :-1].astype(float), rgba[..., -1:] / 255
    return np.broadcast_to(colour * alpha + 255 * (1 - alpha), (*rgba.shape[:2], 3))


# Modes


def test_plain_colours_and_greys() -> None:
    grey = COLOURS[..., 0]
    assert (pixels(encode(RGB)) == COLOURS[..., :3]).all()
    assert (pixels(encode(Image.fromarray(grey))) == grey[..., None]).all()
    bits = Image.fromarray(grey).point(lambda value: 255 * (value > 99), "1")
    assert (pixels(encode(bits)) == np.where(grey > 99, 255, 0)[..., None]).all()
    picture = decode(encode(bits))
    assert (picture.format, picture.mode, picture.alpha, picture.frames) == ("PNG", "1", False, 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_on_white(kind: str) -> None:
    data = encode(RGBA, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(pixels(data) - on_white(COLOURS)).max() <= 1
    assert decode(data).alpha


def test_grey_with_alpha() -> None:
    data = encode(Image.fromarray(COLOURS[..., :2].copy(), "LA"))
    assert np.abs(pixels(data) - on_white(COLOURS[..., :2])).max() <= 1
    assert decode(data).mode == "LA"


def test_colours_under_full_transparency_do_not_show() -> None:
    hidden = COLOURS.copy()
    hidden[..., 3] = 0
    assert (pixels(encode(Image.fromarray(hidden))) == 255).all()


def test_palettes() -> None:
    colours = [10, 20, 30, 200, 100, 50, 0, 255, 0]
    image = Image.new("P", (3, 1))
    image.putpalette(colours)
    image.putdata([0, 1, 2])
    opaque = np.array(colours).reshape(1, 3, 3)
    assert (pixels(encode(image)) == opaque).all()
    assert not decode(encode(image)).alpha
    half = np.concatenate([opaque, [[[255], [128], [0]]]], axis=2)
    for kind, transparency in (("PNG", b"\xff\x80\x00"), ("GIF", 2)):
        data = encode(image, kind, transparency=transparency)
        assert decode(data).alpha
        expected = on_white(half if kind == "PNG" else np.where(half[..., 3:] == 128, [[[200, 100, 50, 255]]], half))
        assert np.abs(pixels(data) - expected).max() <= 1
    pa = image.convert("PA")
    pa.putalpha(Image.fromarray(np.array([[255, 128, 0]], dtype=np.uint8)))
    assert np.abs(np.asarray(to_rgb(pa)).astype(int) - on_white(half)).max() <= 1


def test_one_transparent_colour() -> None:
    rgb = png((2, 1), 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), tRNS=struct.pack(">HHH", 1, 2, 3))
    assert pixels(rgb).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    grey = png((2, 1), 8, 0, b"\0\x01\x02", tRNS=struct.pack(">H", 1))
    assert pixels(grey).tolist() == [[[255] * 3, [2] * 3]]
    deep = png((3, 1), 16, 0, b"\0" + struct.pack(">HHH", 0, 1, 0x8000), tRNS=struct.pack(">H", 0))
    assert pixels(deep).tolist() == [[[255] * 3, [0] * 3, [128] * 3]]
    black = png((2, 1), 1, 0, b"\0\x40", tRNS=struct.pack(">H", 0))
    assert pixels(black).tolist() == [[[255] * 3, [255] * 3]]
    assert all(decode(data).alpha for data in (rgb, grey, deep, black))


def test_sixteen_bits() -> None:
    values = RANDOM.integers(0, 65536, (5, 7), dtype=np.uint16)
    grey = pixels(encode(Image.fromarray(values)))
    assert (grey == np.round(values / 257).astype(int)[..., None]).all()
    big_endian = values.astype(">u2")
    assert (pixels(encode(Image.frombytes("I;16B", (7, 5), big_endian.tobytes()), "TIFF")) == grey).all()
    deep = RANDOM.integers(0, 65536, (1, 7, 4), dtype=np.uint16)
    raw = b"\0" + deep.astype(">u2").tobytes()
    assert np.abs(pixels(png((7, 1), 16, 6, raw)) - on_white(deep / 257)).max() <= 1.5
    raw = b"\0" + deep[..., :3].astype(">u2").tobytes()
    assert np.abs(pixels(png((7, 1), 16, 2, raw)) - deep[..., :3] / 257).max() <= 1
    raw = b"\0" + deep[..., :2].astype(">u2").tobytes()
    assert np.abs(pixels(png((7, 1), 16, 4, raw)) - on_white(deep[..., :2] / 257)).max() <= 1.5


@pytest.mark.parametrize(("kind", "white"), [(np.int32, 255), (np.int32, 65535), (np.float32, 1), (np.float32, 255)])
def test_thirty_two_bits(kind: type, white: int) -> None:
    fives = 5 * np.arange(35).reshape(5, 7)
    values = (fives * (white / 255)).astype(kind)
    data = encode(Image.fromarray(values), "TIFF")
    assert decode(data).mode == ("I" if kind is np.int32 else "F")
    assert (pixels(data) == fives[..., None]).all()


def test_floats_that_are_no_numbers() -> None:
    values = np.array([[0.0, np.nan, np.inf, -np.inf, -1.0, 0.2, 1.0]], dtype=np.float32)
    assert pixels(encode(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 0, 0, 0, 51, 255]


def test_cmyk() -> None:
    c, m, y, k = (COLOURS[..., i].astype(float) for i in range(4))
    expected = np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], axis=2)
    assert np.abs(pixels(encode(Image.frombytes("CMYK", (7, 5), COLOURS.tobytes()), "TIFF")) - expected).max() <= 1


def test_cmyk_jpeg_is_not_inverted() -> None:
    for cmyk, rgb in (((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))):
        found = pixels(encode(Image.new("CMYK", (8, 8), cmyk), "JPEG", quality=100))
        assert np.abs(found - rgb).max() <= 3


def test_colour_spaces() -> None:
    hsv = np.asarray(to_rgb(Image.frombytes("HSV", (7, 5), COLOURS[..., :3].tobytes()))).reshape(-1, 3)
    for found, (h, s, v) in zip(hsv, COLOURS[..., :3].reshape(-1, 3) / 255, strict=True):
        assert np.abs(found / 255 - colorsys.hsv_to_rgb(h, s, v)).max() < 0.03
    y, cb, cr = (COLOURS[..., i].astype(float) for i in range(3))  # JFIF 1.02, conversion to RGB
    rgb = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], 2
    )
    found = np.asarray(to_rgb(Image.frombytes("YCbCr", (7, 5), COLOURS[..., :3].tobytes())))
    assert np.abs(found - rgb.clip(0, 255)).max() <= 2
    # CIE 15: Lab at D50 of colours within the gamut.
    colours = RANDOM.integers(80, 200, (9, 3)) / 255
    xyz = (((colours + 0.055) / 1.055) ** 2.4) @ np.array(PRIMARIES) / np.array([0.9642, 1.0, 0.8249])
    x, y, z = np.cbrt(xyz).T
    lab = np.round([(116 * y - 16) * 2.55, 500 * (x - y), 200 * (y - z)]).astype(int) % 256
    found = np.asarray(to_rgb(Image.frombytes("LAB", (9, 1), lab.T.astype(np.uint8).tobytes())))[0]
    assert np.abs(found - colours * 255).max() <= 4


# Orientation

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "JPEG":
        with Image.open(io.BytesIO(data)) as stored:
            expected = np.asarray(ImageOps.exif_transpose(stored))
    else:
        expected = UPRIGHT[orientation](COLOURS[..., :3])
    assert (pixels(data) == expected).all()


@pytest.mark.parametrize("exif", [b"", b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*" + b"\7" * 99])
def test_broken_exif_does_not_cost_the_picture(exif: bytes) -> None:
    assert pixels(encode(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0" + exif, quality=100)).shape == (
        8,
        8,
        3,
    )


# Colour profiles


def icc(space: bytes) -> bytes:
    """A profile with linear light: grey, or with the primaries of sRGB."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    linear = b"curv\0\0\0\0\0\0\0\1\1\0\0\0"
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == b"GRAY":
        tags[b"kTRC"] = linear
    else:
        for channel, primary in zip((b"r", b"g", b"b"), PRIMARIES, strict=True):
            tags |= {channel + b"XYZ": xyz(*primary), channel + b"TRC": linear}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    size = 132 + 12 * len(tags) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def srgb(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, of values 0 to 255."""
    share = linear / 255
    return 255 * np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)


PALETTE = RGB.quantize(16)
CASES = {
    "L": (Image.fromarray(COLOURS[..., 0]), b"GRAY", srgb(COLOURS[..., :1])),
    "LA": (
        Image.fromarray(COLOURS[..., [0, 3]].copy(), "LA"),
        b"GRAY",
        on_white(np.concatenate([srgb(COLOURS[..., :1]), COLOURS[..., 3:]], axis=2)),
    ),
    "RGB": (RGB, b"RGB ", srgb(COLOURS[..., :3])),
    "RGBA": (RGBA, b"RGB ", on_white(np.concatenate([srgb(COLOURS[..., :3]), COLOURS[..., 3:]], axis=2))),
    "P": (PALETTE, b"RGB ", srgb(np.asarray(PALETTE.convert("RGB")))),
    "I;16": (Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257), b"GRAY", srgb(COLOURS[..., :1])),
}


@pytest.mark.parametrize("mode", CASES)
def test_profiles_are_applied(mode: str) -> None:
    image, space, expected = CASES[mode]
    data = encode(image, icc_profile=icc(space))
    assert decode(data).mode == mode
    assert np.abs(pixels(data) - expected).max() <= 4


@pytest.mark.parametrize(
    ("image", "profile"),
    [
        (RGB, icc(b"GRAY")),
        (RGB, b"garbage"),
        (RGB, icc(b"RGB ")[:140]),
        (Image.fromarray(COLOURS[..., 0]), icc(b"RGB ")),
        (RGBA, icc(b"GRAY")),
        (Image.frombytes("CMYK", (7, 5), COLOURS.tobytes()), icc(b"RGB ")),
    ],
)
def test_profiles_that_do_not_fit_are_ignored(image: Image.Image, profile: bytes) -> None:
    assert (pixels(encode(image, "TIFF", icc_profile=profile)) == pixels(encode(image, "TIFF"))).all()


def test_the_result_carries_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = decode(encode(RGB, icc_profile=icc(b"RGB "), exif=exif)).image
    assert result.info == {}  # saved as a PNG, it would be converted and turned a second time
    assert to_rgb(RGB) is not RGB


def test_pictures_of_one_group_have_equal_pixels(shared_data: Path) -> None:
    folder = shared_data / "near_duplicates" / "danbooru_dupes"
    groups = defaultdict(list)
    with (folder / "ground_truth.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            groups[row["group"]].append(decode((folder / row["file"]).read_bytes()).image)
    assert max(map(len, groups.values())) >= 4
    canonical = {group: {(image.size, image.tobytes()) for image in images} for group, images in groups.items()}
    assert all(len(found) == 1 for found in canonical.values())
    # The truth keeps alpha apart from a white background; on white they are one picture.
    assert canonical["2981edc8"] == canonical["5199b09c"]
    assert len({next(iter(found)) for found in canonical.values()}) == len(groups) - 1


# Frames

FRAMES = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)
    picture = decode(data)
    assert picture.frames == 3
    assert picture.image.getcolors() == [(24, (255, 0, 0))]


def test_a_second_view_or_a_gain_map_is_no_animation() -> None:
    picture = decode(encode(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]))
    assert (picture.format, picture.frames) == ("MPO", 1)


def test_broken_later_frames_leave_the_first() -> None:
    data = encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
    second = data.index(b"\x2c", data.index(b"\x2c") + 1)
    assert decode(data[: second + 4]).image.getcolors() == [(24, (255, 0, 0))]


# Hostile files


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(Unreadable) as error:
        decode(data, **options)
    assert str(error.value) == f"{error.value.reason}: {error.value.detail}"
    return error.value.reason


def test_reasons() -> None:
    assert reason(b"") == "empty_file"
    assert reason(b"not a picture") == "not_an_image"
    assert reason(encode(RGB)[:-40]) == "undecodable"
    assert reason(encode(RGB), max_pixels=34) == "too_many_pixels"
    assert decode(encode(RGB), max_pixels=35).image.size == (7, 5)


@pytest.mark.parametrize("error", [SyntaxError, ValueError, IndexError, KeyError, struct.error, RuntimeError])
def test_whatever_a_decoder_raises(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(image: Image.Image) -> None:
        raise error("broken")

    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    with pytest.raises(Unreadable, match=f"undecodable: {error.__name__}: .*broken"):
        decode(encode(PALETTE, "BMP"))


def test_a_bomb_is_refused_by_its_header() -> None:
    assert reason(png((20_000, 10_001), 8, 2, b"")) == "too_many_pixels"
    assert reason(png((1, 200_000_000), 8, 2, b"")) == "undecodable"
    assert reason(png((2**31 - 1, 2**31 - 1), 8, 2, b"")) == "too_many_pixels"


def test_a_bomb_inside_a_container_is_refused() -> None:
    inner = png((40_000, 40_000), 1, 0, b"")
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    assert reason(icon) == "too_many_pixels"
    assert reason(icon, max_pixels=700_000_000) == "too_many_pixels"
    assert reason(icon, max_pixels=1_600_000_000) == "undecodable"  # within the limit, but there is no data


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(ghostscript.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert reason(encode(RGB, "EPS")) == "undecodable"
    assert not (tmp_path / "ran").exists()


SMALL = [
    encode(RGBA, icc_profile=icc(b"RGB ")),
    encode(RGB, "JPEG"),
    encode(RGB, "JPEG", progressive=True, icc_profile=icc(b"RGB ")),
    encode(RGBA, "WEBP"),
    encode(PALETTE, "GIF", save_all=True, append_images=[PALETTE]),
    encode(RGBA, "TIFF"),
    encode(RGB, "BMP"),
]


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from(SMALL),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    keep=st.sampled_from([1.0, 0.9, 0.5]),
)
def test_garbled_files_are_decoded_or_unreadable(data: bytes, changes: list[tuple[float, int]], keep: float) -> None:
    garbled = bytearray(data[: int(len(data) * keep)])
    for place, mask in changes:
        garbled[int(place * len(garbled))] ^= mask
    try:
        picture = decode(bytes(garbled), max_pixels=1_000_000)
    except Unreadable as error:
        assert error.reason in {"not_an_image", "too_many_pixels", "undecodable"}  # noqa: PT017
    else:
        assert picture.image.mode == "RGB"


SURVEY = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from shared.images import Unreadable, decode
for name in sys.stdin.read().split("\\n"):
    try:
        picture = decode(Path(name).read_bytes())
        found = {"size": picture.image.size, "format": picture.format, "mode": picture.mode, "frames": picture.frames}
    except Unreadable as error:
        found = {"reason": error.reason, "detail": error.detail}
    print(json.dumps(found))
"""


def test_hostile_pictures(shared_data: Path) -> None:
    folder = shared_data / "hostile_images"
    with (folder / "labels.csv").open(newline="") as file:
        labels = [row for row in csv.DictReader(file) if (folder / row["file"]).exists()]
    assert len(labels) > 800
    names = "\n".join(str(folder / row["file"]) for row in labels)
    done = subprocess.run(
        [sys.executable, "-c", SURVEY], input=names, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(zip([row["file"] for row in labels], map(json.loads, done.stdout.splitlines()), strict=True))
    for row in labels:
        result = found[row["file"]]
        if row["pillow_load"] == "ok":
            swapped = sorted((int(float(row["width"])), int(float(row["height"]))))
            assert sorted(result["size"]) == swapped, row["file"]
            assert (result["format"], result["mode"]) == (row["format"], row["mode"])
            assert result["format"] not in ("PSD", "MPO") or result["frames"] == 1
        else:
            assert result["reason"] in {"empty_file", "not_an_image", "too_many_pixels", "undecodable"}, row["file"]
            assert " at 0x" not in result["detail"]  # an address would differ from run to run
    bombs = [name for name, result in found.items() if result.get("reason") == "too_many_pixels"]
    assert sum("DecompressionBomb" in row["pillow_open"] for row in labels if row["file"] in bombs) >= 3


PEAK = """
import resource, sys
from PIL import Image
from shared.images import decode
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = decode(data).image.size
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (size[0] * size[1]))
"""


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_the_largest_picture_fits_in_four_gigabytes(tmp_path: Path, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new(mode, (5000, 2400)).save(tmp_path / "large.png", exif=exif, compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "large.png")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) * 200_000_000 < 4e9


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 90, 95, 100])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_the_quality_of_a_jpeg_is_known(quality, mode):
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert(mode).save(buffer, "JPEG", quality=quality)
    assert decode(buffer.getvalue()).quality == quality
    buffer = io.BytesIO()
    Image.new(mode if mode != "CMYK" else "RGB", (32, 32)).save(buffer, "PNG")
    assert decode(buffer.getvalue()).quality is None


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    return encode(Image.effect_noise((32, 24), 50).convert(mode), "JPEG", **options)


def profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (jpeg(), True),
        (jpeg("L"), True),
        (jpeg(subsampling=0), True),
        (jpeg(icc_profile=profile("sRGB")), True),
        (jpeg("L", icc_profile=profile("sRGB")), True),
        (jpeg(progressive=True), False),
        (jpeg("CMYK"), False),
        (jpeg(keep_rgb=True), False),
        (jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"), False),
        (encode(RGB, "PNG"), False),
        (jpeg()[:100], False),
        (b"", False),
    ],
)
def test_jpegs_that_any_decoder_decodes_alike(data, plain):
    assert is_plain_jpeg(data) == plain
    assert not is_plain_jpeg(data, max_pixels=32 * 24 - 1)
