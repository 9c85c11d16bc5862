"""The frozen autoencoder: pictures to latents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor

from shared.device import Pending, Worker
from shared.errors import UserError
from train.cache.compute import compute_dtype, configure_compiler
from train.cache.fused import fuse
from train.cache.hub import vae_hash

AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
"""Classes of diffusers, by the name in `vae/config.json`."""


class ImageEncoder:
    """An autoencoder of diffusers: pictures to latents."""

    def __init__(self, model: Path, device: torch.device) -> None:
        """Loads MODEL/vae. Raises UserError for a class of autoencoder or weights that do not fit."""
        self.worker = Worker(device)
        self._dtype = compute_dtype(device)
        vae = load_autoencoder(model / "vae", self._dtype)
        config = vae.config
        self._tiny = isinstance(vae, AutoencoderTiny)
        self._vae = vae.to(device).eval().requires_grad_(False)
        if not self._tiny:
            configure_compiler()
            fuse(vae.encoder)
        self.factor: int = factor_of(vae)
        """Pixels per latent, along a side."""
        self.description: dict[str, Any] = {
            "encoder": type(vae).__name__,
            "weights": vae_hash(model),
            "compute": str(self._dtype).removeprefix("torch."),
            "channels": config.latent_channels,
            "factor": self.factor,
            "scaling_factor": config.scaling_factor,
            "shift_factor": config.shift_factor or 0.0,
        }

    def encode(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Posterior means of pictures of one shape, each (height, width, 3) sRGB.

        Returns (pictures, channels, height / factor, width / factor) in float32 on the CPU, as the autoencoder
        gives them: neither shifted nor scaled.
        """
        return self.launch(self.bring(pictures)).result().float()

    def bring(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Pictures of one shape on the device: (pictures, height, width, 3)."""
        return self.worker.bring(torch.from_numpy(np.stack(pictures)))

    def launch(self, pixels: Tensor) -> Pending:
        """Begin to encode what `bring` has brought; the means come in what is computed in."""
        return self.worker.launch(self._compute, pixels)

    @torch.no_grad()
    def _compute(self, pixels: Tensor) -> Tensor:
        inputs = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(self._dtype)
        encoded = self._vae.encode(inputs)
        mean: Tensor = encoded.latents if self._tiny else encoded.latent_dist.mean
        return mean.contiguous()


def load_autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    """An autoencoder of diffusers. Raises UserError for a class or weights that do not fit."""
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if name not in AUTOENCODERS:
        raise UserError(f"{folder}: autoencoder {name!r}; this version knows {' and '.join(AUTOENCODERS)}")
    vae, about = AUTOENCODERS[name].from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    if wrong := [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in about[kind]]:
        # diffusers would go on with random weights, or without some.
        raise UserError(f"{folder}: {len(wrong)} weights do not fit diffusers' {name}, such as {wrong[0]}")
    return vae


def factor_of(vae: Any) -> int:
    """Pixels per latent, along a side."""
    factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
    return factor


@torch.no_grad()
def decode(vae: Any, latent: Tensor) -> NDArray[np.uint8]:
    """The picture (height, width, 3) of a latent (channels, rows, columns), neither shifted nor scaled."""
    pixels = vae.decode(latent[None].to(vae.dtype)).sample[0].float()
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    picture: NDArray[np.uint8] = values.cpu().numpy()
    return picture
