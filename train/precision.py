"""Which numbers compute and which ones learn.

A learning rate of 2e-4 changes a weight by less than half of what bfloat16 resolves: such weights never move. So the
optimiser changes float32 ones, and the model computes with bfloat16 copies of them. Gradients are summed up in
float32 over the micro-batches of a step, for the same reason.
"""

from functools import partial

import torch
from torch import Tensor, nn

from shared.errors import UserError
from train.model.blocks import ModulatedNorm
from train.model.dit import Lumina2DiT


class MasterWeights:
    """The float32 weights of a model that computes in `dtype`, and their gradients: of those that learn."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Turns the model, which has float32 weights, into one of `dtype`; float32 leaves it as it is."""
        self.weights: dict[str, nn.Parameter] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        """What the optimiser changes, by the names of the model. Their `grad` is what is summed up."""
        self._copies: list[Tensor] = []
        if dtype == torch.float32:
            return
        self.weights = {name: nn.Parameter(copy.detach().clone()) for name, copy in self.weights.items()}
        self._copies = [parameter for parameter in model.to(dtype).parameters() if parameter.requires_grad]
        for copy, weight in zip(self._copies, self.weights.values(), strict=True):
            copy.register_post_accumulate_grad_hook(partial(_pass_on, weight))

    def gradients(self) -> list[Tensor]:
        """Of all weights; zeros where there is none yet."""
        for weight in self.weights.values():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        return [weight.grad for weight in self.weights.values() if weight.grad is not None]

    @torch.no_grad()
    def publish(self) -> None:
        """Let the model compute with the weights as they are now."""
        if self._copies:
            torch._foreach_copy_(self._copies, list(self.weights.values()))


def _pass_on(weight: nn.Parameter, copy: Tensor) -> None:
    """Add a gradient to that of the float32 weight; its memory is free at once."""
    assert copy.grad is not None
    weight.grad = copy.grad.float() if weight.grad is None else weight.grad.add_(copy.grad)
    copy.grad = None


def to_float8(model: Lumina2DiT) -> None:
    """Let the large products of the joint blocks be computed in float8, scaled by tensor (torchao).

    Raises UserError where torchao is not installed.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ModuleNotFoundError as error:
        raise UserError(f"train.precision = float8: {error}; pip install 'illustrious-lu[fast]'") from None
    modulations = {id(module.linear) for module in model.modules() if isinstance(module, ModulatedNorm)}
    # Those are products of one row per sample: nothing to gain, and not a multiple of 16.
    convert_to_float8_training(
        model.layers, config=Float8LinearConfig(), module_filter_fn=lambda module, _: id(module) not in modulations
    )
