"""Which numbers compute and which ones learn.

A learning rate of 2e-4 changes a weight by less than half of what bfloat16 resolves: such weights never move. So the
optimiser changes float32 ones, and the model computes with bfloat16 copies of them; or it changes those themselves,
rounding at random (`rounding`). Gradients are summed up in float32 over the micro-batches of a step, for the same
reason.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from train.data.plan import spread
from train.gradients import GradientSums
from train.ranks import Ranks


class MasterWeights:
    """The weights that learn, of a model that computes in `dtype`, and their float32 gradients.

    Of several ranks each owns some of the weights: it alone has their masters, steps them, averages them and
    writes them to checkpoints. All ranks have the whole model and sum up all its gradients, which they exchange once
    per step (`gradients`). That leaves 2 + 4 bytes per weight on every GPU and divides the other 16 by their number.
    (FSDP2 would divide those 6 too, and gather weights and scatter gradients for every micro-batch.)

    Masters of the model's own type are the very memory that it computes with. Where masters of bfloat16 meet a model of
    float32, as on a CPU, it computes with copies of the same values.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        ranks: Ranks,
        *,
        masters: torch.dtype = torch.float32,
        sharded: bool = True,
    ) -> None:
        """Turns the model, which has float32 weights, into one of `dtype`. Not `sharded`: the first rank owns all."""
        self._ranks = ranks
        self._learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._owners = owners(
            {name: weight.numel() for name, weight in self._learning.items()}, ranks.count if sharded else 1
        )
        model.to(masters)
        self.weights = {
            name: nn.Parameter(weight.detach())
            for name, weight in self._learning.items()
            if self._owners[name] == ranks.rank
        }
        """Those that this rank owns, by the names of the model."""
        for master in self.weights.values():
            master.grad_dtype = torch.float32
        model.to(dtype)
        self._gradients = GradientSums(self._learning, self._owners, ranks)

    def expect_last(self) -> None:
        """The next backward pass is the last of this step, on this rank: sums are exchanged while it goes on."""
        self._gradients.expect_last()

    def collect(self) -> None:
        """Sum up the gradients of all ranks; those of this rank's weights become their `grad`."""
        sums = self._gradients.collect()
        for name, weight in self.weights.items():
            weight.grad = sums.get(name)

    def clip(self, limit: float) -> Tensor:
        """Shorten the gradient of all weights of all ranks to `limit`; returns the norm it had."""
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True).to(self._ranks.device)
        if self._ranks.count > 1:
            square = norm.square()
            self._ranks.sum([square])
            norm = square.sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.weights.values(), limit, norm, foreach=True)
        return norm

    def publish(self) -> None:
        """Let the model compute with the weights as they are now."""
        self._publish(self.weights)

    @contextmanager
    def computing_with(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the model compute with other values of this rank's weights meanwhile, such as averages."""
        kept = [weight.detach().clone() for weight in self._learning.values()]
        self._publish(values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self._learning.values()), kept)

    @torch.no_grad()
    def _publish(self, values: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_([self._learning[name] for name in values], list(values.values()))
        self._ranks.from_owners((weight.data, self._owners[name]) for name, weight in self._learning.items())
        # PyTorch has not seen what came from other ranks; float8 copies go by what it has seen.
        torch.autograd.graph.increment_version(list(self._learning.values()))


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Spread weights over ranks, about equally many numbers for each: the rank of each, by name."""
    names = list(sizes)
    shares = spread(range(len(names)), [sizes[name] for name in names], ranks)
    return {names[index]: rank for rank, share in enumerate(shares) for index in share}
