"""What a run needs of a GPU's memory, by arithmetic."""

from dataclasses import dataclass
from typing import Self, get_args

from shared.errors import UserError
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.float8 import products
from train.model.recompute import kept_bytes
from train.settings import Recompute, TrainSettings

USABLE = 0.93
"""Share of a GPU's memory: the rest is for its context and for what lies between allocations."""


@dataclass(frozen=True)
class Counts:
    """Of the weights of a model."""

    all: int
    learning: int
    owned: int
    """Of those that learn, whose masters, moments and averages this rank has."""
    products: int
    """In the products that float8 is for."""

    @classmethod
    def of(cls, model: Lumina2DiT, owned: int | None = None) -> Self:
        """`owned` is by default all that learn, as on one GPU."""
        weights = list(model.parameters())
        learning = sum(weight.numel() for weight in weights if weight.requires_grad)
        return cls(
            all=sum(weight.numel() for weight in weights),
            learning=learning,
            owned=learning if owned is None else owned,
            products=sum(linear.weight.numel() for _, linear in products(model)),
        )


def state_bytes(settings: TrainSettings, counts: Counts) -> int:
    """What lies on a GPU beside micro-batches: the bfloat16 weights that compute, float8 copies in two layouts, float32
    gradients of those that learn, and of those that this rank owns masters, the optimiser's moments and the average."""
    masters = 4 if settings.masters == "float32" else 0  # Of bfloat16 they are the weights that compute.
    average = 0 if settings.ema_offload else 4
    copies = 2 * counts.products if settings.precision == "float8" else 0
    owned = (masters + average + moment_bytes(settings)) * counts.owned
    return 2 * counts.all + copies + 4 * counts.learning + owned


def moment_bytes(settings: TrainSettings) -> int:
    """Of the optimiser, per weight."""
    return 2 if settings.optimizer.states == "int8" else 8


def choose(settings: TrainSettings, config: DiTConfig, counts: Counts, memory: int) -> Recompute:
    """The fastest that keeps a micro-batch in the memory of a GPU. Raises UserError where nothing does."""
    tokens, free = settings.token_budget, USABLE * memory - state_bytes(settings, counts)
    for option in get_args(Recompute):
        if kept_bytes(config, tokens, option, settings.precision) <= free:
            found: Recompute = option
            return found
    needed = kept_bytes(config, tokens, "everything", settings.precision)
    raise UserError(
        f"train.token_budget = {tokens:,}: needs {needed / 2**30:.1f} GiB even when everything is "
        f"recomputed, and {max(free, 0) / 2**30:.1f} GiB are left beside weights and optimiser; lower it"
    )
