"""Weights out: a checkpoint becomes a pipeline folder for diffusers."""

import shutil
from pathlib import Path

from shared.errors import UserError
from shared.files import atomic_folder
from train.cache.hub import model_folder


def export_pipeline(checkpoint: Path, out: Path, model: str, *, raw: bool) -> None:
    """Copy the pipeline `model` to `out` with the transformer of a checkpoint in place of its own."""
    transformer = checkpoint / ("transformer" if raw else "transformer_ema")
    if not transformer.is_dir():
        raise UserError(f"{checkpoint}: no {transformer.name}/ in it; give a folder runs/NAME/checkpoints/STEP")
    base = model_folder(model)
    with atomic_folder(out) as temporary:
        for part in sorted(base.iterdir()):
            if part.is_dir() and part.name != "transformer" and not part.name.startswith("."):
                shutil.copytree(part, temporary / part.name)
        shutil.copy(base / "model_index.json", temporary)
        shutil.copytree(transformer, temporary / "transformer")
