"""The two frozen models whose outputs are cached: the autoencoder and the text encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from train.cache.hub import weights_hash

logging.disable_progress_bar()  # Its bars for loading and saving files would stand between ours.

# Gemma 2 caps its attention scores, which PyTorch's fused attention cannot: only the plain one is right.
ATTENTION = "eager"
PADDED_TOKENS = 4096
"""Most tokens, padding included, that are encoded together."""


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """What encoders compute in. Not float16: FLUX's autoencoder overflows in it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class ImageEncoder:
    """An `AutoencoderKL`: pictures to latents."""

    def __init__(self, model: Path, device: torch.device) -> None:
        self._device, self._dtype = device, compute_dtype(device)
        vae: Any = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=self._dtype)
        self._vae = vae.to(device).eval()
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels per latent, along a side."""
        self.description: dict[str, Any] = {
            "encoder": "AutoencoderKL",
            "weights": weights_hash(model / "vae"),
            "compute": str(self._dtype).removeprefix("torch."),
            "channels": vae.config.latent_channels,
            "factor": self.factor,
            "scaling_factor": vae.config.scaling_factor,
            "shift_factor": vae.config.shift_factor or 0.0,
        }

    @torch.no_grad()
    def encode(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Posterior means of pictures of one shape, each (height, width, 3) sRGB.

        Returns (pictures, channels, height / factor, width / factor) in float32 on the CPU, as the autoencoder
        gives them: neither shifted nor scaled.
        """
        pixels = torch.from_numpy(np.stack(pictures)).to(self._device).permute(0, 3, 1, 2)
        inputs = (pixels.float() / 127.5 - 1).to(self._dtype)
        means: Tensor = self._vae.encode(inputs).latent_dist.mean
        return means.float().cpu()


class TextEncoder:
    """A causal language model: captions to the hidden states before its last layer."""

    def __init__(self, model: Path, prompt_prefix: str, max_tokens: int, device: torch.device) -> None:
        self._prefix, self._max_tokens, self._device = prompt_prefix, max_tokens, device
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model / "tokenizer")
        dtype = compute_dtype(device)
        encoder: Any = AutoModel.from_pretrained(model / "text_encoder", dtype=dtype, attn_implementation=ATTENTION)
        # hidden_states[-2] is what the second to last layer gives, before the final norm: neither is needed.
        encoder.layers = encoder.layers[:-1]
        encoder.config.num_hidden_layers -= 1
        encoder.norm = nn.Identity()
        self._encoder = encoder.to(device).eval()
        self.shared = self._shared_ids()
        """Token ids that every caption with the prefix begins with."""
        self.description: dict[str, Any] = {
            "encoder": type(encoder).__name__,
            "weights": weights_hash(model / "text_encoder", model / "tokenizer"),
            "compute": str(dtype).removeprefix("torch."),
            "attention": ATTENTION,
            "hidden_state": -2,
            "dim": encoder.config.hidden_size,
            "prompt_prefix": prompt_prefix,
            "max_tokens": max_tokens,
        }

    def ids(self, caption: str) -> list[int]:
        """Token ids of a caption behind the prefix, cut at the limit. The empty caption stays without prefix."""
        text = self._prefix + caption if caption else ""
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._max_tokens).input_ids
        return ids

    def _shared_ids(self) -> list[int]:
        # SentencePiece merges a trailing blank with the word that follows: the prefix is shared without it.
        text = self._prefix.rstrip()
        return list(self._tokenizer(text).input_ids) if text else []

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Embeddings (tokens, dim) of captions, bfloat16 on the CPU, in their order and without padding.

        The model is causal, so a caption's rows do not depend on the padding to its right.
        """
        ids = [self.ids(caption) for caption in captions]
        result: list[Tensor] = [torch.empty(0)] * len(ids)
        for batch in _batches([len(row) for row in ids]):
            longest = max(len(ids[index]) for index in batch)
            inputs = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(inputs)
            for row, index in enumerate(batch):
                inputs[row, : len(ids[index])] = torch.tensor(ids[index])
                mask[row, : len(ids[index])] = 1
            hidden = self._encoder(
                inputs.to(self._device), attention_mask=mask.to(self._device), use_cache=False
            ).last_hidden_state
            for row, index in enumerate(batch):
                result[index] = hidden[row, : len(ids[index])].to(torch.bfloat16).cpu()
        return result


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices grouped by similar length, so that little padding is computed."""
    batches: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if (len(batches[-1]) + 1) * lengths[index] > PADDED_TOKENS and batches[-1]:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]
