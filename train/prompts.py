"""Embeddings of prompts: the text encoder, which is as large as the transformer, is loaded only for new ones.

A prompt that is a caption of the cache has its embedding there. Those of others are kept, by the prompt's sha256, in
WORK/prompts/FINGERPRINT.safetensors, where the fingerprint is that of all which decides them: encoder, prefix, limit.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import UserError
from shared.fingerprint import differences, fingerprint
from shared.progress import console
from train.cache.compute import default_device
from train.cache.hub import TEXT, model_folder
from train.cache.reader import CacheReader
from train.cache.text import describe
from train.cache.text_encoder import TextEncoder
from train.model.weights import read_tensors, save_tensors

ROUNDING = ("compute", "attention", "dtype", "block")
"""What of a description changes an embedding by rounding alone: another machine's, or one that is stored otherwise, is
as good."""


def embed(prompts: Iterable[str], model: str, work: Path, reader: CacheReader) -> dict[str, Tensor]:
    """Embeddings (tokens, dim) by prompt, as the cache of a work directory has those of its captions.

    `model` is a pipeline's folder or hub name; its text encoder is needed only for prompts that are new. Raises
    UserError where it then is not the one the cache was made with.
    """
    about = _what(reader.text_settings)
    store = work / "prompts" / f"{fingerprint(about)}.safetensors"
    found = {"": reader.empty, **_read(store, prompts)}
    if missing := _others(prompts, found):
        new = {caption: reader.text(*place) for caption, place in reader.find(missing).items()}
        if missing := _others(missing, new):
            new |= encode(missing, model, about["prompt_prefix"], about["max_tokens"], about)
        _keep(store, new)
        found |= new
    return found


def encode(
    prompts: Sequence[str], model: str, prompt_prefix: str, max_tokens: int, expected: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Embeddings (tokens, dim) by prompt, of the text encoder of a pipeline, which is then forgotten.

    Raises UserError where its description is not what is `expected`.
    """
    console.print(f"encoding {len(prompts):,} prompts with the text encoder of {model}", soft_wrap=True)
    encoder = TextEncoder(model_folder(model, TEXT), prompt_prefix, max_tokens, default_device())
    if expected and (problems := differences(dict(expected), _what(describe(encoder)))):
        raise UserError(
            f"{model}: its text encoder is not the one that the cache was made with:\n  "
            + "\n  ".join(problems)
            + "\ngive the pipeline that `cache-latents` was given as --model"
        )
    return dict(zip(prompts, encoder.encode(prompts), strict=True))


def _what(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key not in ROUNDING}


def _others(prompts: Iterable[str], found: Mapping[str, Tensor]) -> list[str]:
    """Those not found, each once."""
    return [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]


def _read(store: Path, prompts: Iterable[str]) -> dict[str, Tensor]:
    """The embeddings of those prompts that the store has."""
    if not store.exists():
        return {}
    try:
        with safe_open(store, "pt") as opened:
            kept = set(opened.keys())
            return {prompt: opened.get_tensor(_name(prompt)) for prompt in prompts if _name(prompt) in kept}
    except SafetensorError as error:
        raise UserError(f"{store}: damaged ({error}); delete it, its prompts are then encoded again") from None


def _keep(store: Path, new: Mapping[str, Tensor]) -> None:
    """Add embeddings to the store. Of two processes that do so at once, one may have to encode its own again."""
    kept = read_tensors(store) if store.exists() else {}
    save_tensors(kept | {_name(prompt): embedding for prompt, embedding in new.items()}, store)


def _name(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
