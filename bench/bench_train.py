"""Whole training steps of the full-size transformer: our trainer, and the models of others in an accelerate loop.

    python bench/bench_train.py [ours] [float8] [diffusers] [sd-scripts --checkout FOLDER] [--batch 64] [--steps 3]
                                [--budget 8800] [--recompute cheap] [--states int8] [--masters bfloat16] [--ema-offload]
    accelerate launch --num_processes 2 bench/bench_train.py ours --batch 128

Images per second are those of all processes together, which share the batch; the memory is that of the first. Random
weights and random latents of 1024 px, captions of 40 to 256 tokens, AdamW, clipping, the average of the weights, a
record per step. Ours is `train.loop.Trainer` with everything but the disk: tensors come from memory (read from a cache
they cost 0.05 ms each), no checkpoint is written. The first step, in which the compiler runs, does not count.
For sd-scripts, FOLDER is a checkout of kohya-ss/sd-scripts. Its weights are bfloat16 and rounded to the nearest.
"""

import argparse
import gc
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import MagicMock

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from bench_step import CONFIG, DEVICE, SMALL, reference, wait
from torch import Tensor, nn

from train import flow, loop
from train.data.phases import Phase, Phases
from train.data.plan import Plan
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.settings import CheckpointSettings, OptimizerSettings, Recompute, SampleSettings, TrainSettings


class Memory:
    """What a CacheReader gives, from memory."""

    identity, area, multiple, channels, scaling_factor, shift_factor = "bench", 1024, 16, 16, 0.3611, 0.1159
    areas, variant_names = (1024,), ("tags",)

    def __init__(self, images: int, side: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images, self.text_dim = images, width
        self._side = side
        self._lengths = torch.randint(40, 257, (images,), generator=generator).tolist()
        self._latents = torch.randn(8, 16, side, side, generator=generator).bfloat16()
        self._text = torch.randn(256, width, generator=generator).bfloat16()

    def grid(self, _: int) -> tuple[int, int]:
        """Rows and columns of a picture in tokens."""
        return self._side // 2, self._side // 2

    def variants(self, _: int) -> list[str]:
        """One caption for each picture."""
        return ["tags"]

    def text_tokens(self, index: int, variant: str | None) -> int:
        """Tokens of a caption."""
        return self._lengths[index] if variant else 2

    def latent(self, index: int) -> Tensor:
        """(16, side, side)."""
        return self._latents[index % len(self._latents)]

    def text(self, index: int, variant: str | None) -> Tensor:
        """(tokens, width)."""
        return self._text[: self.text_tokens(index, variant)]


def ours(config: DiTConfig, side: int, args: argparse.Namespace, precision: str) -> None:
    """Steps of our trainer."""
    settings = TrainSettings(
        steps=args.steps + 1,
        batch=args.batch,
        token_budget=args.budget,
        precision=precision,  # type: ignore[arg-type]
        recompute=args.recompute,
        masters=args.masters,
        ema_offload=args.ema_offload,
        optimizer=OptimizerSettings(states=args.states),
        pooled_loss=0,  # The peer has no such loss.
        log_every=1,
    )
    torch.manual_seed(0)
    with DEVICE:
        model = Lumina2DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    records = train(settings, model, Memory(4 * args.batch, side, config.cap_feat_dim))[1:]
    if not records:  # The first process has them.
        return
    seconds = sum(record["seconds"] for record in records)
    waited = sum(record["data_wait"] for record in records)
    what = f"ours, {precision}, recomputing {args.recompute}, {args.masters} masters, {args.states} states"
    report(f"{what}{', average on the host' * args.ema_offload}", args.batch * len(records) / seconds)
    share = np.mean([record["share_of_peak"] for record in records])
    print(f"    {share:.1%} of peak, {waited / seconds:.2%} of the time spent waiting for data", flush=True)


def train(settings: TrainSettings, model: Lumina2DiT, reader: Any) -> list[dict[str, Any]]:
    """A run that writes no checkpoints and draws nothing; the records of its steps, in the first process."""
    loop.CheckpointWriter = lambda *_: MagicMock()  # type: ignore[assignment]
    sampler: Any = SimpleNamespace(draw=lambda _, path: path)
    settings = settings.model_copy(
        update={"samples": SampleSettings(every=10**9), "checkpoints": CheckpointSettings(every=10**9)}
    )
    plan = Plan(settings.seed, reader.images, settings.batch)
    phase = Phase(0, [reader], np.arange(reader.images), plan, 0, settings.optimizer.learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        loop.Trainer(Path(folder), settings, reader, Phases([phase], None), model, sampler).run()
        metrics = Path(folder) / "metrics.jsonl"
        return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Noisy latents, times, captions and their mask to velocities."""


def of_diffusers(config: DiTConfig) -> tuple[nn.Module, Predict]:
    """diffusers' model, with float32 weights, as its training scripts have them."""
    model = reference(config)
    return model, lambda *inputs: model(*inputs, return_dict=False)[0]


def of_sd_scripts(config: DiTConfig, checkout: Path) -> tuple[nn.Module, Predict]:
    """The model of kohya-ss/sd-scripts, with the bfloat16 weights and attention that `lumina_train.py` gives it."""
    sys.path.insert(0, str(checkout))
    lumina: Any = importlib.import_module("library.lumina_models")
    with DEVICE:
        model = lumina.NextDiT(
            in_channels=config.in_channels,
            dim=config.hidden_size,
            n_layers=config.num_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_kv_heads,
            qk_norm=True,
            cap_feat_dim=config.cap_feat_dim,
            axes_dims=list(config.axes_dim_rope),
            axes_lens=list(config.axes_lens),
        ).bfloat16()
    model.enable_gradient_checkpointing()
    return model.train(), lambda x, times, captions, mask: model(x.bfloat16(), times, captions.bfloat16(), mask.int())


def theirs(name: str, make: Callable[[], tuple[nn.Module, Predict]], config: DiTConfig, side: int, batch: int) -> None:
    """Steps as the usual scripts make them: autocast, accelerate, gradient checkpointing, batches of 8."""
    accelerator = Accelerator(mixed_precision="bf16" if DEVICE.type == "cuda" else "no")
    model, predict = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), eps=1e-15, weight_decay=0, fused=True)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    model, optimizer = accelerator.prepare(model, optimizer)
    reader, micro = Memory(batch, side, config.cap_feat_dim), 8

    def step(batch: int) -> None:
        for start in range(0, batch, micro):
            is_last = start + micro >= batch
            lengths = [reader.text_tokens(index, "tags") for index in range(start, start + micro)]
            latents = torch.stack([reader.latent(index) for index in range(start, start + micro)]).to(DEVICE).float()
            captions = torch.zeros(micro, max(lengths), config.cap_feat_dim)
            for row, length in enumerate(lengths):
                captions[row, :length] = reader.text(start + row, "tags")
            mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
            times, noise = torch.rand(micro, device=DEVICE), torch.randn_like(latents)
            noisy = flow.noisy(latents, noise, times[:, None, None, None])
            with nullcontext() if is_last else accelerator.no_sync(model):
                with accelerator.autocast():
                    prediction = predict(noisy, times, captions.to(DEVICE), mask.to(DEVICE))
                    loss = torch.nn.functional.mse_loss(prediction.float(), latents - noise) * micro / batch
                accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, list(model.parameters()), 0.05)

    step(micro)
    wait()
    begin = time.perf_counter()
    step(batch // accelerator.num_processes)
    wait()
    report(f"{name}, accelerate, batches of 8", batch / (time.perf_counter() - begin))


def report(name: str, rate: float) -> None:
    """One line, of the first process; the memory is that since the last one."""
    if PartialState().process_index:
        return
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
    print(f"{name:80} {rate:6.2f} images/s {memory:5.1f} GiB", flush=True)


def main() -> None:
    """All, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["ours", "float8", "diffusers"])
    parser.add_argument("--checkout", type=Path, help="of kohya-ss/sd-scripts")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--budget", type=int, default=8_800)
    parser.add_argument("--states", choices=["float32", "int8"], default="float32")
    parser.add_argument("--masters", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--recompute", choices=[*get_args(Recompute), "auto"], default="auto")
    parser.add_argument("--ema-offload", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if "sd-scripts" in args.names and not args.checkout:
        parser.error("sd-scripts needs --checkout FOLDER")
    config, side = (SMALL, 16) if args.small else (CONFIG, 128)
    state = PartialState()  # From here on, "cuda" is the GPU of this process.
    for name in args.names:
        torch._dynamo.reset()
        if name == "diffusers":
            theirs(name, lambda: of_diffusers(config), config, side, args.batch)
        elif name == "sd-scripts":
            theirs(name, lambda: of_sd_scripts(config, args.checkout), config, side, args.batch)
        else:
            ours(config, side, args, "float8" if name == "float8" else "bfloat16")
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
