"""The packed batch: any mix of resolutions and caption lengths as rows of tokens, without padding.

Three packed sequences occur in the model. `text` and `image` hold every sample's tokens one sample after the
other; `joint` holds sample 0's text, then its image, then sample 1's text, and so on. At its end stand up to 15 rows
of nothing, which see only each other: float8 products want a multiple of 16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MULTIPLE = 16
"""Of which the number of rows of the joint sequence is one."""
LONGEST = 1024
"""Of which `Segments.longest` is one, the same for all three: what is compiled for one value fits most batches."""

Grid = tuple[int, int]
"""Rows and columns of an image, in tokens."""


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """What the model sees of one micro-batch. Contradicting sizes are ValueErrors."""

    text: Tensor
    """(text tokens, cap_feat_dim): the caption rows of all samples, one sample after the other."""
    patches: Tensor
    """(image tokens, patch * patch * channels): the noised image tokens of all samples, likewise."""
    timesteps: Tensor
    """(samples,) float32: 0 is noise, 1 is data."""
    text_lengths: tuple[int, ...]
    """Caption tokens of each sample."""
    grids: tuple[Grid, ...]
    """Image rows and columns of each sample, in tokens."""

    def __post_init__(self) -> None:
        samples = len(self.timesteps), len(self.text_lengths), len(self.grids)
        if len(set(samples)) != 1 or not samples[0]:
            raise ValueError(f"timesteps, text_lengths and grids are of {samples} samples: need equally many, not 0")
        if min(self.text_lengths) < 1 or min(map(min, self.grids)) < 1:
            raise ValueError(f"a sample has no tokens: text_lengths {self.text_lengths}, grids {self.grids}")
        rows = len(self.text), len(self.patches)
        expected = sum(self.text_lengths), sum(self.image_lengths)
        if rows != expected:
            raise ValueError(f"{rows} rows of text and image, but text_lengths and grids sum to {expected}")
        if self.timesteps.dtype != torch.float32:
            raise ValueError(f"timesteps are {self.timesteps.dtype}, but only float32 resolves them")

    @property
    def image_lengths(self) -> tuple[int, ...]:
        """Image tokens of each sample."""
        return tuple(rows * columns for rows, columns in self.grids)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same batch on `device`, text and patches as `dtype` if given. Timesteps stay float32."""
        return replace(
            self,
            text=self.text.to(device, dtype, non_blocking=True),
            patches=self.patches.to(device, dtype, non_blocking=True),
            timesteps=self.timesteps.to(device, non_blocking=True),
        )

    def with_patches(self, patches: Tensor) -> Self:
        """The same batch with other image tokens."""
        return replace(self, patches=patches)


@dataclass(frozen=True, eq=False)
class Segments:
    """Where each sample begins and ends in one packed sequence."""

    offsets: Tensor
    """(samples + 1,) int32: sample i is rows offsets[i] to offsets[i + 1]."""
    lengths: tuple[int, ...]
    """The same on the host, as rows per sample; the rows of nothing are a sample of their own."""
    longest: int
    """At least the largest of `lengths`."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Which token is what: the same for all blocks of a batch."""

    text: Segments
    image: Segments
    joint: Segments
    positions: Tensor
    """(joint rows, 3) int32: a text token i has (i, 0, 0), an image token (text length, row, column)."""
    sample: Tensor
    """(joint rows,) int64: the sample each token belongs to; rows of nothing go by the last one."""
    image_sample: Tensor
    """(image tokens,) int64: the same for the image tokens alone."""
    text_rows: Tensor
    """(text tokens,) int64: where the text tokens stand in the joint sequence."""
    image_rows: Tensor
    """(image tokens,) int64: where the image tokens stand in the joint sequence."""


def layout_of(batch: PackedBatch) -> Layout:
    """The layout of a batch, computed on the host from its lengths; its tensors are on the batch's device."""
    device = batch.patches.device
    text, image = np.array(batch.text_lengths), np.array(batch.image_lengths)
    columns = np.array(batch.grids)[:, 1]
    joint = text + image
    sample = np.repeat(np.arange(len(joint)), joint)
    place = np.arange(joint.sum()) - (joint.cumsum() - joint)[sample]
    is_text = place < text[sample]
    row, column = np.divmod(np.where(is_text, 0, place - text[sample]), columns[sample])
    positions = np.stack([np.minimum(place, text[sample]), row, column], axis=1)
    image_rows = np.flatnonzero(~is_text)
    nothing = -len(sample) % MULTIPLE
    longest = -(-int(joint.max()) // LONGEST) * LONGEST

    def there(values: NDArray[np.integer[Any]]) -> Tensor:
        tensor = torch.from_numpy(values)
        # From memory that is not pinned, the host would wait until the GPU has done all that was asked before.
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    def segments(lengths: NDArray[np.integer[Any]]) -> Segments:
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        return Segments(there(offsets), tuple(lengths.tolist()), longest)

    return Layout(
        text=segments(text),
        image=segments(image),
        joint=segments(np.append(joint, nothing) if nothing else joint),
        positions=there(np.pad(positions, ((0, nothing), (0, 0))).astype(np.int32)),
        sample=there(np.pad(sample, (0, nothing), mode="edge")),
        image_sample=there(sample[image_rows]),
        text_rows=there(np.flatnonzero(is_text)),
        image_rows=there(image_rows),
    )


def patchify(latent: Tensor, patch: int) -> Tensor:
    """(channels, height, width) -> (tokens, patch * patch * channels): row by row, channels innermost."""
    channels, height, width = latent.shape
    if height % patch or width % patch:
        raise ValueError(f"a latent of {height} x {width} does not divide into patches of {patch}: crop it first")
    cells = latent.reshape(channels, height // patch, patch, width // patch, patch)
    return cells.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def unpatchify(tokens: Tensor, grid: Grid, patch: int, channels: int) -> Tensor:
    """(tokens, patch * patch * channels) -> (channels, height, width): the inverse of `patchify`."""
    rows, columns = grid
    cells = tokens.reshape(rows, columns, patch, patch, channels)
    return cells.permute(4, 0, 2, 1, 3).reshape(channels, rows * patch, columns * patch)


def pack(latents: Sequence[Tensor], captions: Sequence[Tensor], timesteps: Tensor, patch: int) -> PackedBatch:
    """Pack samples: latents (channels, height, width), captions (tokens, width), timesteps (samples,)."""
    return PackedBatch(
        torch.cat(list(captions)),
        torch.cat([patchify(latent, patch) for latent in latents]),
        timesteps,
        tuple(len(caption) for caption in captions),
        tuple((latent.shape[1] // patch, latent.shape[2] // patch) for latent in latents),
    )
