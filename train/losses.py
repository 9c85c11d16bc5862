"""What a step minimises, and what is recorded of it."""

import torch
from torch import Tensor

from train import flow
from train.data.loader import MicroBatch
from train.model.packing import layout_of

TIMES = 10
"""Equal parts of the times from 0 to 1 for which the loss is told apart."""


def micro_losses(model: torch.nn.Module, batch: MicroBatch) -> Tensor:
    """The flow-matching loss of each sample of a micro-batch, (samples,) in float32."""
    clean, noise = batch.clean, batch.noise
    layout = layout_of(clean)
    t = clean.timesteps[layout.image_sample][:, None]
    prediction = model(clean.with_patches(flow.noisy(clean.patches, noise, t)), layout)
    target = flow.velocity(clean.patches, noise)
    return flow.sample_losses(prediction, target, layout.image_sample, len(clean.timesteps))


class Losses:
    """The losses of a global batch, summed up on the device."""

    def __init__(self, device: torch.device) -> None:
        self.loss, self.pooled = torch.zeros((), device=device), torch.zeros((), device=device)
        """Means over the samples, of the pictures and of what is pooled of them, not weighted."""
        self.by_time = torch.zeros(2, TIMES, device=device)
        """Sums and counts of the pictures' losses by time (`flow.by_time`)."""

    def add(self, batch: MicroBatch, losses: Tensor, samples: int) -> None:
        """Take in the losses (samples,) of a micro-batch, of a global batch of so many `samples`."""
        pictures = len(batch.positions)
        self.loss += losses[:pictures].sum() / samples
        self.pooled += losses[pictures:].sum() / samples
        self.by_time += flow.by_time(losses[:pictures], batch.clean.timesteps[:pictures], TIMES)

    def tensors(self) -> list[Tensor]:
        """All of them, to be summed over ranks."""
        return [self.loss, self.pooled, self.by_time]
