"""The loss on pictures that are never trained on.

Every picture is shown at the same times with the same noise, which its id decides: not the seed, not the step, not the
other pictures. So the numbers of two steps, two runs or two versions of a dataset compare, picture by picture.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shared.errors import UserError
from train import flow
from train.cache.reader import CacheReader
from train.data.loader import MicroBatch, latent_of, micro_batch, noise_of
from train.data.plan import VALIDATION, assign
from train.data.random import stream_key
from train.data.selection import held_out
from train.losses import micro_losses
from train.model.config import DiTConfig
from train.settings import TrainSettings

SEED = 0
"""In place of a run's."""


class Validation:
    """One rank's part of the samples: every held-out picture at every time.

    Pictures are seen at the reader's area, with the caption whose variant is first by name, or the empty one. Times are
    the middles of `times` equal parts of [0, 1]. Raises UserError where no picture of the cache is held out.
    """

    def __init__(
        self, reader: CacheReader, settings: TrainSettings, config: DiTConfig, rank: int = 0, ranks: int = 1
    ) -> None:
        share, self._times = settings.validation.share, settings.validation.times
        pictures = min(held_out(reader, share), settings.validation.images)
        if not pictures:
            raise UserError(
                f"train.validation.share = {share}: holds out none of the {reader.images:,} pictures of the cache; "
                "raise it, or set it to 0 to go without"
            )
        self._reader, self._patch = reader, config.patch_size
        self._captions = [next(iter(reader.variants(index)), None) for index in range(pictures)]
        tokens = [
            reader.text_tokens(index, caption) + int(reader.image_tokens[index])
            for index, caption in enumerate(self._captions)
            for _ in range(self._times)
        ]
        # Ranks beyond the number of samples have nothing to do.
        shares = assign(tokens, min(ranks, len(tokens)), settings.token_budget)
        self._micro_batches = [micro for micro in shares[rank] if micro] if rank < len(shares) else []

    @torch.no_grad()
    def sums(self, model: torch.nn.Module) -> Tensor:
        """Sums and counts (2, times) of the losses of this rank's samples by time, float64, on the model's device.

        To be summed over ranks. Float64 counts exactly, and does not show how samples are spread over micro-batches.
        """
        device, was_training = next(model.parameters()).device, model.training
        total = torch.zeros(2, self._times, dtype=torch.float64, device=device)
        model.eval()
        for samples in self._micro_batches:
            batch = self._make(samples).to(device)
            # The middle of a part lies in it, whatever float32 makes of it.
            total += flow.by_time(micro_losses(model, batch), batch.clean.timesteps, self._times)
        model.train(was_training)
        return total

    def _make(self, samples: Sequence[int]) -> MicroBatch:
        """Sample n is picture n // times at time n % times."""
        reader, pictures = self._reader, [divmod(sample, self._times) for sample in samples]
        latents = [latent_of(reader, index) for index, _ in pictures]
        return micro_batch(
            latents,
            [reader.text(index, self._captions[index]) for index, _ in pictures],
            [(number + 0.5) / self._times for _, number in pictures],
            [self._noise(index, number, latent) for (index, number), latent in zip(pictures, latents, strict=True)],
            self._patch,
            weights=torch.ones(len(samples)),
            positions=samples,
        )

    def _noise(self, index: int, number: int, latent: Tensor) -> Tensor:
        picture = int(self._reader.image_id(index)[:16], 16)
        return noise_of(stream_key(SEED, VALIDATION, picture, number), latent)


def curve(sums: Tensor) -> list[float]:
    """The mean loss at each time, of the `Validation.sums` of all ranks together."""
    means: list[float] = (sums[0] / sums[1]).tolist()
    return means


def record(step: int, sums: Tensor) -> dict[str, Any]:
    """For validation.jsonl: the loss after a step, as a mean and by time. `sums` are those of all ranks together."""
    by_time = curve(sums)
    return {"step": step, "loss": sum(by_time) / len(by_time), "by_time": by_time}
