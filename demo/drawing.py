"""A small illustrator: `draw(scene)` is a pure function from a scene to a picture.

Figures are built in units of the head's radius with the head at the origin and y downwards, on a canvas three times as
large as the picture, then scaled down, which smooths every edge.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from demo.characters import COLORS, Character, Scene

SUPERSAMPLING = 3
Color = tuple[int, int, int]
Point = tuple[float, float]

SKIN: Color = (255, 226, 204)
SKIN_SHADE: Color = (240, 192, 168)
LINE: Color = (70, 48, 58)

_VIEWS = {"full_body": (0.150, 0.30), "upper_body": (0.235, 0.42), "portrait": (0.33, 0.53)}
"""Head radius, and the head's height in the picture, as shares of the picture's height."""


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB."""
    return _draw(scene, transparent=False).convert("RGB")


def draw_transparent(scene: Scene) -> Image.Image:
    """The figure alone, RGBA on nothing."""
    return _draw(scene, transparent=True)


def _draw(scene: Scene, *, transparent: bool) -> Image.Image:
    size = scene.width * SUPERSAMPLING, scene.height * SUPERSAMPLING
    if transparent:
        canvas = Image.new("RGBA", size, (255, 255, 255, 0))
    else:
        canvas = background(scene.background, size, random.Random(scene.seed)).convert("RGBA")
    radius, height = _VIEWS[scene.framing]
    unit = radius * scene.scale * min(size[1], size[0] * 1.15)
    origin = size[0] * (0.5 + scene.shift[0]), size[1] * (height + scene.shift[1])
    figure(Pen(canvas, origin, unit, flip=scene.flip), scene)
    return canvas.resize((scene.width, scene.height), Image.Resampling.LANCZOS)


class Pen:
    """Draws in units of the figure: outlined shapes with one line width."""

    def __init__(self, canvas: Image.Image, origin: Point, unit: float, *, flip: bool) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._origin, self._unit, self._sign = origin, unit, -1 if flip else 1
        self.width = max(2, round(unit * 0.055))

    def moved(self, x: float, y: float) -> "Pen":
        """The same pen with its origin moved by (x, y)."""
        pen = object.__new__(Pen)
        pen.__dict__.update(self.__dict__, _origin=self._at((x, y)))
        return pen

    def _at(self, point: Point) -> Point:
        return self._origin[0] + self._sign * point[0] * self._unit, self._origin[1] + point[1] * self._unit

    def shape(self, points: Sequence[Point], fill: Color, outline: Color | None = LINE) -> None:
        """A closed polygon; its corners are rounded by the outline."""
        places = [self._at(point) for point in points]
        self._draw.polygon(places, fill=fill)
        if outline:
            self._draw.line([*places, *places[:2]], fill=outline, width=self.width, joint="curve")

    def blob(self, points: Sequence[Point], fill: Color, outline: Color | None = LINE) -> None:
        """A closed smooth curve through the points (Catmull-Rom)."""
        self.shape(smooth(points), fill, outline)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color, outline: Color | None = LINE) -> None:
        """An ellipse by its centre and radii."""
        (left, top), (right, bottom) = self._at((x - rx, y - ry)), self._at((x + rx, y + ry))
        box = (min(left, right), top, max(left, right), bottom)
        self._draw.ellipse(box, fill=fill, outline=outline, width=self.width if outline else 0)

    def line(self, points: Sequence[Point], color: Color = LINE, width: float | None = None) -> None:
        """An open line with round ends; `width` in units."""
        pixels = self.width if width is None else max(1, round(width * self._unit))
        places = [self._at(point) for point in points]
        self._draw.line(places, fill=color, width=pixels, joint="curve")
        for x, y in (places[0], places[-1]):
            r = pixels / 2
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def limb(self, points: Sequence[Point], color: Color, width: float) -> None:
        """An outlined tube."""
        line = self.width / self._unit
        self.line(points, LINE, width + line)
        self.line(points, color, width - line)


def smooth(points: Sequence[Point], parts: int = 8) -> list[Point]:
    """A closed Catmull-Rom spline through the points, `parts` pieces between two."""
    p = np.asarray(points, dtype=float)
    before, after, later = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, parts, endpoint=False)[:, None, None]
    curve = 0.5 * (
        2 * p
        + (after - before) * t
        + (2 * before - 5 * p + 4 * after - later) * t**2
        + (3 * p - before - 3 * after + later) * t**3
    )
    return [(float(x), float(y)) for x, y in curve.transpose(1, 0, 2).reshape(-1, 2)]


def shade(color: Color, factor: float) -> Color:
    """Darker below 1, lighter (towards white) above."""
    if factor <= 1:
        return (round(color[0] * factor), round(color[1] * factor), round(color[2] * factor))
    return mix(color, (255, 255, 255), factor - 1)


def mix(one: Color, other: Color, share: float) -> Color:
    """A blend with `share` of the other colour."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return (red, green, blue)


# The figure, from back to front.


def figure(pen: Pen, scene: Scene) -> None:
    """A whole character."""
    c = scene.character
    head = pen.moved(scene.tilt, 0)
    back_hair(head, c)
    body(pen, scene)
    face(head, scene)
    front_hair(head, c)
    accessory(head, pen, c)


def body(pen: Pen, scene: Scene) -> None:
    """Legs, torso in its clothes, arms."""
    c = scene.character
    color = COLORS[c.clothes_color]
    dark, light = shade(color, 0.78), shade(color, 1.45)
    legs = color if c.clothes in ("overalls", "armor") else SKIN
    if c.clothes == "hoodie":
        legs = (72, 78, 104)
    for side in (-1, 1):
        pen.limb([(side * 0.32, 2.3), (side * 0.36, 3.5)], legs, 0.36)
        pen.ellipse(side * 0.42, 3.62, 0.28, 0.17, shade(dark, 0.6))
    pen.limb([(0, 0.7), (0, 1.15)], SKIN_SHADE, 0.3)
    if scene.pose == "hands_on_hips":
        arms(pen, scene)
    TORSOS[c.clothes](pen, color, dark, light)
    if scene.pose != "hands_on_hips":
        arms(pen, scene)


def arms(pen: Pen, scene: Scene) -> None:
    """Both arms with their hands; sleeves have the colour of the clothes."""
    c = scene.character
    sleeve = COLORS["white"] if c.clothes in ("serafuku", "overalls") else COLORS[c.clothes_color]
    width = 0.52 if c.clothes == "kimono" else 0.32
    down, up, hip = [(0.62, 1.3), (0.95, 1.8), (1.0, 2.25)], [(0.62, 1.3), (1.25, 0.95), (1.5, 0.2)], [
        (0.62, 1.3), (1.2, 1.75), (0.66, 2.1)
    ]  # fmt: skip
    left, right = {
        "standing": (down, down),
        "arms_up": (up, up),
        "waving": (down, up),
        "hands_on_hips": (hip, hip),
    }[scene.pose]
    for sign, arm in ((-1, left), (1, right)):
        points = [(sign * x, y) for x, y in arm]
        pen.limb(points[1:], SKIN, 0.24)
        pen.limb([points[0], points[1]], sleeve, width)
        pen.ellipse(*points[-1], 0.19, 0.19, SKIN)


def _dress(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.shape([(-0.55, 1.1), (0.55, 1.1), (0.62, 1.8), (1.25, 2.95), (-1.25, 2.95), (-0.62, 1.8)], color)
    pen.shape([(-1.16, 2.72), (1.16, 2.72), (1.27, 2.98), (-1.27, 2.98)], light)
    pen.shape([(-0.63, 1.74), (0.63, 1.74), (0.66, 1.95), (-0.66, 1.95)], dark)
    pen.shape([(-0.32, 1.1), (0.32, 1.1), (0, 1.4)], light)


def _hoodie(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.shape([(-0.66, 1.1), (0.66, 1.1), (0.78, 2.4), (-0.78, 2.4)], color)
    pen.shape([(-0.78, 2.22), (0.78, 2.22), (0.78, 2.45), (-0.78, 2.45)], dark)
    pen.shape([(-0.42, 1.8), (0.42, 1.8), (0.5, 2.15), (-0.5, 2.15)], dark)
    pen.blob([(-0.7, 1.0), (0, 1.3), (0.7, 1.0), (0.5, 1.32), (0, 1.48), (-0.5, 1.32)], dark)
    for side in (-1, 1):
        pen.line([(side * 0.14, 1.4), (side * 0.14, 1.7)], light)


def _serafuku(pen: Pen, color: Color, dark: Color, _light: Color) -> None:
    pen.shape([(-0.58, 1.1), (0.58, 1.1), (0.58, 1.95), (-0.58, 1.95)], COLORS["white"])
    pen.shape([(-0.58, 1.88), (0.58, 1.88), (0.98, 2.7), (-0.98, 2.7)], color)
    for x in (-0.5, -0.17, 0.17, 0.5):
        pen.line([(x * 0.8, 1.95), (x * 1.3, 2.66)], dark)
    pen.shape([(-0.62, 1.05), (0.62, 1.05), (0.5, 1.42), (0, 1.62), (-0.5, 1.42)], color)
    pen.shape([(0, 1.5), (0.3, 1.42), (0.26, 1.76), (0, 1.62), (-0.26, 1.76), (-0.3, 1.42)], (226, 62, 70))


def _kimono(pen: Pen, color: Color, _dark: Color, light: Color) -> None:
    pen.shape([(-0.62, 1.1), (0.62, 1.1), (0.78, 2.3), (0.7, 3.3), (-0.7, 3.3), (-0.78, 2.3)], color)
    pen.line([(-0.36, 1.08), (0.12, 1.7)], light, 0.14)
    pen.line([(0.36, 1.08), (-0.12, 1.7)], light, 0.14)
    pen.shape([(-0.72, 1.68), (0.72, 1.68), (0.76, 2.12), (-0.76, 2.12)], (250, 214, 110))
    for x, y in ((-0.4, 2.5), (0.3, 2.75), (-0.2, 3.0), (0.45, 2.4)):
        pen.ellipse(x, y, 0.1, 0.1, light, None)


def _armor(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.shape([(-0.8, 2.1), (0.8, 2.1), (0.95, 2.62), (-0.95, 2.62)], dark)
    pen.blob([(-0.66, 1.12), (0.66, 1.12), (0.74, 1.7), (0.55, 2.25), (-0.55, 2.25), (-0.74, 1.7)], color)
    pen.blob([(-0.4, 1.3), (0, 1.24), (0.1, 1.7), (-0.3, 1.95)], light, None)
    for side in (-1, 1):
        pen.ellipse(side * 0.72, 1.28, 0.33, 0.28, light)
    pen.ellipse(0, 1.6, 0.14, 0.14, (250, 206, 66))


def _overalls(pen: Pen, color: Color, dark: Color, _light: Color) -> None:
    pen.shape([(-0.58, 1.1), (0.58, 1.1), (0.66, 2.4), (-0.66, 2.4)], COLORS["white"])
    pen.shape([(-0.42, 1.48), (0.42, 1.48), (0.46, 1.8), (0.7, 1.9), (0.72, 2.5), (-0.72, 2.5), (-0.7, 1.9),
               (-0.46, 1.8)], color)  # fmt: skip
    pen.shape([(-0.22, 1.66), (0.22, 1.66), (0.2, 1.96), (-0.2, 1.96)], dark)
    for side in (-1, 1):
        pen.line([(side * 0.36, 1.5), (side * 0.42, 1.1)], color, 0.14)
        pen.ellipse(side * 0.34, 1.56, 0.07, 0.07, (250, 206, 66))


TORSOS: dict[str, Callable[[Pen, Color, Color, Color], None]] = {
    "dress": _dress,
    "hoodie": _hoodie,
    "serafuku": _serafuku,
    "kimono": _kimono,
    "armor": _armor,
    "overalls": _overalls,
}


def face(pen: Pen, scene: Scene) -> None:
    """Head, ears, eyes, mouth, blush."""
    for side in (-1, 1):
        pen.ellipse(side * 0.92, 0.14, 0.14, 0.2, SKIN)
    pen.blob([(-0.92, -0.25), (-0.6, -0.9), (0.6, -0.9), (0.92, -0.25), (0.84, 0.38), (0.42, 0.8), (0, 0.93),
              (-0.42, 0.8), (-0.84, 0.38)], SKIN)  # fmt: skip
    for side in (-1, 1):
        pen.ellipse(side * 0.58, 0.5, 0.17, 0.09, (255, 182, 176), None)
        eye(pen, side * 0.42, scene)
    mouth(pen, scene.expression)


def eye(pen: Pen, x: float, scene: Scene) -> None:
    """One eye: lash, white, iris lit from below, pupil, two highlights."""
    if scene.expression == "closed_eyes":
        pen.line([(x - 0.22, 0.18), (x - 0.1, 0.27), (x + 0.1, 0.27), (x + 0.22, 0.18)], LINE, 0.08)
        return
    color = COLORS[scene.character.eyes]
    pen.ellipse(x, 0.2, 0.24, 0.32, (255, 255, 255), None)
    pen.ellipse(x, 0.21, 0.2, 0.3, shade(color, 0.65), None)
    pen.ellipse(x, 0.29, 0.17, 0.2, color, None)
    pen.ellipse(x, 0.37, 0.11, 0.1, shade(color, 1.5), None)
    pen.ellipse(x, 0.2, 0.09, 0.13, (40, 30, 48), None)
    pen.ellipse(x - 0.08, 0.07, 0.08, 0.09, (255, 255, 255), None)
    pen.ellipse(x + 0.09, 0.36, 0.04, 0.045, (255, 255, 255), None)
    pen.line([(x - 0.25, 0.06), (x - 0.14, -0.09), (x + 0.14, -0.09), (x + 0.25, 0.06)], LINE, 0.09)
    if scene.expression == "serious":
        inner = -math.copysign(0.2, x)
        pen.line([(x + inner, -0.2), (x - inner, -0.34)], LINE, 0.06)


def mouth(pen: Pen, expression: str) -> None:
    """A mouth for each expression."""
    if expression == "open_mouth":
        pen.blob([(-0.18, 0.55), (0, 0.53), (0.18, 0.55), (0.1, 0.74), (-0.1, 0.74)], (196, 74, 84))
    elif expression == "serious":
        pen.line([(-0.12, 0.62), (0.12, 0.62)], LINE, 0.05)
    else:
        pen.line([(-0.16, 0.56), (-0.06, 0.63), (0.06, 0.63), (0.16, 0.56)], LINE, 0.05)


def back_hair(pen: Pen, c: Character) -> None:
    """What of the hair is behind the head and the body."""
    color = shade(COLORS[c.hair], 0.86)
    if c.hair_style == "long_hair":
        pen.blob([(-1.08, -0.4), (0, -1.2), (1.08, -0.4), (1.25, 1.2), (1.15, 2.5), (0.6, 2.35), (0, 2.55),
                  (-0.6, 2.35), (-1.15, 2.5), (-1.25, 1.2)], color)  # fmt: skip
    elif c.hair_style == "bob_cut":
        pen.blob([(-1.1, -0.3), (0, -1.2), (1.1, -0.3), (1.22, 0.7), (0.8, 1.08), (0, 1.0), (-0.8, 1.08),
                  (-1.22, 0.7)], color)  # fmt: skip
    elif c.hair_style == "twintails":
        for side in (-1, 1):
            pen.blob([(side * x, y) for x, y in ((0.85, -0.6), (1.5, -0.75), (1.95, 0.3), (1.75, 1.7), (1.45, 2.2),
                                                 (1.3, 1.2), (1.15, 0.1))], color)  # fmt: skip
            pen.ellipse(side * 1.0, -0.6, 0.2, 0.2, (236, 84, 96))
    elif c.hair_style == "ponytail":
        pen.blob([(0.3, -0.95), (1.2, -1.25), (1.85, -0.4), (1.7, 0.9), (1.3, 1.6), (1.2, 0.7), (0.9, -0.2)], color)
        pen.ellipse(0.72, -0.9, 0.22, 0.2, (236, 84, 96))
    elif c.hair_style == "spiked_hair":
        spikes = [(math.sin(a) * r, -0.15 - math.cos(a) * r) for a, r in zip(
            np.linspace(-2.0, 2.0, 15).tolist(), [1.05, 1.5] * 7 + [1.05], strict=True)]  # fmt: skip
        pen.shape([*spikes, (0, 0.3)], color)
    elif c.hair_style == "double_bun":
        for side in (-1, 1):
            pen.ellipse(side * 0.8, -0.95, 0.46, 0.44, color)


def front_hair(pen: Pen, c: Character) -> None:
    """Cap of hair, bangs, side locks, and the shine."""
    color = COLORS[c.hair]
    if c.hair_style in ("spiked_hair", "ponytail"):
        bangs = [(-0.85, 0.12), (-0.66, -0.3), (-0.4, 0.05), (-0.2, -0.42), (0.15, 0.02), (0.3, -0.4), (0.62, -0.02),
                 (0.7, -0.34), (0.86, 0.1)]  # fmt: skip
    else:
        bangs = [(-0.9, 0.2), (-0.62, -0.22), (-0.36, -0.04), (-0.14, -0.26), (0.1, -0.04), (0.34, -0.26), (0.6, -0.06),
                 (0.72, -0.22), (0.9, 0.2)]  # fmt: skip
    cap = [(1.04, -0.2), (0.86, -0.78), (0.45, -1.1), (0, -1.2), (-0.45, -1.1), (-0.86, -0.78), (-1.04, -0.2)]
    pen.shape([*bangs, *cap], color)
    if c.hair_style in ("long_hair", "bob_cut", "double_bun", "twintails"):
        for side in (-1, 1):
            length = 0.75 if c.hair_style == "bob_cut" else 1.15
            pen.blob([(side * x, y) for x, y in ((1.02, -0.3), (1.1, 0.3), (0.98, length), (0.84, 0.4), (0.84, -0.1))],
                     color)  # fmt: skip
    pen.line([(-0.55, -0.72), (-0.25, -0.85), (0.1, -0.88)], shade(color, 1.5), 0.11)
    pen.line([(0.32, -0.84), (0.5, -0.76)], shade(color, 1.5), 0.1)


def accessory(head: Pen, pen: Pen, c: Character) -> None:
    """What is worn on the head, the nose or around the neck."""
    color = COLORS[c.accessory_color]
    if c.accessory == "hair_bow":
        for side in (-1, 1):
            head.blob([(0.55, -1.0), (0.55 + side * 0.55, -1.35), (0.55 + side * 0.55, -0.7)], color)
        head.ellipse(0.55, -1.02, 0.14, 0.14, shade(color, 0.8))
    elif c.accessory == "glasses":
        for side in (-1, 1):
            for radius in (0.33, 0.35, 0.37):
                head.line(circle(side * 0.42, 0.2, radius), color, 0.04)
        head.line([(-0.08, 0.18), (0.08, 0.18)], color, 0.07)
    elif c.accessory == "witch_hat":
        head.blob([(-1.75, -0.62), (0, -1.02), (1.75, -0.62), (0.9, -0.5), (0, -0.62), (-0.9, -0.5)], shade(color, 0.7))
        head.shape(
            [(-0.95, -0.8), (-0.35, -1.9), (0.5, -2.5), (0.35, -1.8), (0.95, -0.8), (0, -1.0)], shade(color, 0.7)
        )
        head.shape(
            [(-0.93, -0.86), (0, -1.06), (0.93, -0.86), (0.84, -1.08), (0, -1.3), (-0.84, -1.08)], (250, 206, 66)
        )
    elif c.accessory == "cat_ears":
        for side in (-1, 1):
            head.shape([(side * 0.3, -1.0), (side * 0.95, -1.75), (side * 1.0, -0.65)], color)
            head.shape([(side * 0.5, -1.03), (side * 0.86, -1.45), (side * 0.88, -0.85)], (255, 190, 190), None)
    elif c.accessory == "crown":
        points = [(-0.55, -0.95), (-0.65, -1.6), (-0.3, -1.25), (0, -1.72), (0.3, -1.25), (0.65, -1.6), (0.55, -0.95)]
        head.shape(points, color)
        head.ellipse(0, -1.12, 0.1, 0.1, (226, 62, 70))
    elif c.accessory == "hair_flower":
        for angle in range(5):
            turn = angle * 2 * math.pi / 5
            head.ellipse(-0.72 + 0.2 * math.sin(turn), -0.68 - 0.2 * math.cos(turn), 0.17, 0.17, color)
        head.ellipse(-0.72, -0.68, 0.12, 0.12, (250, 206, 66))
    elif c.accessory == "scarf":
        pen.blob([(-0.75, 0.95), (0, 1.12), (0.75, 0.95), (0.7, 1.3), (0, 1.45), (-0.7, 1.3)], color)
        pen.shape([(0.2, 1.3), (0.55, 1.25), (0.62, 2.1), (0.25, 2.15)], color)


def circle(x: float, y: float, radius: float) -> list[Point]:
    """Points of a circle."""
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 33).tolist()]


# Backgrounds.


def background(name: str, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A background by its tag."""
    top, bottom = {
        "sky": ((118, 182, 240), (218, 240, 255)),
        "sunset": ((96, 72, 150), (255, 176, 104)),
        "forest": ((150, 206, 160), (84, 140, 84)),
        "night": ((18, 22, 60), (62, 62, 122)),
        "beach": ((136, 206, 246), (226, 246, 255)),
        "indoors": ((250, 232, 206), (240, 212, 178)),
        "flower_field": ((176, 220, 250), (240, 250, 255)),
        "simple_background": ((255, 255, 255), (255, 255, 255)),
        "polka_dot_background": ((255, 236, 240), (255, 236, 240)),
    }[name]
    canvas = gradient(size, top, bottom)
    if name in _DETAILS:
        _DETAILS[name](ImageDraw.Draw(canvas), *size, rng)
    return canvas


def gradient(size: tuple[int, int], top: Color, bottom: Color) -> Image.Image:
    """From one colour above to another below."""
    share = np.linspace(0, 1, size[1])[:, None, None]
    column = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
    return Image.fromarray(np.broadcast_to(column.round().astype(np.uint8), (size[1], size[0], 3)).copy())


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: Color) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _sky(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    for _ in range(rng.randint(2, 4)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, 0.6 * h), rng.uniform(0.05, 0.09) * h
        for i in range(-2, 3):
            _disc(pen, x + i * r, y + abs(i) * r * 0.3, r * (1.3 - abs(i) * 0.28), (255, 255, 255))


def _sunset(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    _disc(pen, rng.uniform(0.1, 0.9) * w, 0.68 * h, 0.16 * h, (255, 232, 150))
    points = [(x / 8 * w, h * rng.uniform(0.68, 0.82)) for x in range(9)]
    pen.polygon([*points, (w, h), (0, h)], fill=(92, 62, 110))


def _forest(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    pen.rectangle((0, 0.8 * h, w, h), fill=(98, 158, 84))
    for x in sorted(rng.uniform(0, w) for _ in range(rng.randint(5, 8))):
        top, half = rng.uniform(0.05, 0.35) * h, rng.uniform(0.07, 0.13) * w
        pen.rectangle((x - 0.015 * w, 0.6 * h, x + 0.015 * w, 0.86 * h), fill=(112, 80, 56))
        for i in range(3):
            y = top + i * 0.15 * h
            green = rng.randint(96, 140)
            pen.polygon([(x, y), (x - half, y + 0.28 * h), (x + half, y + 0.28 * h)], fill=(44, green, 70))


def _night(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    for _ in range(40):
        _disc(pen, rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.002, 0.008) * h, (255, 250, 220))
    x, y, r = rng.uniform(0.1, 0.9) * w, rng.uniform(0.1, 0.3) * h, 0.1 * h
    _disc(pen, x, y, r, (255, 244, 190))
    _disc(pen, x + 0.4 * r, y - 0.25 * r, 0.85 * r, (28, 32, 74))


def _beach(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    horizon = rng.uniform(0.45, 0.6) * h
    pen.rectangle((0, horizon, w, h), fill=(60, 150, 214))
    pen.polygon([(0, 0.78 * h), (w, rng.uniform(0.7, 0.86) * h), (w, h), (0, h)], fill=(246, 226, 172))
    _disc(pen, rng.uniform(0, w), 0.14 * h, 0.07 * h, (255, 240, 160))


def _indoors(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    pen.rectangle((0, 0.8 * h, w, h), fill=(176, 128, 92))
    x = rng.choice((0.06, 0.6)) * w
    box = (x, 0.12 * h, x + 0.34 * w, 0.5 * h)
    pen.rectangle(box, fill=(170, 220, 250), outline=(132, 92, 66), width=max(2, w // 60))
    middle = (box[0] + box[2]) / 2
    pen.line((middle, box[1], middle, box[3]), fill=(132, 92, 66), width=max(2, w // 80))


def _flower_field(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    pen.rectangle((0, 0.55 * h, w, h), fill=(126, 192, 96))
    for _ in range(46):
        x, y = rng.uniform(0, w), rng.uniform(0.58, 1.0) * h
        r = 0.012 * h * (0.6 + y / h)
        color = rng.choice(((246, 120, 150), (255, 214, 90), (255, 255, 255), (180, 130, 226)))
        for i in range(4):
            _disc(pen, x + r * math.cos(i * 1.57), y + r * math.sin(i * 1.57), r, color)
        _disc(pen, x, y, 0.6 * r, (250, 180, 60))


def _polka_dots(pen: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    step = rng.uniform(0.1, 0.16) * h
    color = rng.choice(((255, 196, 210), (190, 220, 250), (200, 236, 200)))
    for row in range(int(h / step) + 2):
        for column in range(int(w / step) + 2):
            _disc(pen, (column + row % 2 / 2) * step, row * step, 0.24 * step, color)


_DETAILS: dict[str, Callable[[ImageDraw.ImageDraw, int, int, random.Random], None]] = {
    "sky": _sky,
    "sunset": _sunset,
    "forest": _forest,
    "night": _night,
    "beach": _beach,
    "indoors": _indoors,
    "flower_field": _flower_field,
    "polka_dot_background": _polka_dots,
}
