"""The training loop: plan -> micro-batches -> gradients -> AdamW -> average, with a record of every step."""

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from shared.errors import UserError
from shared.progress import console
from train import checkpoint
from train.cache.reader import CacheReader
from train.checkpoint_writer import CheckpointWriter
from train.data.loader import Loader, Step
from train.data.phases import Phases
from train.ema import Ema
from train.losses import Losses, micro_losses
from train.metrics import Metrics
from train.model.attention import backend
from train.model.dit import Lumina2DiT
from train.model.recompute import Recompute, choose, kept_bytes
from train.optimizer import adamw, rate_share, set_learning_rate
from train.peak import peak_flops
from train.precision import MasterWeights, to_float8
from train.ranks import Ranks
from train.samples import Sampler
from train.settings import TrainSettings
from train.signals import requests
from train.trained import Trained

STATE_BYTES = 4 + 4
"""Per weight that this rank owns: its float32 value and the average. The optimiser's moments come on top; of all that
learn the gradient, and of all the one that computes."""
USABLE = 0.93
"""Share of a GPU's memory: the rest is for its context and for what lies between allocations."""


class Trainer:
    """One run of training in its `folder`, WORK/runs/NAME."""

    def __init__(
        self,
        folder: Path,
        settings: TrainSettings,
        reader: CacheReader,
        phases: Phases,
        model: Lumina2DiT,
        sampler: Sampler,
    ) -> None:
        self._folder, self._settings, self._reader, self._sampler = folder, settings, reader, sampler
        self._phases = phases
        self._ranks = Ranks()
        self._device = self._ranks.device
        if settings.batch < self._ranks.count:
            raise UserError(
                f"train.batch = {settings.batch}: must be at least {self._ranks.count}, one sample for each process"
            )
        self._model = model.to(self._device)
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        trained = Trained(model, settings)
        self._masters = MasterWeights(model, dtype, self._ranks, sharded=trained.sharded)
        weights = self._masters.weights
        self._optimizer = adamw(weights.values(), settings.optimizer)
        self._ema = Ema(weights, settings.ema)
        self._learner = checkpoint.Learner(trained, weights, self._ema, self._optimizer)
        model.recompute = self._recompute()
        if self._device.type == "cuda":
            if settings.precision == "float8":
                to_float8(model)
            model.compile_blocks()

    def run(self) -> Path:
        """Train to the last step, or until asked to stop, from the newest checkpoint if there is one; returns the last
        checkpoint."""
        first = last = self._resume()
        self._announce(first)
        checkpoints = CheckpointWriter(self._folder, self._settings.checkpoints, self._learner, self._ranks)
        with self._metrics(first) as metrics, requests() as request:
            for step in self._loader().steps(first, self._settings.steps):
                self._step(step, metrics)
                last = step.number + 1
                stops = self._ranks.any(bool(request.signal))
                self._report(metrics, checkpoints, last, stops or last == self._settings.steps)
                if stops:
                    self._ranks.print(f"asked to stop after step {last:,}; start the same command again to go on")
                    break
            checkpoints.wait()
        return checkpoint.path_of(self._folder, last)

    def _step(self, step: Step, metrics: Metrics | None) -> None:
        """One step of the optimiser."""
        settings = self._settings.optimizer
        rate = step.learning_rate * rate_share(step.number, self._settings.steps, settings)
        set_learning_rate(self._optimizer, rate)
        losses, waited = self._gradients(step)
        norm = self._masters.clip(settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._masters.publish()
        self._ema.update(step.number)
        if metrics is not None:
            metrics.add(step, losses, norm, rate, waited)

    def _recompute(self) -> Recompute:
        """As set, or the fastest that fits beside weights, gradients, the optimiser's state and the average."""
        settings, config = self._settings, self._model.config
        if settings.recompute != "auto":
            return settings.recompute
        if self._device.type != "cuda":
            return "nothing"
        _, memory = torch.cuda.mem_get_info(self._device)
        moments = 2 if settings.optimizer.states == "int8" else 8
        fixed = sum((6 if weight.requires_grad else 2) * weight.numel() for weight in self._model.parameters())
        fixed += (STATE_BYTES + moments) * sum(weight.numel() for weight in self._masters.weights.values())
        free = USABLE * memory - fixed
        if found := choose(config, settings.token_budget, free):
            return found
        needed = kept_bytes(config, settings.token_budget, "everything")
        raise UserError(
            f"train.token_budget = {settings.token_budget:,}: needs {needed / 2**30:.1f} GiB even when everything is "
            f"recomputed, and {max(free, 0) / 2**30:.1f} GiB are left beside weights and optimiser; lower it"
        )

    def _gradients(self, step: Step) -> tuple[Losses, float]:
        """Accumulate the gradients of one step.

        Returns the losses of the global batch, and the seconds spent waiting for data. The loss of a
        micro-batch is the sum over its samples by the size of the global batch, so the gradient does not
        depend on how the batch is cut, and ranks sum theirs up, once, at the end of the step.
        """
        total, waited = Losses(self._device), 0.0
        for future in step.micro_batches:
            start = time.perf_counter()
            batch = future.result().to(self._device)
            waited += time.perf_counter() - start
            losses = micro_losses(self._model, batch)
            ((losses * batch.weights).sum() / step.samples).backward()
            total.add(batch, losses.detach(), step.samples)
        self._ranks.sum(total.tensors())
        self._masters.collect()
        return total, waited

    def _report(self, metrics: Metrics | None, checkpoints: CheckpointWriter, done: int, is_end: bool) -> None:
        """What is due after `done` steps: a line, a picture, a checkpoint."""
        settings = self._settings
        checkpoints.check()
        if metrics is not None and (done % settings.log_every == 0 or is_end):
            metrics.flush()
        if done % settings.checkpoints.every == 0 or is_end:
            with _paused(metrics):
                checkpoints.save(checkpoint.state_of(done, settings, self._reader.identity), {})
        if done % settings.samples.every == 0 or is_end:
            with _paused(metrics):
                self._draw(self._folder / "samples" / f"step-{done:08}.png")

    def _draw(self, path: Path) -> None:
        """A picture by the averaged weights."""
        self._masters.publish(self._ema.average)
        if self._ranks.rank == 0:
            console.print(f"drawn: {self._sampler.draw(self._model, path)}", soft_wrap=True)
        self._masters.publish()

    def _resume(self) -> int:
        path = self._ranks.first(checkpoint.newest(self._folder) if self._ranks.rank == 0 else None)
        if path is None:
            return 0
        step = checkpoint.check_state(path, checkpoint.state_of(0, self._settings, self._reader.identity))
        self._learner.restore(path)
        self._masters.publish()
        self._ranks.print(f"going on from {path}")
        return step

    def _loader(self) -> Loader:
        return Loader(
            self._phases,
            self._settings,
            self._model.config,
            rank=self._ranks.rank,
            ranks=self._ranks.count,
            pin=self._device.type == "cuda",
        )

    def _metrics(self, first: int) -> AbstractContextManager[Metrics | None]:
        """The records of the run, which the first rank keeps for all."""
        if self._ranks.rank != 0:
            return nullcontext()
        peak = peak_flops(self._device) * float(self._ranks.count)
        return Metrics(self._folder, first, self._settings.steps, peak)

    def _announce(self, first: int) -> None:
        parameters = list(self._model.parameters())
        learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        self._ranks.print(
            f"{self._folder}: {learning / 1e6:,.1f}M of {sum(x.numel() for x in parameters) / 1e6:,.1f}M parameters "
            f"learn on {self._ranks.count} x {self._device.type}, "
            f"attention by {backend(self._device, self._model.dtype)}, recomputing {self._model.recompute}\n"
            f"steps {first:,} to {self._settings.steps:,} of {self._settings.batch:,} samples\n"
            + "\n".join(self._phases.lines(self._settings.steps))
        )


def _paused(metrics: Metrics | None) -> AbstractContextManager[None]:
    """Leave what is no training out of the rates, where this rank has any."""
    return nullcontext() if metrics is None else metrics.paused()
