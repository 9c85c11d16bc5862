"""The loss on pictures that are never trained on.

Every picture is shown at the same times with the same noise, which its id decides: not the seed, not the step, not the
other pictures. So the numbers of two steps, two runs or two versions of a dataset compare, picture by picture. Within
one validation captions compare as well, for each is shown with the same noise: what a model knows of a name is what
its loss gains by the caption that has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from shared.errors import UserError
from train.cache.reader import CacheReader
from train.data.draws import check_captions
from train.data.loader import MicroBatch, latent_of, micro_batch, noise_of
from train.data.plan import VALIDATION, assign
from train.data.random import stream_key
from train.data.selection import held_out
from train.losses import micro_losses
from train.model.config import DiTConfig
from train.settings import TrainSettings

SEED = 0
"""In place of a run's."""


@dataclass(frozen=True)
class Series:
    """A way in which all pictures are shown, whose losses are told apart from those of other ways."""

    reader: CacheReader
    caption: str | None
    """A variant; None: the first one of each picture by name, or the empty caption."""

    @property
    def name(self) -> str:
        """Such as `tags 1024 px`."""
        return f"{self.caption or 'captions'} {self.reader.area} px"

    def variant(self, index: int) -> str | None:
        """The caption of a picture; None is the empty one."""
        return self.caption or next(iter(self.reader.variants(index)), None)

    def tokens(self, index: int) -> int:
        """Text and image tokens of a picture."""
        return self.reader.text_tokens(index, self.variant(index)) + int(self.reader.image_tokens[index])


class Validation:
    """One rank's part of the samples: every held-out picture in every series at every time.

    Times are the middles of `times` equal parts of [0, 1]. Raises UserError where no picture of the cache is held out
    and has the captions that are asked for.
    """

    def __init__(
        self, reader: CacheReader, settings: TrainSettings, config: DiTConfig, rank: int = 0, ranks: int = 1
    ) -> None:
        own = settings.validation
        check_captions(reader, own.captions, "train.validation.captions")
        self._reader, self._patch, self._times = reader, config.patch_size, own.times
        self.series = [
            Series(reader.at(area), caption)
            for area in own.areas or (reader.area,)
            for caption in own.captions or (None,)
        ]
        self._pictures = _pictures(reader, settings)
        tokens = [series.tokens(index) for index in self._pictures for series in self.series for _ in range(own.times)]
        # Ranks beyond the number of samples have nothing to do.
        shares = assign(tokens, min(ranks, len(tokens)), settings.token_budget)
        self._micro_batches = [micro for micro in shares[rank] if micro] if rank < len(shares) else []

    @torch.no_grad()
    def sums(self, model: torch.nn.Module) -> Tensor:
        """Sums and counts (2, series, times) of the losses of this rank's samples, float64, on the model's device.

        To be summed over ranks. Float64 counts exactly, and does not show how samples are spread over micro-batches.
        """
        device, was_training = next(model.parameters()).device, model.training
        kinds = len(self.series) * self._times
        total = torch.zeros(2, kinds, dtype=torch.float64, device=device)
        model.eval()
        for samples in self._micro_batches:
            losses = micro_losses(model, self._make(samples).to(device)).double()
            kind = torch.tensor([sample % kinds for sample in samples], device=device)
            total.index_add_(1, kind, torch.stack([losses, torch.ones_like(losses)]))
        model.train(was_training)
        return total.view(2, -1, self._times)

    def record(self, step: int, sums: Tensor) -> dict[str, Any]:
        """For validation.jsonl: the loss after a step, as a mean, by time, and by time in each series. `sums` are those
        of all ranks together."""
        curves = sums[0] / sums[1]
        return {
            "step": step,
            "loss": curves.mean().item(),
            "by_time": curves.mean(dim=0).tolist(),
            "series": {series.name: curve for series, curve in zip(self.series, curves.tolist(), strict=True)},
        }

    def _make(self, samples: Sequence[int]) -> MicroBatch:
        shown = [self._shown(sample) for sample in samples]
        latents = [latent_of(series.reader, index) for index, series, _ in shown]
        return micro_batch(
            latents,
            [series.reader.text(index, series.variant(index)) for index, series, _ in shown],
            [(number + 0.5) / self._times for *_, number in shown],
            [self._noise(index, number, latent) for (index, _, number), latent in zip(shown, latents, strict=True)],
            self._patch,
            weights=torch.ones(len(samples)),
            positions=samples,
        )

    def _shown(self, sample: int) -> tuple[int, Series, int]:
        """Picture, series and number of the time: the last of these changes fastest."""
        rest, number = divmod(sample, self._times)
        place, series = divmod(rest, len(self.series))
        return self._pictures[place], self.series[series], number

    def _noise(self, index: int, number: int, latent: Tensor) -> Tensor:
        picture = int(self._reader.image_id(index)[:16], 16)
        return noise_of(stream_key(SEED, VALIDATION, picture, number), latent)


def _pictures(reader: CacheReader, settings: TrainSettings) -> list[int]:
    """Held-out pictures that have all captions which are asked for."""
    own = settings.validation
    held = range(held_out(reader, own.share))
    found = list(islice((index for index in held if set(own.captions) <= set(reader.variants(index))), own.images))
    if not found:
        captions = f", none with the captions {', '.join(own.captions)}" if own.captions else ""
        raise UserError(
            f"train.validation.share = {own.share}: holds out {len(held):,} of the {reader.images:,} pictures of the "
            f"cache{captions}; raise it, or set it to 0 to go without"
        )
    return found


def by_series(record: dict[str, Any]) -> str:
    """The losses of a record in words, where there are several series."""
    series: dict[str, list[float]] = record["series"]
    if len(series) < 2:
        return ""
    return " (" + ", ".join(f"{name} {sum(curve) / len(curve):.4f}" for name, curve in series.items()) + ")"
