"""Pictures on a sheet: every pixel of each is there, none covers another."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train.sheet import ASPECT, contact_sheet

SIZES = st.lists(st.tuples(st.integers(8, 60), st.integers(8, 60)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.lists(st.text("ab ,\n", max_size=40), min_size=1, max_size=9))
def test_every_picture_is_there(sizes: list[tuple[int, int]], labels: list[str]):
    colours = [(number + 1, 255, 7) for number in range(len(labels) * len(sizes))]
    pictures = [Image.new("RGB", sizes[index % len(sizes)], colour) for index, colour in enumerate(colours)]
    pixels = np.asarray(contact_sheet(pictures, labels))
    for picture, colour in zip(pictures, colours, strict=True):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert (box[2] - box[0], box[3] - box[1]) == picture.size
        assert len(rows) == picture.width * picture.height


def test_a_prompt_is_below_its_pictures_and_cut_where_it_is_long():
    wide, tall = Image.new("RGB", (160, 64), "red"), Image.new("RGB", (64, 96), "red")
    short, long, longer = (contact_sheet([wide, tall], [label]) for label in ("", "word " * 200, "word " * 400))
    assert short.width == long.width
    assert short.height + 30 < long.height
    assert long.tobytes() == longer.tobytes()
    is_ink = (np.asarray(long) < 128).all(axis=2).any(axis=1)
    assert np.flatnonzero(is_ink).min() >= 12 + 96


def test_the_sheet_is_neither_a_column_nor_a_row():
    for count, size in ((12, (96, 96)), (8, (128, 64)), (16, (40, 90))):
        sheet = contact_sheet([Image.new("RGB", size)] * count, [""] * count)
        assert ASPECT / 1.7 < sheet.width / sheet.height < ASPECT * 1.7
