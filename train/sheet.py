"""Drawn pictures on one sheet: those of each prompt side by side, in their own pixels, the prompt below."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from train.cache.sheet import INK, PAPER, wrapped

MARGIN = 12
"""Around prompts; half of it between the pictures of one."""
ASPECT = 4 / 3
"""What the sheet's comes near to."""
LINES = 4
"""Of a label, at most."""


def contact_sheet(pictures: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Pictures of any sizes, equally many for each label, all of the first label first."""
    each = len(pictures) // len(labels)
    groups = [pictures[first : first + each] for first in range(0, len(pictures), each)]
    assert len(groups) == len(labels), "equally many pictures for each label"
    tallest = max(picture.height for picture in pictures)
    width = max(sum(picture.width + MARGIN // 2 for picture in group) - MARGIN // 2 for group in groups)
    letters = max(11, tallest // 40)
    font, line = ImageFont.load_default(letters), round(letters * 1.3)
    texts = [_cut(wrapped(label, width, font)) for label in labels]
    height = tallest + MARGIN // 2 + max(map(len, texts)) * line

    columns = _columns(len(groups), width + MARGIN, height + MARGIN)
    rows = -(-len(groups) // columns)
    size = columns * (width + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (group, text) in enumerate(zip(groups, texts, strict=True)):
        x = index % columns * (width + MARGIN) + MARGIN
        y = index // columns * (height + MARGIN) + MARGIN
        for number, one in enumerate(text):
            pen.text((x, y + tallest + MARGIN // 2 + number * line), one, INK, font)
        for picture in group:
            sheet.paste(picture, (x, y + tallest - picture.height))
            x += picture.width + MARGIN // 2
    return sheet


def _columns(count: int, width: int, height: int) -> int:
    """In how many columns so many cells make a sheet of about ASPECT with few empty places."""

    def badness(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / ASPECT)) + (columns * rows - count) / count

    return min(range(1, count + 1), key=badness)


def _cut(lines: Sequence[str]) -> list[str]:
    return list(lines) if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} …"]
