"""Parts of the model, as settings name them."""

import re
from collections.abc import Mapping, Sequence

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


def modules_of(part: str, layers: int, setting: str) -> Sequence[str]:
    """The modules of a part of a model of so many layers. UserErrors name the setting that asks for another."""
    if part in PARTS:
        return PARTS[part]
    if match := _SOME_LAYERS.fullmatch(part):
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < layers:
            return [f"layers.{index}" for index in range(first, last + 1)]
    raise UserError(
        f"{setting}: no part {part!r}; there are {', '.join(PARTS)}, and layers.0 to layers.{layers - 1}, "
        f"alone or as a range with both ends, layers.0-{layers - 1}"
    )


def rate_factors(model: Lumina2DiT, rates: Mapping[str, float]) -> dict[str, float]:
    """Factors on the learning rate, by part, as factors by parameter. Parameters that are not there have 1.

    Raises UserError for a part that does not exist or does not learn, and where two of them have weights in common.
    """
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    found: dict[str, str] = {}
    for part in rates:
        prefixes = tuple(f"{module}." for module in modules_of(part, model.config.num_layers, "train.optimizer.rates"))
        names = [name for name in learning if name.startswith(prefixes)]
        if not names:
            raise UserError(f"train.optimizer.rates: nothing of {part} learns; leave it out")
        if other := next((found[name] for name in names if name in found), None):
            raise UserError(f"train.optimizer.rates: {other} and {part} have weights in common; give each weight one")
        found |= dict.fromkeys(names, part)
    return {name: rates[part] for name, part in found.items()}
