"""Model folders: a local one, or a hub's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from shared.errors import UserError
from shared.files import file_sha256

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
"""Sub-folders of a Lumina 2 pipeline in the diffusers layout."""
DRAWING, TEXT = ("transformer", "vae"), ("text_encoder", "tokenizer")
"""Those that make pictures of embeddings, and those that make embeddings."""


def model_folder(model: str, parts: Sequence[str] = PARTS) -> Path:
    """The folder of a pipeline in the diffusers layout: `model` itself, or the hub repository of that name.

    Only `parts` of it need be there, and are had from the hub. Raises UserError where it is neither.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = downloaded(model, ("model_index.json", *(f"{part}/*" for part in parts)))
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{folder}: no {missing[0]}/ in it; give a Lumina 2 pipeline in the diffusers layout")
    return folder


def downloaded(model: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub's repository, with the files that match `patterns`. Raises UserError where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as error:
        raise UserError(f"{model}: neither a folder nor a model that can be had from the hub ({error})") from None


def weights_hash(*folders: Path) -> str:
    """Hash of all files of some folders, names included: what a model is, wherever it lies."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                digest.update(f"{folder.name}/{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def vae_hash(model: Path) -> str:
    """`weights_hash` of what makes the latents."""
    return weights_hash(model / "vae")


def text_hash(model: Path) -> str:
    """`weights_hash` of what makes the embeddings."""
    return weights_hash(model / "text_encoder", model / "tokenizer")
