"""`inspect`: what is shown of a picture is what the cache holds."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from shared.corpus import Corpus
from shared.errors import UserError
from train.cache.inspect import find, inspect, write
from train.cache.reader import CacheReader
from train.cache.sheet import wrapped


def test_what_is_shown(cached: Path, tiny_model: Path, tmp_path: Path):
    pictures, reader = Corpus(str(cached.parent / "pictures")), CacheReader(cached)
    rows = {row["image_id"]: row for row in pq.read_table(cached / "curated").to_pylist()}
    vae = AutoencoderKL.from_pretrained(tiny_model, subfolder="vae")
    for index in range(3):
        found = inspect(cached, pictures, tiny_model, str(index))
        row = rows[found.image_id]
        assert {caption.variant: caption.text for caption in found.captions} == {
            caption["variant"]: caption["text"] for caption in row["captions"]
        }
        assert all(c.tokens == len(reader.text(index, c.variant)) for c in found.captions)
        with torch.no_grad():
            decoded = vae.decode(reader.latent(index).float()[None]).sample[0]
        expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(found.decoded, expected)
        difference = torch.from_numpy(found.source.pixels / 255) - torch.from_numpy(expected / 255)
        assert found.psnr == pytest.approx(float(-10 * difference.square().mean().log10()))
        write(found, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.format == "PNG"
            shown = np.asarray(sheet.convert("RGB"))
        factor = 384 // max(expected.shape[:2])
        height, width = expected.shape[0] * factor, expected.shape[1] * factor
        enlarged = expected.repeat(factor, 0).repeat(factor, 1)
        assert any(
            np.array_equal(shown[top : top + height, 28 + 404 : 28 + 404 + width], enlarged) for top in range(200)
        )


def test_which(cached: Path):
    reader = CacheReader(cached)
    ids = [reader.image_id(index) for index in range(reader.images)]
    assert [find(reader, image_id) for image_id in ids] == list(range(len(ids)))
    assert find(reader, ids[4][:12]) == 4
    assert find(reader, "5") == 5
    for wrong in ("zz", "", str(reader.images) * 9):
        with pytest.raises(UserError, match="images of the cache have an id that begins so"):
            find(reader, wrong)


def test_what_cannot_be_shown(cached: Path, tiny_model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="say where the pictures are with --source"):
        inspect(cached, Corpus(str(tmp_path)), tiny_model, "0")
    with pytest.raises(UserError, match="none of 96"):
        inspect(cached, Corpus(str(tmp_path)), tiny_model, "0", area=96)


@given(st.text(alphabet="aW .\n界", max_size=80), st.integers(30, 200))
def test_no_line_is_wider_and_no_letter_lost(text: str, width: int):
    font = ImageFont.load_default(14)
    lines = wrapped(text, width, font)
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
