"""A picture, what became of it, and its captions on one sheet of paper."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PICTURE = 640
"""Longest side at which a picture is shown."""
SMALLEST = 384
"""Small pictures are enlarged to this, pixel by pixel."""
MARGIN, GAP = 28, 20
INK, PALE, PAPER = "#1d1d1f", "#6e6e73", "#ffffff"
BOX, ACCENT = "#f3f4f6", "#3b6fd4"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Caption:
    """A caption variant of a picture."""

    variant: str
    text: str
    tokens: int


@dataclass(frozen=True)
class _Block:
    """Lines of text in one font, and the space below them."""

    lines: list[str]
    font: Font
    colour: str
    below: int

    @property
    def height(self) -> int:
        return len(self.lines) * _line_height(self.font) + self.below

    def draw(self, pen: ImageDraw.ImageDraw, left: int, top: int) -> int:
        """Returns the place below."""
        for number, line in enumerate(self.lines):
            pen.text((left, top + number * _line_height(self.font)), line, self.colour, self.font)
        return top + self.height


def _line_height(font: Font) -> int:
    top, bottom = font.getbbox("Ãgj|")[1::2]
    return round((bottom - top) * 1.35)


def sheet(
    title: str,
    subtitle: str,
    pictures: Sequence[tuple[Image.Image, str, str]],
    captions: Sequence[Caption],
) -> Image.Image:
    """Pictures (each with a name and a line about it) side by side, captions below, as one RGB image."""
    head, body, small = (ImageFont.load_default(size) for size in (21, 17, 14))
    shown = [_scaled(picture) for picture, _, _ in pictures]
    columns = [max(picture.width, SMALLEST) for picture in shown]
    width = sum(columns) + GAP * (len(columns) - 1)
    top = [
        _Block(wrapped(title, width, head), head, INK, 4),
        _Block(wrapped(subtitle, width, small), small, PALE, GAP),
    ]
    labels = [
        [_Block([name], body, INK, 2), _Block(wrapped(about, column, small), small, PALE, 0)]
        for (_, name, about), column in zip(pictures, columns, strict=True)
    ]
    inside = width - 2 * GAP
    texts = [
        [
            _Block([f"{caption.variant}  ·  {caption.tokens} tokens"], small, ACCENT, 4),
            _Block(wrapped(caption.text or "(empty)", inside, body), body, INK, 0),
        ]
        for caption in captions
    ] or [[_Block(["no captions"], small, PALE, 0)]]

    tallest = max(picture.height for picture in shown)
    below = max(_height(label) for label in labels)
    height = _height(top) + tallest + 8 + below + sum(GAP + _height(text) + GAP for text in texts)
    paper = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(paper)
    y = _draw(top, pen, MARGIN, MARGIN)
    x = MARGIN
    for picture, label, column in zip(shown, labels, columns, strict=True):
        paper.paste(picture, (x, y))
        _draw(label, pen, x, y + tallest + 8)
        x += column + GAP
    y += tallest + 8 + below + GAP
    for text in texts:
        pen.rounded_rectangle((MARGIN, y, MARGIN + width, y + _height(text) + GAP), 8, BOX)
        y = _draw(text, pen, MARGIN + GAP, y + GAP // 2) + GAP // 2 + GAP
    return paper


def _height(blocks: Sequence[_Block]) -> int:
    return sum(block.height for block in blocks)


def _draw(blocks: Sequence[_Block], pen: ImageDraw.ImageDraw, left: int, top: int) -> int:
    for block in blocks:
        top = block.draw(pen, left, top)
    return top


def _scaled(picture: Image.Image) -> Image.Image:
    longest = max(picture.size)
    if longest > PICTURE:
        picture = picture.copy()
        picture.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    elif longest < SMALLEST:
        factor = SMALLEST // longest
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture


def wrapped(text: str, width: int, font: Font) -> list[str]:
    """The text in lines of at most `width` pixels, cut at blanks, and within words that are longer than a line."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".lstrip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            while font.getlength(longer) > width and len(longer) > 1:
                cut = next(n for n in range(len(longer) - 1, 0, -1) if n == 1 or font.getlength(longer[:n]) <= width)
                lines.append(longer[:cut])
                longer = longer[cut:]
            line = longer
        lines.append(line)
    return lines
