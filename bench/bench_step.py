"""Forward and backward of the full-size transformer on one GPU, ours beside diffusers'.

    python bench/bench_step.py [NAME ...] [--profile NAME] [--images 4]

Random weights in bfloat16, captions of 40 to 256 tokens, no optimiser. Prints images and tokens per second, the share
of the GPU's peak by the operations the model asks for, the peak memory, and how often the compiler ran. The rows
`mixed` are packed from pictures of 512 to 1536 px, each batch another mix. `--small` is for trying the script out.
"""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor
from torch._dynamo.utils import counters

from train import flow
from train.model import flash4
from train.model.attention import backend
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.float8 import to_float8
from train.model.flops import training_flops
from train.model.packing import layout_of, pack
from train.peak import peak_flops
from train.settings import Recompute

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = DiTConfig(cap_feat_dim=2304)
SMALL = DiTConfig(
    cap_feat_dim=64, hidden_size=96, num_layers=2, num_attention_heads=4, num_kv_heads=2, axes_dim_rope=(8, 8, 8)
)
FLASH4 = flash4.available()


@dataclass(frozen=True)
class Work:
    """What is to be learned from in one step."""

    captions: tuple[int, ...]
    """Tokens."""
    sides: tuple[tuple[int, int], ...]
    """Rows and columns of each picture, in tokens."""

    @classmethod
    def of(cls, images: int, pixels: Sequence[int], seed: int = 0) -> "Work":
        """So many pictures, squares of these pixels in turn."""
        lengths = torch.randint(40, 257, (images,), generator=torch.Generator().manual_seed(seed)).tolist()
        sides = [pixels[index % len(pixels)] // 16 for index in range(images)]
        return cls(tuple(lengths), tuple((side, side) for side in sides))

    def flops(self, config: DiTConfig) -> int:
        """Operations of forward and backward."""
        return sum(training_flops(config, c, rows * columns) for c, (rows, columns) in zip(*self.parts, strict=True))

    @property
    def parts(self) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Both."""
        return self.captions, self.sides

    @property
    def tokens(self) -> int:
        """Of text and pictures."""
        return sum(self.captions) + sum(rows * columns for rows, columns in self.sides)


def ours(
    config: DiTConfig, works: Sequence[Work], recompute: Recompute, float8: bool, old: bool
) -> Callable[[int], None]:
    """Steps of our transformer on several batches, one after the other."""
    flash4.available = (lambda: False) if old else (lambda: FLASH4)  # type: ignore[assignment]
    with DEVICE:
        model = Lumina2DiT(config).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    if float8:
        to_float8(model)
    model.recompute = recompute
    if DEVICE.type == "cuda":
        model.compile_blocks()
    batches = []
    for work in works:
        captions = [torch.randn(n, config.cap_feat_dim, device=DEVICE, dtype=torch.bfloat16) for n in work.captions]
        latents = [torch.randn(16, 2 * rows, 2 * columns, device=DEVICE) for rows, columns in work.sides]
        batches.append(pack(latents, captions, torch.rand(len(captions), device=DEVICE), config.patch_size))

    def step(number: int) -> None:
        batch = batches[number % len(batches)]
        layout = layout_of(batch)
        prediction = model(batch, layout)
        flow.sample_losses(prediction, batch.patches, layout.image_sample, len(batch.timesteps)).mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def reference(config: DiTConfig) -> Lumina2Transformer2DModel:
    """diffusers' model, recomputed in the backward pass."""
    keys = ("cap_feat_dim", "hidden_size", "num_layers", "num_attention_heads", "num_kv_heads", "axes_dim_rope")
    with DEVICE:
        model = Lumina2Transformer2DModel(**{key: getattr(config, key) for key in keys})
    model.enable_gradient_checkpointing()
    return model


def theirs(config: DiTConfig, work: Work, compiled: bool) -> Callable[[int], None]:
    """Steps of the reference, recomputed, captions padded to the longest."""
    model = reference(config).bfloat16()
    if compiled:
        for block in (*model.context_refiner, *model.noise_refiner, *model.layers):
            block.compile()
    lengths, (rows, columns) = work.captions, work.sides[0]
    latents = torch.randn(len(lengths), 16, 2 * rows, 2 * columns, device=DEVICE, dtype=torch.bfloat16)
    captions = torch.randn(len(lengths), max(lengths), config.cap_feat_dim, device=DEVICE, dtype=torch.bfloat16)
    mask = torch.arange(max(lengths), device=DEVICE)[None] < torch.tensor(lengths, device=DEVICE)[:, None]
    times = torch.rand(len(lengths), device=DEVICE, dtype=torch.bfloat16)

    def step(_: int) -> None:
        prediction: Tensor = model(latents, times, captions, mask, return_dict=False)[0]
        torch.nn.functional.mse_loss(prediction.float(), latents.float()).backward()
        model.zero_grad(set_to_none=True)

    return step


def measure(name: str, config: DiTConfig, step: Callable[[int], None], works: Sequence[Work], profile: bool) -> float:
    """Tokens per second after the compiler is done, the host running ahead as it does in training."""
    cuda = DEVICE.type == "cuda"
    begin = time.perf_counter()
    for number in range(2 * len(works) if len(works) > 1 else 3):
        step(number)
    wait()
    warm = time.perf_counter() - begin
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    steps = 3 * len(works) if len(works) > 1 else 8
    begin = time.perf_counter()
    for number in range(steps):
        step(number)
    wait()
    mean = (time.perf_counter() - begin) / steps
    images = sum(len(work.captions) for work in works) / len(works)
    tokens = sum(work.tokens for work in works) / len(works)
    flops = sum(work.flops(config) for work in works) / len(works)
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    print(
        f"{name:34} {images / mean:7.2f} images/s {tokens / mean:9,.0f} tokens/s "
        f"{flops / mean / peak_flops(DEVICE):6.1%} of peak {memory:5.1f} GiB  "
        f"{counters['stats']['unique_graphs']} graphs, {warm:.0f} s to warm up",
        flush=True,
    )
    if profile:
        kernels(lambda: step(0))
    return tokens / mean


def wait() -> None:
    """For the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def kernels(step: Callable[[], None], rows: int = 45) -> None:
    """What the time of one step goes to."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda kernel: -kernel.device_time_total)
    total = sum(kernel.device_time_total for kernel in found)
    print(f"    {total / 1e3:.1f} ms in kernels")
    for kernel in found[:rows]:
        print(f"    {kernel.device_time_total / 1e3:7.2f} ms {kernel.count:5} x {kernel.key[:110]}")


def main() -> None:
    """All variants, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--profile", nargs="+", default=[])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    config, scale = (SMALL, 8) if args.small else (CONFIG, 1)
    square = Work.of(args.images, [1024 // scale])
    eight, eight_small = Work.of(8, [1024 // scale]), Work.of(32, [512 // scale])
    small = Work.of(4 * args.images, [512 // scale])
    mixes = [
        Work.of(args.images, [side // scale for side in (1536, 512, 768, 1024)], 1),
        Work.of(args.images + 1, [side // scale for side in (768, 1024, 512, 1280)], 2),
        Work.of(args.images + 2, [side // scale for side in (1024, 640, 896, 512)], 3),
    ]
    variants: dict[str, tuple[Callable[[], Callable[[int], None]], Sequence[Work]]] = {
        "diffusers": (lambda: theirs(config, eight, False), [eight]),
        "diffusers-compiled": (lambda: theirs(config, eight, True), [eight]),
        "diffusers-512-compiled": (lambda: theirs(config, eight_small, True), [eight_small]),
        "flash2": (lambda: ours(config, [square], "nothing", False, True), [square]),
        "ours": (lambda: ours(config, [square], "nothing", False, False), [square]),
        "ours-cheap": (lambda: ours(config, [square], "cheap", False, False), [square]),
        "ours-most": (lambda: ours(config, [square], "most", False, False), [square]),
        "ours-everything": (lambda: ours(config, [square], "everything", False, False), [square]),
        "ours-float8": (lambda: ours(config, [square], "nothing", True, False), [square]),
        "ours-float8-cheap": (lambda: ours(config, [square], "cheap", True, False), [square]),
        "ours-512": (lambda: ours(config, [small], "nothing", False, False), [small]),
        "ours-mixed": (lambda: ours(config, mixes, "nothing", False, False), mixes),
        "ours-mixed-float8": (lambda: ours(config, mixes, "nothing", True, False), mixes),
    }
    place = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{place}, torch {torch.__version__}, attention {backend(DEVICE, torch.bfloat16, config.head_dim)}")
    rates: dict[str, float] = {}
    for name in args.names or variants:
        make, works = variants[name]
        torch._dynamo.reset()
        counters.clear()
        try:
            rates[name] = measure(name, config, make(), works, name in args.profile)
        except torch.OutOfMemoryError:
            print(f"{name:34} does not fit")
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    for name, beside in ("ours-512", "ours"), ("ours-mixed", "ours"), ("ours-mixed-float8", "ours-float8"):
        if name in rates and beside in rates:
            print(f"{name}: {rates[name] / rates[beside]:.1%} of the tokens/s of {beside}")


if __name__ == "__main__":
    main()
