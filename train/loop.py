"""The training loop: plan -> micro-batches -> gradients -> AdamW -> average, with a record of every step."""

import time
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.errors import UserError
from shared.progress import console
from train import checkpoint
from train.cache.reader import CacheReader
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
from train.samples import Sampler
from train.settings import TrainSettings
from train.trained import Trained

STATE_BYTES = 4 + 4 + 4
"""Per weight that learns, beside the one that computes: its float32 one, the gradient, the average. The optimiser's
moments come on top."""
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
        self._accelerator = Accelerator()
        self._device = self._accelerator.device
        if settings.batch < self._accelerator.num_processes:
            raise UserError(
                f"train.batch = {settings.batch}: must be at least {self._accelerator.num_processes}, "
                "one sample for each process"
            )
        self._model = model.to(self._device)
        self._masters = MasterWeights(model, torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        self._weights = self._masters.weights
        self._optimizer = adamw(self._weights.values(), settings.optimizer)
        self._ema = Ema(self._weights, settings.ema)
        self._trained = Trained(model, settings)
        model.recompute = self._recompute()
        if self._device.type == "cuda":
            if settings.precision == "float8":
                to_float8(model)
            model.compile_blocks()

    def run(self) -> Path:
        """Train to the last step, from the newest checkpoint if there is one; returns the last checkpoint."""
        first, last = self._resume(), self._settings.steps
        self._announce(first)
        metrics = Metrics(self._folder, first, last, self._peak()) if self._accelerator.is_main_process else None
        for step in self._loader().steps(first, last):
            rate = step.learning_rate * rate_share(step.number, last, self._settings.optimizer)
            set_learning_rate(self._optimizer, rate)
            losses, waited = self._gradients(step)
            norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), self._settings.optimizer.clip, foreach=True)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._masters.publish()
            self._ema.update(step.number)
            if metrics is not None:
                metrics.add(step, losses, norm, rate, waited)
                self._report(metrics, step.number + 1)
            self._accelerator.wait_for_everyone()
        if metrics is not None:
            metrics.close()
        return checkpoint.path_of(self._folder, last)

    def _recompute(self) -> Recompute:
        """As set, or the fastest that fits beside weights, gradients, the optimiser's state and the average."""
        settings, config = self._settings, self._model.config
        if settings.recompute != "auto":
            return settings.recompute
        if self._device.type != "cuda":
            return "nothing"
        _, memory = torch.cuda.mem_get_info(self._device)
        moments = 2 if settings.optimizer.states == "int8" else 8
        fixed = 2 * sum(weight.numel() for weight in self._model.parameters())
        fixed += (STATE_BYTES + moments) * sum(weight.numel() for weight in self._weights.values())
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
        if self._accelerator.num_processes > 1:
            _sum_over_ranks([*total.tensors(), *self._masters.gradients()])
        return total, waited

    def _report(self, metrics: Metrics, done: int) -> None:
        """What is due after `done` steps: a line, a picture, a checkpoint."""
        settings, is_end = self._settings, done == self._settings.steps
        if done % settings.log_every == 0 or is_end:
            metrics.flush()
        if done % settings.checkpoint_every == 0 or is_end:
            with metrics.paused():
                checkpoint.save(
                    self._folder, self._state(done), self._trained, self._weights, self._ema, self._optimizer
                )
        if done % settings.samples.every == 0 or is_end:
            with metrics.paused(), self._ema.applied(self._model):
                picture = self._sampler.draw(self._model, self._folder / "samples" / f"step-{done:08}.png")
            console.print(f"drawn: {picture}", soft_wrap=True)

    def _resume(self) -> int:
        path = checkpoint.latest(self._folder)
        if path is None:
            return 0
        step = checkpoint.load(path, self._state(0), self._trained, self._weights, self._ema, self._optimizer)
        self._masters.publish()
        console.print(f"going on from {path}", soft_wrap=True)
        return step

    def _state(self, step: int) -> checkpoint.State:
        return checkpoint.State(
            step=step, seed=self._settings.seed, batch=self._settings.batch, cache=self._reader.identity
        )

    def _loader(self) -> Loader:
        return Loader(
            self._phases,
            self._settings,
            self._model.config,
            rank=self._accelerator.process_index,
            ranks=self._accelerator.num_processes,
            pin=self._device.type == "cuda",
        )

    def _peak(self) -> float:
        return peak_flops(self._device) * float(self._accelerator.num_processes)

    def _announce(self, first: int) -> None:
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        learning = sum(weight.numel() for weight in self._weights.values())
        self._accelerator.print(
            f"{self._folder}: {learning / 1e6:,.1f}M of {parameters / 1e6:,.1f}M parameters learn "
            f"on {self._accelerator.num_processes} x {self._device.type}, "
            f"attention by {backend(self._device, self._model.dtype)}, recomputing {self._model.recompute}\n"
            f"steps {first:,} to {self._settings.steps:,} of {self._settings.batch:,} samples\n"
            + "\n".join(self._phases.lines(self._settings.steps))
        )


def _sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all ranks."""
    for work in [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()
