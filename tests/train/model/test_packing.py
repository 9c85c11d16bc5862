from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.model.support import MIXED, batch_of
from train.model.packing import layout_of, patchify, unpatchify

SIDES = st.integers(1, 5)


@given(channels=st.integers(1, 4), rows=SIDES, columns=SIDES, patch=st.integers(1, 3))
def test_unpatchify_undoes_patchify(channels: int, rows: int, columns: int, patch: int) -> None:
    latent = torch.rand(channels, rows * patch, columns * patch)
    tokens = patchify(latent, patch)
    assert tokens.shape == (rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, (rows, columns), patch, channels), latent)


def test_a_token_is_a_patch_with_channels_innermost() -> None:
    latent = torch.arange(2 * 4 * 6).reshape(2, 4, 6)
    tokens = patchify(latent, 2)
    assert tokens[1].tolist() == [latent[c, y, x] for y in (0, 1) for x in (2, 3) for c in (0, 1)]
    assert tokens[3, 0] == latent[0, 2, 0]


def test_a_latent_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="4 x 5"):
        patchify(torch.zeros(1, 4, 5), 2)


def test_layout_of_two_samples() -> None:
    layout = layout_of(batch_of([(2, (1, 2)), (1, (2, 1))]))
    assert layout.text.offsets.tolist() == [0, 2, 3]
    assert layout.image.offsets.tolist() == [0, 2, 4]
    assert layout.joint.offsets.tolist() == [0, 4, 7, 16]
    assert layout.joint.offsets.dtype == torch.int32
    assert layout.joint.lengths == (4, 3, 9)
    assert layout.joint.longest == layout.text.longest == 1024
    assert layout.positions.tolist() == [
        *([0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 0, 1]),
        *([0, 0, 0], [1, 0, 0], [1, 1, 0]),
        *([[0, 0, 0]] * 9),
    ]
    assert layout.sample.tolist() == [0] * 4 + [1] * 3 + [1] * 9
    assert layout.image_sample.tolist() == [0, 0, 1, 1]
    assert layout.text_rows.tolist() == [0, 1, 4]
    assert layout.image_rows.tolist() == [2, 3, 5, 6]


def test_moving_a_batch_keeps_its_times_exact() -> None:
    batch = batch_of(MIXED).to("cpu", torch.bfloat16)
    assert (batch.text.dtype, batch.patches.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(batch.timesteps, batch_of(MIXED).timesteps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_lengths": (3, 1)}, "sum to"),
        ({"text_lengths": (2, 0)}, "no tokens"),
        ({"grids": ((1, 2), (2, 2))}, "sum to"),
        ({"grids": ((1, 2),)}, "equally many"),
        ({"timesteps": torch.zeros(2, dtype=torch.bfloat16)}, "float32"),
    ],
)
def test_contradicting_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(batch_of([(2, (1, 2)), (1, (2, 1))]), **change)
