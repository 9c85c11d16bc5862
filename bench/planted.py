"""A corpus whose duplicates are known: drawn and real pictures, copies of them, and variants that are no copies.

Pictures come in families: a base, copies of it (`COPIES`, what happens to a picture on its way through the web) and
variants of it (`VARIANTS`, what an artist publishes beside it). A family is a function of seed and number alone.
"""

import io
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from demo.characters import CLOTHES, CLOTHES_COLORS, HAIR_COLORS, Scene, random_character, random_scene
from demo.drawing import draw, smooth
from shared.images import decode

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "illustrations"
"""Pictures that people drew, where they are at hand."""

COPIES_PER_FAMILY, VARIANTS_PER_FAMILY = 3, 2

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Planted:
    """One file and the truth about it."""

    data: bytes
    family: int
    content: int
    """Within the family: equal for copies of the same picture."""
    kind: str
    """base, a key of COPIES, or the name of a variant."""
    source: str
    """What the family is drawn by: scene, figure, or real."""


def family(seed: int, number: int, real: tuple[Path, ...] = ()) -> list[Planted]:
    """The base, its copies and its variants."""
    rng = random.Random(f"{seed} {number}")
    source = "real" if real and number % 10 == 9 else ("scene", "figure")[number % 2]
    base, variants = SOURCES[source](rng, number, real)
    original = encoded(base, rng.choice(("PNG", "JPEG", "WEBP")), rng.randint(88, 95))
    base = decode(original).image
    found = [Planted(original, number, 0, "base", source)]
    for kind in rng.sample(list(COPIES), COPIES_PER_FAMILY):
        found.append(Planted(COPIES[kind](rng, base), number, 0, kind, source))
    for content, kind in enumerate(rng.sample(list(variants), VARIANTS_PER_FAMILY), 1):
        image = variants[kind]()
        if image is not None and visible(base, image):
            found.append(Planted(published(rng, image), number, content, kind, source))
    return found


def visible(base: Image.Image, variant: Image.Image) -> bool:
    """Whether at least 0.3 % of the picture differ by 20 levels: a person can see that these are two pictures."""
    difference = np.abs(np.asarray(base, dtype=np.int16) - np.asarray(variant, dtype=np.int16)).max(axis=-1)
    return bool((difference >= 20).mean() >= 0.003)


def encoded(image: Image.Image, kind: str, quality: int = 90) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality, **({"method": 0} if kind == "WEBP" else {}))
    return buffer.getvalue()


def published(rng: random.Random, image: Image.Image) -> bytes:
    """A variant is a file of its own: often another size and format than the base."""
    if rng.random() < 0.5:
        image = resized(rng, image)
    return encoded(image, rng.choice(("PNG", "JPEG", "WEBP")), rng.randint(75, 95))


# What happens to a picture on its way.


def resized(rng: random.Random, image: Image.Image) -> Image.Image:
    """Scaled to 0.3 to 1.0 of its size."""
    share = rng.uniform(0.3, 1.0)
    method = rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR))
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), method)


def cropped(rng: random.Random, image: Image.Image) -> Image.Image:
    """1 to 6 % of the width and of the height cut off, anyhow split between the two sides."""
    box = []
    for side in image.size:
        cut, where = rng.uniform(0.01, 0.06) * side, rng.random()
        box.append((round(cut * where), side - round(cut * (1 - where))))
    (left, right), (top, bottom) = box
    return image.crop((left, top, right, bottom))


def brightened(rng: random.Random, image: Image.Image) -> Image.Image:
    """All values times 0.8 to 1.2, but not by less than 3 %."""
    return ImageEnhance.Brightness(image).enhance(rng.choice((rng.uniform(0.8, 0.97), rng.uniform(1.03, 1.2))))


def signed(rng: random.Random, image: Image.Image) -> Image.Image:
    """A line of text in a corner, as large as sites write it, opaque or half transparent."""
    text = rng.choice(("@pillow_painter", "pillow.example.org", "hand of python 2024", "(c) somebody", "id 1234567"))
    font = ImageFont.load_default(max(8, round(min(image.size) * rng.uniform(0.022, 0.038))))
    layer = Image.new("RGBA", image.size)
    left, top, right, bottom = (round(value) for value in font.getbbox(text))
    margin = round(0.012 * min(image.size))
    x = rng.choice((margin, image.width - (right - left) - margin)) - left
    y = rng.choice((margin, image.height - (bottom - top) - margin)) - top
    light = rng.random() < 0.5
    ink, edge = ((255, 255, 255), (40, 40, 40)) if light else ((30, 30, 30), (230, 230, 230))
    alpha = rng.randint(110, 255)
    stroke = rng.choice((0, 1))
    ImageDraw.Draw(layer).text((x, y), text, (*ink, alpha), font, stroke_width=stroke, stroke_fill=(*edge, alpha))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def with_logo(rng: random.Random, image: Image.Image) -> Image.Image:
    """A small coloured badge in a corner."""
    side = round(min(image.size) * rng.uniform(0.04, 0.075))
    margin = round(0.012 * min(image.size))
    x, y = rng.choice((margin, image.width - side - margin)), rng.choice((margin, image.height - side - margin))
    color = tuple(rng.randint(0, 255) for _ in range(3))
    layer = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(layer)
    pen.ellipse((x, y, x + side, y + side), fill=(*color, rng.randint(150, 255)))
    pen.line((x + 0.3 * side, y + 0.5 * side, x + 0.7 * side, y + 0.5 * side), (255, 255, 255, 255), max(1, side // 7))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def with_strip(rng: random.Random, image: Image.Image) -> Image.Image:
    """A half transparent strip with text along the lower edge."""
    height = round(image.height * rng.uniform(0.03, 0.07))
    layer = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(layer)
    grey = rng.choice((0, 255))
    pen.rectangle((0, image.height - height, *image.size), fill=(grey, grey, grey, rng.randint(70, 160)))
    font = ImageFont.load_default(max(8, round(0.6 * height)))
    pen.text((0.05 * image.width, image.height - 0.9 * height), "pillow.example.org", (255 - grey,) * 3, font)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


COPIES: dict[str, Callable[[random.Random, Image.Image], bytes]] = {
    "jpeg": lambda rng, image: encoded(image, "JPEG", rng.randint(40, 95)),
    "crop": lambda rng, image: encoded(cropped(rng, image), rng.choice(("PNG", "JPEG")), 90),
    "resize": lambda rng, image: encoded(resized(rng, image), "PNG"),
    "text": lambda rng, image: encoded(signed(rng, image), "JPEG", rng.randint(75, 95)),
    "webp": lambda rng, image: encoded(image, "WEBP", rng.randint(40, 95)),
    "brightness": lambda rng, image: encoded(brightened(rng, image), rng.choice(("PNG", "JPEG")), 90),
    "resize_jpeg": lambda rng, image: encoded(resized(rng, image), "JPEG", rng.randint(40, 95)),
    "logo": lambda rng, image: encoded(with_logo(rng, image), "JPEG", rng.randint(75, 95)),
    "strip": lambda rng, image: encoded(with_strip(rng, image), "JPEG", rng.randint(75, 95)),
}

# Three ways to come by a base picture and its variants.

Variants = dict[str, Callable[[], Image.Image | None]]


def scene(rng: random.Random, _number: int, _real: tuple[Path, ...]) -> tuple[Image.Image, Variants]:
    """A character of the demo, its longer side 450 to 800 pixels."""
    small = random_scene(rng, random_character(rng))
    longer = 450 * (800 / 450) ** rng.random() / max(small.width, small.height)
    base = replace(
        small,
        width=round(small.width * longer),
        height=round(small.height * longer),
        expression=rng.choice(("smile", "open_mouth", "serious")),
    )

    def hair() -> Image.Image:
        return drawn(base, hair=other(rng, HAIR_COLORS, base.character.hair))

    def clothes() -> Image.Image:
        return drawn(base, clothes_color=other(rng, CLOTHES_COLORS, base.character.clothes_color))

    def costume() -> Image.Image:
        return drawn(base, clothes=other(rng, CLOTHES, base.character.clothes))

    def eyes() -> Image.Image:
        return _with_eyes_shut(base)

    return draw(base), {"hair_color": hair, "eyes_shut": eyes, "clothes_color": clothes, "costume": costume}


def drawn(base: Scene, **changes: Any) -> Image.Image:
    """The scene with another look."""
    return draw(replace(base, character=replace(base.character, **changes)))


def _with_eyes_shut(base: Scene) -> Image.Image:
    """The scene with nothing changed but the eyes: the mouth of closed_eyes is that of a smile."""
    opened, shut = draw(replace(base, expression="smile")), draw(replace(base, expression="closed_eyes"))
    changed = np.asarray(opened) != np.asarray(shut)
    mask = Image.fromarray((changed.any(axis=-1) * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(9))
    return Image.composite(shut, draw(base), mask)


def other(rng: random.Random, names: tuple[str, ...], name: str) -> str:
    """One of the others."""
    return rng.choice([one for one in names if one != name])


@dataclass(frozen=True)
class Figure:
    """A creature on white: lengths in shares of the height, outlines as half widths from top to bottom."""

    size: tuple[int, int]
    head: tuple[float, float, float]
    hair: tuple[float, ...]
    torso: tuple[float, ...]
    legs: tuple[float, float, float]
    arms: tuple[float, float, float, float]
    ears: tuple[float, float]
    tail: tuple[float, float, float]
    lean: float
    eyes: tuple[float, float]
    shut: bool
    pattern: int
    colors: tuple[Color, ...]
    """Of skin, hair, torso, legs, and what is drawn on the torso."""


def figure(rng: random.Random, _number: int, _real: tuple[Path, ...]) -> tuple[Image.Image, Variants]:
    """A creature on plain white."""
    base = random_figure(rng)

    def hair() -> Image.Image:
        return draw_figure(recolored(rng, base, 1))

    def clothes() -> Image.Image:
        return draw_figure(recolored(rng, base, 2))

    def costume() -> Image.Image:
        torso = tuple(rng.uniform(0.06, 0.17) for _ in base.torso)
        return draw_figure(replace(base, torso=torso, pattern=(base.pattern + rng.randint(1, 3)) % 4))

    def eyes() -> Image.Image:
        return draw_figure(replace(base, shut=True))

    return draw_figure(base), {"hair_color": hair, "eyes_shut": eyes, "clothes_color": clothes, "costume": costume}


def random_figure(rng: random.Random) -> Figure:
    """Some creature."""
    height = rng.randint(420, 900)

    def color() -> Color:
        return rng.randint(20, 250), rng.randint(20, 250), rng.randint(20, 250)

    skin = rng.randint(215, 255), rng.randint(185, 230), rng.randint(165, 210)
    return Figure(
        size=(round(height * rng.uniform(0.55, 1.1)), height),
        head=(rng.uniform(0.08, 0.15), rng.uniform(0.08, 0.15), rng.uniform(0.2, 0.3)),
        hair=tuple(rng.uniform(0.7, 1.6) for _ in range(9)),
        torso=tuple(rng.uniform(0.06, 0.17) for _ in range(4)),
        legs=(rng.uniform(0.03, 0.09), rng.uniform(0.025, 0.06), rng.uniform(-0.04, 0.06)),
        arms=(rng.uniform(-0.9, 1.4), rng.uniform(-0.9, 1.4), rng.uniform(0.12, 0.24), rng.uniform(0.02, 0.045)),
        ears=(rng.choice((0.0, rng.uniform(0.03, 0.12))), rng.uniform(0.02, 0.05)),
        tail=(rng.choice((-1, 0, 1)), rng.uniform(0.1, 0.25), rng.uniform(-0.2, 0.2)),
        lean=rng.uniform(-0.05, 0.05),
        eyes=(rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.32)),
        shut=False,
        pattern=rng.randrange(4),
        colors=(
            skin,
            color(),
            color(),
            color(),
            color(),
        ),
    )


def recolored(rng: random.Random, base: Figure, part: int) -> Figure:
    """The figure with one part in a colour that is not much like the old one."""
    old, new = base.colors[part], base.colors[part]
    while sum(abs(a - b) for a, b in zip(old, new, strict=True)) < 120:
        new = (rng.randint(20, 250), rng.randint(20, 250), rng.randint(20, 250))
    return replace(base, colors=(*base.colors[:part], new, *base.colors[part + 1 :]))


def draw_figure(f: Figure) -> Image.Image:
    """Drawn at twice the size and scaled down."""
    width, height = f.size
    image = Image.new("RGB", (2 * width, 2 * height), "white")
    pen = ImageDraw.Draw(image)
    unit, line = 2.0 * height, max(2, round(2 * height * 0.006))
    ink = (50, 38, 48)
    skin, hair, cloth, legs, trim = f.colors
    rx, ry, y = f.head
    x = 0.5 * width / height + f.lean
    neck, hip = y + 0.8 * ry, 0.68

    def place(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(px * unit, py * unit) for px, py in points]

    def shape(points: list[tuple[float, float]], fill: Color) -> None:
        places = place(points)
        pen.polygon(places, fill)
        pen.line([*places, *places[:2]], ink, line, "curve")

    def limb(points: list[tuple[float, float]], fill: Color, thick: float) -> None:
        places = place(points)
        for ink_or_fill, width in ((ink, thick * unit + 2 * line), (fill, thick * unit)):
            pen.line(places, ink_or_fill, round(width), "curve")
            for px, py in places:
                pen.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), ink_or_fill)

    def oval(px: float, py: float, w: float, h: float, fill: Color, outline: Color | None = ink) -> None:
        box = ((px - w) * unit, (py - h) * unit, (px + w) * unit, (py + h) * unit)
        pen.ellipse(box, fill, outline, line if outline else 0)

    if f.tail[0]:
        limb(
            [(x, hip), (x + f.tail[0] * f.tail[1], hip + 0.1), (x + f.tail[0] * 1.5 * f.tail[1], hip + f.tail[2])],
            hair,
            0.03,
        )
    spread, thick, bend = f.legs
    for side in (-1, 1):
        limb([(x + side * spread, hip), (x + side * (spread + bend), 0.8), (x + side * spread, 0.93)], legs, thick)
    curls = [(math.sin(a) * rx * r * 1.25, -math.cos(a) * ry * r * 1.25) for a, r in zip(
        np.linspace(-2.6, 2.6, len(f.hair)).tolist(), f.hair, strict=True)]  # fmt: skip
    shape([(x + px, y + py) for px, py in smooth(curls)], hair)
    steps = [neck + (hip + 0.03 - neck) * i / (len(f.torso) - 1) for i in range(len(f.torso))]
    right = list(zip(f.torso, steps, strict=True))
    shape([(x + w, py) for w, py in right] + [(x - w, py) for w, py in reversed(right)], cloth)
    if f.pattern == 1:
        oval(x, (neck + hip) / 2, 0.05, 0.06, trim)
    elif f.pattern == 2:
        limb([(x - 0.05, neck + 0.06), (x + 0.05, hip - 0.06)], trim, 0.025)
    elif f.pattern == 3:
        limb([(x - 0.06, hip - 0.05), (x + 0.06, hip - 0.05)], trim, 0.02)
    first, second, length, thick = f.arms
    for side, angle in ((-1, first), (1, second)):
        start = (x + side * f.torso[0], neck + 0.04)
        elbow = (start[0] + side * length * math.cos(angle), start[1] + length * math.sin(angle))
        limb([start, elbow, (elbow[0] + side * 0.02, elbow[1] + length * 0.7 * math.sin(angle + 0.6))], skin, thick)
    for side in (-1, 1):
        if f.ears[0]:
            shape([(x + side * rx * 0.3, y - ry * 0.8), (x + side * (rx * 0.6 + f.ears[1]), y - ry - f.ears[0]),
                   (x + side * rx * 0.9, y - ry * 0.4)], hair)  # fmt: skip
    oval(x, y, rx, ry, skin)
    shape([(x - rx, y - 0.1 * ry), (x - 0.6 * rx, y - 0.9 * ry), (x, y - 1.1 * ry), (x + 0.6 * rx, y - 0.9 * ry),
           (x + rx, y - 0.1 * ry), (x + 0.3 * rx, y - 0.45 * ry), (x - 0.3 * rx, y - 0.4 * ry)], hair)  # fmt: skip
    for side in (-1, 1):
        ex, ey, size = x + side * f.eyes[0] * rx, y + 0.2 * ry, f.eyes[1]
        if f.shut:
            pen.line(
                place([(ex - 0.7 * size * rx, ey), (ex, ey + 0.25 * size * ry), (ex + 0.7 * size * rx, ey)]), ink, line
            )
        else:
            oval(ex, ey, 0.7 * size * rx, size * ry, (255, 255, 255))
            oval(ex, ey + 0.1 * size * ry, 0.4 * size * rx, 0.7 * size * ry, trim, None)
            oval(ex, ey + 0.1 * size * ry, 0.2 * size * rx, 0.35 * size * ry, ink, None)
    pen.line(place([(x - 0.15 * rx, y + 0.65 * ry), (x + 0.15 * rx, y + 0.65 * ry)]), ink, line)
    return image.resize(f.size, Image.Resampling.LANCZOS)


def painting(rng: random.Random, number: int, real: tuple[Path, ...]) -> tuple[Image.Image, Variants]:
    """A picture somebody drew; the variants are made by a machine."""
    base = decode(real[number // 10 % len(real)].read_bytes()).image

    def recolor() -> Image.Image | None:
        return hue_turned(rng, base)

    def erased() -> Image.Image | None:
        return retouched(rng, base)

    return base, {"recolor": recolor, "retouch": erased}


def hue_turned(rng: random.Random, image: Image.Image) -> Image.Image | None:
    """What has one saturated colour within a box gets another hue; None where there is no such thing."""
    hue, saturation, _value = (np.array(band, dtype=np.int16) for band in image.convert("HSV").split())
    rows, columns = np.nonzero(saturation > 70)
    if not len(rows):
        return None
    for _ in range(20):
        one = rng.randrange(len(rows))
        side = 0.25 * max(image.size)
        near = (np.abs(rows - rows[one]) < side) & (np.abs(columns - columns[one]) < side)
        alike = np.abs((hue[rows, columns] - hue[rows[one], columns[one]] + 128) % 256 - 128) < 14
        chosen = near & alike
        if 0.02 <= chosen.sum() / hue.size <= 0.2:
            mask = np.zeros(hue.shape, dtype=np.uint8)
            mask[rows[chosen], columns[chosen]] = 255
            turned = Image.fromarray(((hue + rng.randint(70, 186)) % 256).astype(np.uint8))
            bands = image.convert("HSV").split()
            new = Image.merge("HSV", (turned, *bands[1:])).convert("RGB")
            return Image.composite(new, image, Image.fromarray(mask).filter(ImageFilter.GaussianBlur(1)))
    return None


def retouched(rng: random.Random, image: Image.Image) -> Image.Image | None:
    """A spot of 5 to 9 % of the longer side is painted over with the colour around it."""
    size = round(max(image.size) * rng.uniform(0.05, 0.09))
    for _ in range(30):
        x, y = (round(rng.uniform(0.15, 0.8) * side) for side in image.size)
        spot = np.asarray(image.crop((x, y, x + size, y + size)), dtype=np.float32)
        if spot.std(axis=(0, 1)).max() > 45:
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).ellipse((x, y, x + size, y + size), fill=255)
            color = tuple(np.median(np.concatenate([spot[0], spot[-1], spot[:, 0], spot[:, -1]]), axis=0).astype(int))
            plain = Image.new("RGB", image.size, color)
            return Image.composite(plain, image, mask.filter(ImageFilter.GaussianBlur(size / 12)))
    return None


SOURCES: dict[str, Callable[[random.Random, int, tuple[Path, ...]], tuple[Image.Image, Variants]]] = {
    "scene": scene,
    "figure": figure,
    "real": painting,
}


def real_pictures() -> tuple[Path, ...]:
    """Files of REAL in a fixed, mixed order."""
    files = sorted(path for path in REAL.rglob("*") if path.suffix.lower() in (".png", ".jpg"))
    return tuple(random.Random(0).sample(files, len(files)))


def families(seed: int, count: int) -> Iterator[list[Planted]]:
    """The first families of a seed."""
    real = real_pictures()
    return (family(seed, number, real) for number in range(count))
