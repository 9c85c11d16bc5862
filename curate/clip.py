"""Image towers of open_clip: contrastive models whose embeddings of pictures are compared and scored."""

import warnings
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import UserError
from shared.vision.geometry import Geometry
from shared.vision.table import Model
from shared.vision.weights import weights_hash

_MODES = {"shortest": "crop", "squash": "squash"}
"""open_clip's names of the ways to a square, and ours."""


def load_tower(model: str, pretrained: str | None) -> Model:
    """An image tower, whose embeddings have length 1.

    `model` is a name of open_clip with `pretrained`, one of its tags or the file of a checkpoint; or `hf-hub:NAME` or
    `local-dir:FOLDER` without. Nothing in a checkpoint is ever executed. Raises UserError where that does not give a
    model with weights, or its preprocessing is not one we have.
    """
    tag = open_clip.pretrained.get_pretrained_cfg(model, pretrained) if pretrained else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # OpenAI's models need an activation that the architecture of the same name lacks.
            clip = open_clip.create_model(
                model,
                pretrained,
                force_quick_gelu=bool(tag.get("quick_gelu")),
                pretrained_text=False,
                require_pretrained=True,
                weights_only=True,
            )
    except Exception as error:  # open_clip raises almost anything: names, downloads, pickles, shapes.
        raise UserError(
            f"embed.model = {model!r}, pretrained = {pretrained!r}: {error}; give a model of open_clip with one of its "
            "tags or the file of a checkpoint, or hf-hub:NAME or local-dir:FOLDER with pretrained = null"
        ) from None
    prepare = open_clip.get_model_preprocess_cfg(clip)
    geometry, tower = _geometry(model, prepare), _Normalised(clip.visual).eval()
    with torch.inference_mode():
        dim = tower(torch.zeros(1, 3, geometry.side, geometry.side)).shape[1]
    return Model(
        module=tower,
        geometry=geometry,
        mean=tuple(prepare["mean"]),
        std=tuple(prepare["std"]),
        about={
            "model": model,
            "pretrained": pretrained,
            "weights": weights_hash(clip.visual),
            "dim": dim,
            "preprocessing": prepare,
        },
    )


def _geometry(model: str, prepare: dict[str, Any]) -> Geometry:
    size, mode, interpolation = prepare["size"], prepare["resize_mode"], prepare["interpolation"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1 or mode not in _MODES or interpolation not in ("bicubic", "bilinear"):
        raise UserError(
            f"embed.model = {model!r}: wants {size} pixels, {mode}, {interpolation}; "
            f"squares, {' or '.join(_MODES)}, and bicubic or bilinear are what there is"
        )
    return Geometry(sides.pop(), _MODES[mode], interpolation)  # type: ignore[arg-type]


class _Normalised(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pictures: Tensor) -> Tensor:
        return functional.normalize(self.tower(pictures).float(), dim=-1)
