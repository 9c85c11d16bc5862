"""The frozen text encoder: captions to embeddings."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from shared.device import Pending, Worker
from shared.errors import UserError
from shared.progress import console
from train.cache.compute import compute_dtype, configure_compiler
from train.cache.hub import text_hash

logging.disable_progress_bar()  # Its bars for loading and saving files would stand between ours.

PACK = {"cuda": 16384, "cpu": 512}
"""Most tokens that are encoded together. On the CPU all pairs of them have a score."""
SHORTEST = {"cuda": 256, "cpu": 1}
"""Fewer tokens are filled up: FlexAttention has another kernel for them, which would have to be compiled."""


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
            configure_compiler()
            for layer in encoder.layers:
                layer.compile(dynamic=True)
        self.description: dict[str, Any] = {
            "encoder": type(encoder).__name__,
            "weights": text_hash(model),
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
