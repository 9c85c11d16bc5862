"""The two frozen models whose outputs are cached: the autoencoder and the text encoder."""

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from shared.device import Pending, Worker, devices
from shared.errors import UserError
from shared.progress import console
from train.cache.hub import weights_hash

logging.disable_progress_bar()  # Its bars for loading and saving files would stand between ours.

AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
"""Classes of diffusers, by the name in `vae/config.json`."""

PACK = {"cuda": 16384, "cpu": 512}
"""Most tokens that are encoded together. On the CPU all pairs of them have a score."""
SHORTEST = {"cuda": 256, "cpu": 1}
"""Fewer tokens are filled up: FlexAttention has another kernel for them, which would have to be compiled."""
FUSED = 256**2
"""Latents of a picture from which on its autoencoder's attention is fused, for its scores would take 8 GB."""


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return devices()[0]


def compute_dtype(device: torch.device) -> torch.dtype:
    """What encoders compute in. Not float16: FLUX's autoencoder overflows in it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _configure_compiler() -> None:
    torch._dynamo.config.recompile_limit = 64  # Copies on several GPUs share the code.
    torch._dynamo.config.specialize_float = True  # FlexAttention takes no other cap of scores.


class ImageEncoder:
    """An autoencoder of diffusers: pictures to latents. On a GPU it is compiled, once for all shapes."""

    def __init__(self, model: Path, device: torch.device) -> None:
        """Loads MODEL/vae. Raises UserError for a class of autoencoder or weights that do not fit."""
        self.worker = Worker(device)
        self._dtype = compute_dtype(device)
        name, vae = _autoencoder(model / "vae", self._dtype)
        config = vae.config
        self._tiny = name == "AutoencoderTiny"
        self._vae = vae.to(device).eval().requires_grad_(False)
        self._function, self._warm = self._plain, True
        if device.type == "cuda":
            self._optimise()
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        """Pixels per latent, along a side."""
        self.description: dict[str, Any] = {
            "encoder": name,
            "weights": weights_hash(model / "vae"),
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
        if not self._warm:
            self._warm_up(pixels)
        return self._function(pixels)

    def _plain(self, pixels: Tensor) -> Tensor:
        inputs = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(self._dtype)
        encoded = self._vae.encode(inputs)
        mean: Tensor = encoded.latents if self._tiny else encoded.latent_dist.mean
        return mean.contiguous()

    def _optimise(self) -> None:
        self._vae.to(memory_format=torch.channels_last)
        for module in self._vae.modules():
            if isinstance(module, Attention):
                module.set_processor(_PlainAttention())
        _configure_compiler()
        self._function, self._warm = torch.compile(self._plain, dynamic=True), False

    def _warm_up(self, pixels: Tensor) -> None:
        """Compile for one picture and for several, of sides that the compiler cannot take for equal."""
        self._warm = True
        _, height, width, _ = pixels.shape
        wide = width + 32 * (height == width)
        for rows in (2, 1):
            self._function(pixels.new_zeros(rows, height, wide, 3))


class _PlainAttention:
    """Two matrix products: PyTorch's fused attention is slow for the single head of 512 in FLUX's autoencoder."""

    def __init__(self) -> None:
        self._plain, self._fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(self, attention: Attention, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`hidden` is (pictures, channels, height, width)."""
        attend = self._plain if hidden[0, 0].numel() < FUSED else self._fused
        result: Tensor = attend(attention, hidden, *args, **kwargs)
        return result


def _autoencoder(folder: Path, dtype: torch.dtype) -> tuple[str, Any]:
    """The name of an autoencoder's class, and the autoencoder."""
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if name not in AUTOENCODERS:
        raise UserError(f"{folder}: autoencoder {name!r}; this version knows {' and '.join(AUTOENCODERS)}")
    vae, about = AUTOENCODERS[name].from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    if wrong := [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in about[kind]]:
        # diffusers would go on with random weights, or without some.
        raise UserError(f"{folder}: {len(wrong)} weights do not fit diffusers' {name}, such as {wrong[0]}")
    return name, vae


class TextEncoder:
    """A causal language model of transformers: captions to the hidden states before its last layer.

    Captions are packed into one row without padding: positions begin anew with each, and attention stays within it.
    """

    def __init__(self, model: Path, prompt_prefix: str, max_tokens: int, device: torch.device) -> None:
        """Loads MODEL/tokenizer and MODEL/text_encoder. Raises UserError for a model that cannot be cut short."""
        self._prefix, self._max_tokens = prompt_prefix, max_tokens
        self.worker = Worker(device)
        self.pack: int = PACK[device.type]
        """Most tokens that are encoded together."""
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model / "tokenizer")
        dtype = compute_dtype(device)
        # Both cap scores as Gemma 2 wants it, which PyTorch's fused attention cannot.
        attention = "flex_attention" if device.type == "cuda" else "eager"
        folder = model / "text_encoder"
        try:
            encoder: Any = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None
        _cut_short(encoder, folder)
        self._encoder = encoder.to(device).eval().requires_grad_(False)
        self._warm = device.type != "cuda"
        if not self._warm:
            _configure_compiler()
            for layer in encoder.layers:
                layer.compile(dynamic=True)
        self.description: dict[str, Any] = {
            "encoder": type(encoder).__name__,
            "weights": weights_hash(folder, model / "tokenizer"),
            "compute": str(dtype).removeprefix("torch."),
            "attention": attention,
            "hidden_state": -2,
            "dim": encoder.config.hidden_size,
            "prompt_prefix": prompt_prefix,
            "max_tokens": max_tokens,
        }

    def ids(self, caption: str) -> list[int]:
        """Token ids of a caption behind the prefix, cut at the limit. The empty caption stays without prefix."""
        return self._tokens([self._text(caption)])[0]

    def is_cut(self, caption: str, ids: Sequence[int]) -> bool:
        """Whether these ids of a caption are not all it has."""
        return len(ids) == self._max_tokens < len(self._tokenizer(self._text(caption)).input_ids)

    def all_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """`ids` of many captions, in less time."""
        return self._tokens([self._text(caption) for caption in captions])

    def _text(self, caption: str) -> str:
        return self._prefix + caption if caption else ""

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, truncation=True, max_length=self._max_tokens).input_ids
        return ids

    @cached_property
    def shared(self) -> list[int]:
        """Token ids that every caption with the prefix begins with."""
        # SentencePiece merges a trailing blank with the word that follows: the prefix is shared without it.
        text = self._prefix.rstrip()
        return list(self._tokenizer(text).input_ids) if text else []

    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Embeddings (tokens, dim) of captions, bfloat16 on the CPU, in their order."""
        found: list[Tensor] = []
        for pack in packs(self.all_ids(captions), self.pack):
            found += self.launch(self.bring(pack)).result().split([len(ids) for ids in pack])
        return found

    def bring(self, pack: Sequence[Sequence[int]]) -> Tensor:
        """The tokens of captions, and their positions, on the device: (2, tokens)."""
        ids = [token for row in pack for token in row]
        positions = [position for row in pack for position in range(len(row))]
        return self.worker.bring(torch.tensor([ids, positions]))

    def launch(self, inputs: Tensor) -> Pending:
        """Begin to encode what `bring` has brought: (tokens, dim), bfloat16."""
        return self.worker.launch(self._compute, inputs)

    @torch.no_grad()
    def _compute(self, inputs: Tensor) -> Tensor:
        if not self._warm:
            self._warm_up(inputs.device)
        tokens = inputs.shape[1]
        ids, positions = pad(inputs, (0, max(0, SHORTEST[self.worker.device.type] - tokens)))[:, None]
        hidden: Tensor = self._encoder(ids, position_ids=positions, use_cache=False).last_hidden_state
        return hidden[0, :tokens].to(torch.bfloat16)

    def _warm_up(self, device: torch.device) -> None:
        """Compile; where the compiler gives up, go on without it."""
        self._warm = True
        try:
            for tokens in (400, 700):  # The second time the compiler makes no assumption on the length.
                self._compute(torch.arange(tokens, device=device).remainder(128).expand(2, -1))
        except Exception as error:  # Whatever a compiler may raise.
            reason = str(error).partition("\n")[0]
            console.print(f"text encoder: slower than it could be, its layers do not compile here: {reason}")
            for layer in self._encoder.layers:
                layer._compiled_call_impl = None


def _cut_short(encoder: Any, folder: Path) -> None:
    """Drop the last layer and the norm: hidden_states[-2] is what the second to last layer gives."""
    layers = getattr(encoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(encoder, "norm"):
        raise UserError(
            f"{folder}: {type(encoder).__name__} does not end in `layers` and `norm`; "
            "give a causal language model built like Gemma, Llama, Mistral or Qwen"
        )
    encoder.layers = layers[:-1]
    encoder.config.num_hidden_layers -= 1
    encoder.norm = nn.Identity()


def packs(captions: Sequence[Sequence[int]], most: int) -> list[list[Sequence[int]]]:
    """Consecutive captions together, about as many tokens in each pack: `most`, or fewer, beside the last caption."""
    total = sum(map(len, captions))
    even = total / max(1, -(-total // most))
    placed = zip(captions, accumulate(map(len, captions), initial=0), strict=False)
    return [[caption for caption, _ in pack] for _, pack in groupby(placed, key=lambda place: place[1] // even)]
