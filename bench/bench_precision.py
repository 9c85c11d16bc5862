"""Loss curves of weights and products of every precision, over the same samples, noise and times, as one picture.

    python bench/bench_precision.py [--work WORK] [--plot precision.png] [--steps 300] [--batch 32]

Trains a model of 100M parameters from scratch by `train.loop.Trainer`: from the cache in WORK (of its smallest area),
or from pictures of 256 px made up on the spot, each caption a pattern that can be learned. Prints a table: the mean
loss of the last 50 steps, and the largest distance of the curve, smoothed, from that of float32 masters. These are to
be compared with how far curves of float32 lie apart by their seeds alone, and with bfloat16 rounded to the nearest,
which no setting asks for. `--small` is for trying the script out.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import PartialState
from bench_step import DEVICE, SMALL
from bench_train import Memory, train
from numpy.typing import NDArray
from torch import Tensor

from train import rounding
from train.cache.reader import CacheReader
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.settings import OptimizerSettings, TrainSettings

LAST, WINDOW = 50, 25
"""Steps whose mean is in the table, and those over which curves are smoothed."""


@dataclass(frozen=True)
class Variant:
    """A curve."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the settings."""
    rounding: Callable[..., Tensor] = rounding.round_stochastically
    """Of bfloat16 masters."""


REFERENCE = Variant("float32 masters")
VARIANTS = (
    REFERENCE,
    Variant("bfloat16 masters, stochastic rounding", {"masters": "bfloat16"}),
    Variant("float8 products", {"precision": "float8"}),
    Variant("float32 masters, seed 1", {"seed": 1}),
    Variant("float32 masters, seed 2", {"seed": 2}),
    Variant("bfloat16 masters, rounded to the nearest", {"masters": "bfloat16"}, lambda x, _: x.bfloat16()),
)


class Patterns(Memory):
    """Pictures that their captions tell: waves of 16 kinds, with noise, and words of 16 kinds."""

    def __init__(self, images: int, side: int, width: int) -> None:
        super().__init__(images, side, width)
        generator = torch.Generator().manual_seed(1)
        line = torch.linspace(0, 2 * torch.pi, side)
        turns, phases = (
            torch.rand(2, 16, 16, 1, 1, generator=generator) * 3,
            torch.rand(16, 16, 1, 1, generator=generator) * 6,
        )
        waves = (turns[0] * line[:, None] + turns[1] * line + phases).sin()
        self._latents = (2 * waves + 0.5 * torch.randn(waves.shape, generator=generator)).bfloat16()
        self._words = torch.randn(16, width, generator=generator).bfloat16()

    def text(self, index: int, variant: str | None) -> Tensor:
        """(tokens, width)."""
        text = super().text(index, variant)
        return text + 2 * self._words[index % 16] if variant else text


def curve(config: DiTConfig, settings: TrainSettings, variant: Variant, reader: Any) -> NDArray[np.float64]:
    """The losses of a run, by step."""
    settings = settings.model_copy(update=variant.changes)
    rounding.round_stochastically = variant.rounding
    torch.manual_seed(settings.seed)
    model = Lumina2DiT(config)
    model.init_weights()
    return np.array([record["loss"] for record in train(settings, model, reader)])


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over a window that moves on."""
    return np.convolve(losses, np.ones(WINDOW) / WINDOW, mode="valid")


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest between two smoothed curves."""
    return float(np.abs(smoothed(one) - smoothed(other)).max())


def table(curves: dict[str, NDArray[np.float64]]) -> str:
    """The table, in Markdown, and what to compare its last column with."""
    rows = ["| | mean loss of the last 50 steps | largest distance from float32 masters |", "|---|---|---|"]
    rows += [
        f"| {name} | {losses[-LAST:].mean():.4f} | {distance(losses, curves[REFERENCE.name]):.4f} |"
        for name, losses in curves.items()
    ]
    seeds = [losses for name, losses in curves.items() if name.startswith(REFERENCE.name)]
    spread = max(distance(one, other) for one, other in combinations(seeds, 2))
    return "\n".join([*rows, "", f"float32 masters of {len(seeds)} seeds lie up to {spread:.4f} apart."])


def plot(curves: dict[str, NDArray[np.float64]], path: Path) -> None:
    """The smoothed curves; those of other seeds are grey."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name, losses in curves.items():
        steps = np.arange(len(smoothed(losses))) + WINDOW
        axes.plot(steps, smoothed(losses), label=name, lw=1.2, **({"color": "0.8"} if "seed" in name else {}))
    axes.set(xlabel="step", ylabel=f"loss, mean of {WINDOW} steps", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train every variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("precision.png"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budget", type=int, default=16_384)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    PartialState()
    if args.work:
        cache = CacheReader(args.work)
        reader: Any = cache.at(cache.areas[0])
    else:
        reader = Patterns(2048, 8 if args.small else 32, 64 if args.small else 2304)
    sizes = {"hidden_size": args.width, "num_layers": args.layers, "num_attention_heads": args.width // 96}
    sizes |= {"num_kv_heads": args.width // 192}
    if args.small:
        sizes = {key: getattr(SMALL, key) for key in (*sizes, "axes_dim_rope")}
    config = DiTConfig(cap_feat_dim=reader.text_dim, in_channels=reader.channels, **sizes)
    settings = TrainSettings(
        steps=args.steps,
        batch=args.batch,
        token_budget=args.budget,
        optimizer=OptimizerSettings(learning_rate=args.rate, warmup=20),
        log_every=100,
    )
    curves = {}
    for variant in VARIANTS:
        if variant.changes.get("precision") == "float8" and DEVICE.type == "cpu":
            print(f"{variant.name}: a CPU has none")
            continue
        print(variant.name, flush=True)
        curves[variant.name] = curve(config, settings, variant, reader)
        print(f"{variant.name}: {curves[variant.name][-LAST:].mean():.4f}", flush=True)
        plot(curves, args.plot)  # As soon as there is something to see: all of them take minutes.
    print(table(curves))


if __name__ == "__main__":
    main()
