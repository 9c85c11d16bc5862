"""Parts of the model that do not learn."""

import re
from collections.abc import Sequence

from shared.errors import UserError
from train.model.dit import Lumina2DiT

PARTS = {
    "text": ("time_caption_embed.caption_embedder", "context_refiner"),
    "image": ("x_embedder", "noise_refiner"),
    "time": ("time_caption_embed.timestep_embedder",),
    "layers": ("layers",),
    "output": ("norm_out",),
}
"""Names of parts, and of the modules they consist of. Together they are the model."""

_SOME_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def freeze(model: Lumina2DiT, parts: Sequence[str]) -> None:
    """Let parts of the model keep their weights: no gradient is computed for them.

    Raises UserError for a part that does not exist, and where nothing is left to learn.
    """
    for part in parts:
        for name in _modules(part, model.config.num_layers):
            model.get_submodule(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"train.freeze = {list(parts)}: nothing is left to learn; leave out a part")


def _modules(part: str, layers: int) -> Sequence[str]:
    if part in PARTS:
        return PARTS[part]
    if match := _SOME_LAYERS.fullmatch(part):
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < layers:
            return [f"layers.{index}" for index in range(first, last + 1)]
    raise UserError(
        f"train.freeze: no part {part!r}; there are {', '.join(PARTS)}, and layers.0 to layers.{layers - 1}, "
        f"alone or as a range with both ends, layers.0-{layers - 1}"
    )
