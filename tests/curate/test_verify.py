"""Verdicts on copies, variants and strangers whose truth is known."""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from curate.dedupe.descriptor import LUMA, SIZE, describe
from curate.dedupe.verify import CHUNK, DUPLICATE, NUMBERS, UNRELATED, VARIANT, Verdicts, compare
from demo.characters import BACKGROUNDS, CHARACTERS, CLOTHES, Scene, other_costume, random_scene
from demo.drawing import draw, draw_transparent
from shared.images import decode

SCENES = range(12)


def scene(number: int) -> Scene:
    """Each of the twelve, in front of each of the backgrounds."""
    plain = random_scene(random.Random(number), CHARACTERS[number])
    return replace(
        plain,
        width=plain.width * 2,
        height=plain.height * 2,
        expression="smile",
        framing="upper_body",
        background=BACKGROUNDS[number % len(BACKGROUNDS)],
    )


@cache
def picture(number: int) -> Image.Image:
    return draw(scene(number))


def verdicts(pairs: list[tuple[Image.Image, Image.Image]]) -> Verdicts:
    """Of pictures."""
    a, b = (np.stack([np.frombuffer(describe(image), np.uint8) for image in side]) for side in zip(*pairs, strict=True))
    sizes_a, sizes_b = (np.array([image.size for image in side], np.int32) for side in zip(*pairs, strict=True))
    return compare(a, b, sizes_a, sizes_b)


def encoded(image: Image.Image, kind: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return decode(buffer.getvalue()).image


def resized(image: Image.Image, share: float) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Shares of the sides cut off."""
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def relit(image: Image.Image, gain: float) -> Image.Image:
    return image.point(lambda value: min(255, value * gain))


def painted(image: Image.Image, paint: Callable[[ImageDraw.ImageDraw, int, int], None]) -> Image.Image:
    """With something half transparent on it."""
    layer = Image.new("RGBA", image.size)
    paint(ImageDraw.Draw(layer), *image.size)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def logo(pen: ImageDraw.ImageDraw, width: int, height: int, *, right: bool = True, lower: bool = True) -> None:
    side = 0.07 * min(width, height)
    x, y = (width - 1.2 * side if right else 0.2 * side), (height - 1.2 * side if lower else 0.2 * side)
    pen.ellipse((x, y, x + side, y + side), (220, 30, 60, 230))


def strip(pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    top = height - round(0.05 * height)
    pen.rectangle((0, top, width, height), (0, 0, 0, 120))
    pen.text((0.05 * width, top), "pillow.example.org", (255, 255, 255, 255), ImageFont.load_default(0.035 * height))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "itself": lambda image: image,
    "jpeg 60": lambda image: encoded(image, "JPEG", 60),
    "jpeg 95": lambda image: encoded(image, "JPEG", 95),
    "webp": lambda image: encoded(image, "WEBP", 70),
    "larger": lambda image: resized(image, 1.5),
    "smaller": lambda image: encoded(resized(image, 0.4), "JPEG", 85),
    "cropped at one side": lambda image: cropped(image, 0.04, 0, 0, 0),
    "cropped all around": lambda image: encoded(cropped(image, 0.01, 0.03, 0.02, 0.01), "JPEG", 90),
    "darker": lambda image: relit(image, 0.85),
    "brighter": lambda image: relit(image, 1.08),
    "brighter, clipped": lambda image: encoded(relit(image, 1.15), "JPEG", 85),
    "logo": lambda image: painted(image, logo),
    "strip": lambda image: painted(image, strip),
}


MISSED = {"cropped all around": 1, "brighter, clipped": 2, "strip": 4}
"""Of the twelve, how many copies may be taken for variants: a dark strip on a dark picture is nothing but its text."""


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_duplicates(kind):
    found = verdicts([(picture(number), COPIES[kind](picture(number))) for number in SCENES])
    assert (found.kind == DUPLICATE).sum() >= len(SCENES) - MISSED.get(kind, 0)
    assert (found.kind >= VARIANT).all()


@pytest.mark.parametrize(("right", "lower", "kind"), [(False, False, DUPLICATE), (False, True, VARIANT)])
def test_either_of_two_copies_may_have_a_mark_but_not_along_the_same_edge(right, lower, kind):
    other = partial(logo, right=right, lower=lower)
    found = verdicts([(painted(picture(number), logo), painted(picture(number), other)) for number in range(4)])
    assert (found.kind == kind).all()


def test_one_copy_may_have_a_strip_and_the_other_a_mark():
    pairs = [
        (painted(picture(number), strip), painted(picture(number), partial(logo, lower=False))) for number in (0, 1)
    ]
    assert (verdicts(pairs).kind == DUPLICATE).all()


@pytest.mark.parametrize(
    "box", [(0.3, 0.02, 0.55, 0.08), (0.02, 0.3, 0.2, 0.36), (0.3, 0.3, 0.5, 0.36), (0, 0, 0.44, 0.11)]
)
def test_a_mark_that_is_large_or_not_in_a_corner_is_a_change(box):
    def patch(pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
        left, top, right, bottom = box
        places = (left * width, top * height, right * width, bottom * height)
        pen.rectangle(places, (220, 30, 60, 230), (20, 90, 20, 255), width // 40)

    found = verdicts([(picture(number), painted(picture(number), patch)) for number in range(4)])
    assert (found.kind == VARIANT).sum() >= 3  # Before white it can pass for a strip.


def look(number: int, **changes: str) -> Image.Image:
    drawn = scene(number)
    return draw(replace(drawn, character=replace(drawn.character, **changes)))  # type: ignore[arg-type]


VARIANTS: dict[str, Callable[[int], Image.Image]] = {
    "hair": lambda number: look(number, hair=CHARACTERS[number - 1].hair),
    "colour of clothes": lambda number: draw(other_costume(random.Random(number), scene(number))),
    "costume": lambda number: look(number, clothes=CLOTHES[CLOTHES.index(CHARACTERS[number].clothes) - 1]),
    "eyes": lambda number: draw(replace(scene(number), expression="closed_eyes")),
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_what_was_changed_on_purpose_is_a_variant(kind):
    changed = [VARIANTS[kind](number) for number in SCENES]
    copies = [encoded(resized(image, 0.7), "JPEG", 85) for image in changed]
    for images in (changed, copies):
        found = verdicts([(picture(number), image) for number, image in zip(SCENES, images, strict=True)])
        assert (found.kind != DUPLICATE).all()
        assert (found.kind == VARIANT).sum() >= 11  # Hair can be most of what is drawn.
    assert (verdicts(list(zip(changed, copies, strict=True))).kind == DUPLICATE).all()


@pytest.mark.parametrize("framing", ["full_body", "portrait"])
def test_strangers_are_unrelated(framing):
    """Figures on white are where perceptual hashes fail."""
    figures = []
    for number in SCENES:
        alone = draw_transparent(replace(scene(number), framing=framing, width=320, height=400))
        figures.append(Image.alpha_composite(Image.new("RGBA", alone.size, "white"), alone).convert("RGB"))
    found = verdicts(list(combinations(figures, 2)))
    assert (found.kind != DUPLICATE).all()
    assert (found.kind == UNRELATED).mean() > 0.9


def test_the_numbers_say_what_was_done():
    image, crop = picture(1), cropped(picture(1), 0.04, 0, 0, 0.02)
    dark, dark_crop = relit(image, 0.8), relit(crop, 0.8)
    found = verdicts([(image, image), (image, dark), (image, dark_crop), (dark, crop)])
    difference, agreement, overlap, gain = (found.numbers[name] for name in NUMBERS)
    assert difference[0] < 0.3  # Only one of the two is clipped where colours are out of range.
    assert (difference <= 1).all()
    assert (agreement == 1).all()
    assert overlap == pytest.approx([1, 1, 0.96 * 0.98, 0.96 * 0.98], abs=0.01)  # Whichever is the crop.
    assert gain == pytest.approx([1, 1 / 0.8, 1 / 0.8, 1 / 0.8], abs=0.03)


@pytest.mark.parametrize(
    ("size", "other", "kind"),
    [
        ((400, 300), (1600, 1200), DUPLICATE),
        ((1000, 155), (100, 16), DUPLICATE),  # Rounded to whole pixels.
        ((400, 300), (408, 300), DUPLICATE),
        ((400, 300), (420, 300), VARIANT),
        ((400, 300), (300, 400), VARIANT),
    ],
)
def test_a_picture_that_was_stretched_is_no_copy(size, other, kind):
    descriptors = np.frombuffer(describe(picture(0)), np.uint8)[None]
    for a, b in ((size, other), (other, size)):
        found = compare(descriptors, descriptors, np.array([a], np.int32), np.array([b], np.int32))
        assert found.kind.tolist() == [kind]


def test_nothing_to_compare():
    none, sizes = np.empty((0, SIZE), np.uint8), np.empty((0, 2), np.int32)
    found = compare(none, none, sizes, sizes)
    assert len(found.kind) == 0
    assert found.numbers.keys() == set(NUMBERS)


@cache
def pool() -> tuple[np.ndarray, np.ndarray]:
    """Descriptors and sizes of copies, variants, strangers, and of what nobody draws."""
    images = [change(picture(number)) for number in range(3) for change in COPIES.values()]
    images += [change(number) for number in range(3) for change in VARIANTS.values()]
    images += [Image.new("RGB", (64, 48), color) for color in ("black", "white", "teal")]
    drawn = np.stack([np.frombuffer(describe(image), np.uint8) for image in images])
    mirrored = drawn[:2].copy()  # Only the luma is: exactly as bright.
    mirrored[:, : LUMA * LUMA] = drawn[:2, : LUMA * LUMA].reshape(2, LUMA, LUMA)[..., ::-1].reshape(2, -1)
    noise = np.random.default_rng(0).integers(0, 256, (4, SIZE), dtype=np.uint8)
    sizes = [image.size for image in (*images, *images[:2])] + [(64, 64)] * len(noise)
    return np.concatenate([drawn, mirrored, noise]), np.array(sizes, np.int32)


def of_pool(pairs: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
    """Kind and numbers of pairs, in one batch."""
    descriptors, sizes = pool()
    a, b = np.array(pairs).T
    found = compare(descriptors[a], descriptors[b], sizes[a], sizes[b])
    return list(zip(found.kind.tolist(), *(found.numbers[name].tolist() for name in NUMBERS), strict=True))


@cache
def alone(a: int, b: int) -> tuple[float, ...]:
    return of_pool([(a, b)])[0]


PLACES = st.integers(0, 59)
PAIRS = st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=CHUNK + 8)


@settings(max_examples=30, deadline=None)
@given(PAIRS)
@example([(0, 54), (55, 1), (7, 7)])
def test_a_verdict_is_about_its_pair_alone_and_the_same_from_both_sides(pairs):
    """Whatever else is in a batch, in whatever order, to the last bit."""
    together = of_pool(pairs)
    assert together == [alone(a, b) for a, b in pairs]
    assert together == of_pool([(b, a) for a, b in pairs])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 80), st.sampled_from(((64, 64), (640, 480))))
def test_noise_is_judged_the_same_from_both_sides(seed, strength, size):
    chance = np.random.default_rng(seed)
    a = chance.integers(0, 256, (1, SIZE), dtype=np.uint8)
    b = np.clip(a + chance.normal(0, strength, a.shape), 0, 255).astype(np.uint8)
    sizes, others = np.array([(64, 64)], np.int32), np.array([size], np.int32)
    there, back = compare(a, b, sizes, others), compare(b, a, others, sizes)
    assert there.kind == back.kind
    assert all(there.numbers[name] == back.numbers[name] for name in NUMBERS)
    assert (there.kind == DUPLICATE) <= (size == (64, 64))


def opened(path: Path) -> Image.Image:
    return decode(path.read_bytes()).image


def test_photographs(shared_data):
    folder = shared_data / "near_duplicates" / "imagededup"
    mixed = {path.stem: opened(path) for path in sorted((folder / "mixed_images").glob("ukbench00120*.jpg"))}
    original = mixed.pop("ukbench00120")
    assert (verdicts([(original, image) for image in mixed.values()]).kind != DUPLICATE).all()
    squeezed = mixed["ukbench00120_resize"]  # From 640 x 480 to 300 x 300.
    assert verdicts([(original, squeezed.resize((400, 300)))]).kind == [DUPLICATE]
    formats = [opened(folder / "formats_images" / f"ukbench09380.{name}") for name in ("bmp", "jpeg", "png", "webp")]
    assert (verdicts(list(combinations(formats, 2))).kind == DUPLICATE).all()
    distinct = [opened(path) for path in sorted((folder / "base_images").glob("*.jpg"))]
    found = verdicts(list(combinations(distinct, 2)))
    assert (found.kind != DUPLICATE).all()
    assert (found.kind == UNRELATED).mean() > 0.95


def test_illustrations(shared_data):
    paths = sorted(path for path in (shared_data / "illustrations").rglob("*") if path.suffix in (".png", ".jpg"))
    images = [opened(path) for path in random.Random(0).sample(paths, 24)]
    copies = [encoded(resized(image, 0.8), "JPEG", 85) for image in images]
    found = verdicts(list(product(images, copies))).kind.reshape(24, 24)
    assert np.array_equal(found == DUPLICATE, np.eye(24, dtype=bool))
