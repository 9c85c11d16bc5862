"""Gradients of a small model, summed up by forked processes, each of which writes what it has.

python -m tests.train.summed PROCESSES PORT FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.train.forked import fork
from train.optimizer import adamw
from train.precision import MasterWeights
from train.ranks import Ranks
from train.settings import OptimizerSettings

STEPS = (((0,), (1, 2, 3)), ((4, 5), ()), ((6,), (7,)))
"""Micro-batches of the two ranks, by their numbers: as many as you like, also none."""


class Chain(nn.Module):
    """Layers that can be gone through either way, one that not every batch needs, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes, self.never = nn.Linear(6, 6), nn.Linear(6, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            weight.data = torch.randint(-2, 3, weight.shape, generator=generator).float()

    def forward(self, number: int) -> Tensor:
        """All numbers are small integers, and so are the gradients: no order of summation can change them."""
        x = torch.randint(-2, 3, (3, 6), generator=torch.Generator().manual_seed(number)).float()
        for layer in self.layers if number % 2 else reversed(self.layers):
            x = layer(x)
        return (self.sometimes(x) if number in (1, 4) else x).sum()


def summed(shares: tuple[tuple[tuple[int, ...], ...], ...], masters: torch.dtype) -> dict[str, object]:
    """Train on this rank's share of every step: its gradients by step, its weights after the last; what was sent in
    each step, and how much of it after each micro-batch."""
    model, ranks = Chain(), Ranks()
    found = MasterWeights(model, torch.float32, ranks, masters=masters)
    sent, start_sum = [], ranks.start_sum

    def start(tensor: Tensor, owner: int) -> object:
        sent[-1].append((tuple(tensor.shape), owner))
        return start_sum(tensor, owner)

    ranks.start_sum = start  # type: ignore[method-assign]
    early, gradients = [], []
    for step in shares:
        sent.append([])
        for number in step[ranks.rank]:
            if number == step[ranks.rank][-1]:
                found.expect_last()
            model(number).backward()
            early.append(len(sent[-1]))
        found.collect()
        gradients.append({name: x.grad.clone() for name, x in found.weights.items() if x.grad is not None})
    adamw(found.weights, OptimizerSettings()).step()
    weights = {name: weight.detach().clone() for name, weight in found.weights.items()}
    return {"gradients": gradients, "weights": weights, "sent": sent, "early": early}


if __name__ == "__main__":

    def write() -> None:
        """The answers of one rank."""
        answers = {str(masters): summed(STEPS, masters) for masters in (torch.float32, torch.bfloat16)}
        torch.save(answers, Path(sys.argv[3]) / f"{Ranks().rank}.pt")

    sys.exit(fork(int(sys.argv[1]), sys.argv[2], write))
