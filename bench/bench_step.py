"""Forward and backward of the full-size transformer at 1024 px on one GPU, ours against diffusers'.

    python bench/bench_step.py

Random weights in bfloat16, captions of 40 to 256 tokens, no optimiser. Prints images per second, the share of the
GPU's peak by the operations the model asks for, and the peak memory.
"""

import statistics
from collections.abc import Callable

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from train import flow
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.flops import training_flops
from train.model.packing import layout_of, pack
from train.peak import peak_flops

CONFIG = DiTConfig(cap_feat_dim=2304)
LATENT = (16, 128, 128)
DEVICE = torch.device("cuda")


def main() -> None:
    """Time both in one run."""
    if not torch.cuda.is_available():
        print("skipped: the step is measured on a CUDA device")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, 1024 px, captions of 40 to 256 tokens")
    lengths = torch.randint(40, 257, (8,), generator=torch.Generator().manual_seed(0)).tolist()
    report("diffusers, checkpointed, batch 8", diffusers_step(lengths), lengths)
    report("ours, packed, recompute, batch 8", packed_step(lengths, recompute=True), lengths)
    report("ours, packed, batch 3", packed_step(lengths[:3], recompute=False), lengths[:3])


def packed_step(lengths: list[int], *, recompute: bool) -> Callable[[], None]:
    """A step of our transformer."""
    with DEVICE:
        model = Lumina2DiT(CONFIG).bfloat16()
    model.checkpointing = recompute
    captions = [torch.randn(length, CONFIG.cap_feat_dim, device=DEVICE, dtype=torch.bfloat16) for length in lengths]
    latents = [torch.randn(LATENT, device=DEVICE, dtype=torch.bfloat16) for _ in lengths]
    batch = pack(latents, captions, torch.rand(len(lengths), device=DEVICE), CONFIG.patch_size)

    def step() -> None:
        layout = layout_of(batch)
        prediction = model(batch, layout)
        flow.sample_losses(prediction, batch.patches, layout.image_sample, len(lengths)).mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def diffusers_step(lengths: list[int]) -> Callable[[], None]:
    """A step of the reference, captions padded to the longest."""
    with DEVICE:
        model = Lumina2Transformer2DModel(cap_feat_dim=CONFIG.cap_feat_dim).bfloat16()
    model.enable_gradient_checkpointing()
    latents = torch.randn(len(lengths), *LATENT, device=DEVICE, dtype=torch.bfloat16)
    captions = torch.randn(len(lengths), max(lengths), CONFIG.cap_feat_dim, device=DEVICE, dtype=torch.bfloat16)
    mask = torch.arange(max(lengths), device=DEVICE)[None] < torch.tensor(lengths, device=DEVICE)[:, None]
    times = torch.rand(len(lengths), device=DEVICE, dtype=torch.bfloat16)

    def step() -> None:
        prediction: Tensor = model(latents, times, captions, mask, return_dict=False)[0]
        torch.nn.functional.mse_loss(prediction.float(), latents.float()).backward()
        model.zero_grad(set_to_none=True)

    return step


def report(name: str, step: Callable[[], None], lengths: list[int], repeats: int = 6) -> None:
    """Median time of a step after two warm-ups."""
    torch.cuda.reset_peak_memory_stats()
    times = []
    for index in range(repeats + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        if index >= 2:
            times.append(start.elapsed_time(end) / 1e3)
    seconds = statistics.median(times)
    work = sum(training_flops(CONFIG, length, LATENT[1] * LATENT[2] // 4) for length in lengths)
    print(
        f"{name:36} {len(lengths) / seconds:6.2f} images/s  {work / seconds / peak_flops(DEVICE):5.1%} of peak  "
        f"{torch.cuda.max_memory_allocated() / 2**30:5.1f} GiB"
    )


if __name__ == "__main__":
    main()
