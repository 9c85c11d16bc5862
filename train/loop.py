"""The training loop: plan -> micro-batches -> gradients -> AdamW -> average, with a record of every step."""

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import yaml

from shared.errors import UserError
from shared.files import write_text
from shared.progress import console
from train import checkpoint
from train.cache.reader import CacheReader
from train.checkpoint_writer import CheckpointWriter
from train.data.loader import Loader, Step
from train.data.phases import Phases
from train.ema import Ema
from train.guard import Guard, skipped
from train.losses import Losses, micro_losses
from train.memory import Counts, choose
from train.metrics import Reports
from train.model.attention import backend
from train.model.dit import Lumina2DiT
from train.model.float8 import to_float8
from train.model.parts import rate_factors
from train.optimizer import adamw, rate_share, set_learning_rate
from train.peak import peak_flops
from train.precision import MasterWeights
from train.ranks import Ranks
from train.samples import Sampler
from train.settings import Recompute, TrainSettings
from train.signals import requests
from train.trained import Trained
from train.validation import Validation, by_series
from train.watch import Watch


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
        stored = getattr(torch, settings.masters)
        self._masters = MasterWeights(model, dtype, self._ranks, masters=stored, sharded=trained.sharded)
        weights = self._masters.weights
        factors = rate_factors(model, settings.optimizer.rates)
        self._optimizer = adamw(weights, settings.optimizer, settings.seed, factors)
        self._ema = Ema(weights, settings.ema, offload=settings.ema_offload)
        self._learner = checkpoint.Learner(trained, weights, self._ema, self._optimizer)
        self._guard, self._watch = Guard(settings.guard), Watch(rank=self._ranks.rank)
        self._validation = None
        if settings.validation.share:
            self._validation = Validation(reader, settings, model.config, self._ranks.rank, self._ranks.count)
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
        writer = CheckpointWriter(self._folder, self._settings.checkpoints, self._learner, self._ranks)
        with writer as checkpoints, self._reports(first) as reports, requests() as request, self._watch:
            for step in self._loader().steps(first, self._settings.steps):
                self._step(step, reports)
                last = step.number + 1
                with self._watch.doing(f"waiting for the other ranks after step {last:,}"):
                    stops = self._ranks.any(bool(request.signal))
                self._due(reports, checkpoints, last, stops or last == self._settings.steps)
                if stops:
                    self._ranks.print(f"asked to stop after step {last:,}; start the same command again to go on")
                    break
            with self._watch.doing("writing the last checkpoint"):
                checkpoints.wait()
        if self._ranks.rank == 0 and first < last == self._settings.steps:
            from train.plot import plot

            plot([self._folder], self._folder / "plot.png")
        return checkpoint.path_of(self._folder, last)

    def _step(self, step: Step, reports: Reports | None) -> None:
        """One step of the optimiser, unless its gradient is bad."""
        settings = self._settings.optimizer
        rate = step.learning_rate * rate_share(step.number, self._settings.steps, settings)
        set_learning_rate(self._optimizer, rate)
        losses, waited = self._gradients(step)
        norm = self._masters.clip(settings.clip)
        loss, length = torch.stack([losses.loss, norm]).tolist()  # Here the GPU is waited for, once per step.
        if reason := self._guard.refuse(step.number, loss, length):
            self._ranks.print(f"step {step.number + 1:,} is not taken: {reason}")
        else:
            self._ema.settle()
            self._optimizer.step()
            self._masters.publish()
            self._ema.update(step.number)
        self._optimizer.zero_grad(set_to_none=True)
        if reports is not None:
            reports.metrics.add(step, losses, norm, rate, waited)
            if reason:
                ids = map(self._reader.image_id, step.draws.pictures.tolist())
                reports.skipped.add(skipped(step.number, reason, loss, length, ids))

    def _recompute(self) -> Recompute:
        """As set, or the fastest that fits beside weights, gradients, the optimiser's state and the average."""
        settings = self._settings
        if settings.recompute != "auto":
            return settings.recompute
        if self._device.type != "cuda":
            return "nothing"
        _, memory = torch.cuda.mem_get_info(self._device)
        owned = sum(weight.numel() for weight in self._masters.weights.values())
        return choose(settings, self._model.config, Counts.of(self._model, owned), memory)

    def _gradients(self, step: Step) -> tuple[Losses, float]:
        """Accumulate the gradients of one step.

        Returns the losses of the global batch, and the seconds spent waiting for data. The loss of a
        micro-batch is the sum over its samples by the size of the global batch, so the gradient does not
        depend on how the batch is cut, and ranks sum theirs up, once, during the last backward pass.
        """
        total, waited = Losses(self._device), 0.0
        for future in step.micro_batches:
            start = time.perf_counter()
            with self._watch.doing(f"waiting for the loader, step {step.number + 1:,}"):
                batch = future.result().to(self._device)
            waited += time.perf_counter() - start
            losses = micro_losses(self._model, batch)
            if future is step.micro_batches[-1]:
                self._masters.expect_last()
            ((losses * batch.weights).sum() / step.samples).backward()
            total.add(batch, losses.detach(), step.samples)
        self._masters.collect()
        self._ranks.sum(total.tensors())
        return total, waited

    def _due(self, reports: Reports | None, checkpoints: CheckpointWriter, done: int, is_end: bool) -> None:
        """What is due after `done` steps: a line, a validation, a checkpoint, a picture.

        The checkpoint comes last of what is recorded, so that a run that goes on from it lacks no record.
        """
        settings = self._settings

        def due(every: int) -> bool:
            return is_end or done % every == 0

        def pause() -> AbstractContextManager[None]:
            return nullcontext() if reports is None else reports.metrics.paused()

        checkpoints.check()
        if reports is not None and due(settings.log_every):
            reports.metrics.flush()
        if self._validation is not None and due(settings.validation.every):
            with pause():
                self._validate(self._validation, reports, done)
        if due(settings.checkpoints.every):
            with pause():
                state = checkpoint.state_of(done, settings, self._reader.identity)
                checkpoints.save(state, {"guard": self._guard.state()})
        if due(settings.samples.every):
            with pause():
                self._draw(self._folder / "samples" / f"step-{done:08}.png")

    def _validate(self, validation: Validation, reports: Reports | None, done: int) -> None:
        """The loss of the averaged weights on pictures that are not trained on."""
        with self._masters.computing_with(self._ema.average):
            sums = validation.sums(self._model)
        self._ranks.sum([sums])
        if reports is not None:
            found = validation.record(done - 1, sums)
            reports.validated(found)
            console.print(f"step {done:,}: validation loss {found['loss']:.4f}{by_series(found)}", soft_wrap=True)

    def _draw(self, path: Path) -> None:
        """A picture by the averaged weights."""
        with self._masters.computing_with(self._ema.average):
            if self._ranks.rank == 0:
                console.print(f"drawn: {self._sampler.draw(self._model, path)}", soft_wrap=True)

    def _resume(self) -> int:
        path = self._ranks.first(checkpoint.newest(self._folder) if self._ranks.rank == 0 else None)
        if path is None:
            return 0
        step = checkpoint.check_state(path, self._settings, self._reader.identity)
        self._learner.restore(path)
        self._guard.restore(checkpoint.read_manifest(path)["guard"])
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

    def _reports(self, first: int) -> AbstractContextManager[Reports | None]:
        """The records of the run, which the first rank keeps for all."""
        if self._ranks.rank != 0:
            return nullcontext()
        # Not before what was there has been found to fit: `train audit` goes by these settings.
        config = yaml.safe_dump(self._settings.model_dump(mode="json"), sort_keys=False)
        write_text(self._folder / "config.yaml", config)
        peak = peak_flops(self._device) * float(self._ranks.count)
        return Reports(self._folder, first, self._settings.steps, peak)

    def _announce(self, first: int) -> None:
        parameters = list(self._model.parameters())
        learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        attention = backend(self._device, self._model.dtype, self._model.config.head_dim)
        self._ranks.print(
            f"{self._folder}: {learning / 1e6:,.1f}M of {sum(x.numel() for x in parameters) / 1e6:,.1f}M parameters "
            f"learn on {self._ranks.count} x {self._device.type}, "
            f"attention by {attention}, recomputing {self._model.recompute}\n"
            f"steps {first:,} to {self._settings.steps:,} of {self._settings.batch:,} samples\n"
            + "\n".join(self._phases.lines(self._settings.steps))
        )
