"""Parts of the model that do not learn."""

from collections.abc import Sequence

from shared.errors import UserError
from train.model.dit import Lumina2DiT
from train.model.parts import modules_of


def freeze(model: Lumina2DiT, parts: Sequence[str]) -> None:
    """Let parts of the model keep their weights: no gradient is computed for them.

    Raises UserError for a part that does not exist, and where nothing is left to learn.
    """
    for part in parts:
        for name in modules_of(part, model.config.num_layers, "train.freeze"):
            model.get_submodule(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"train.freeze = {list(parts)}: nothing is left to learn; leave out a part")
