"""The peak speed of a device, against which training is measured."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BF16_PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 210e12,
    "B200": 2250e12,
}
"""Dense bfloat16 FLOP/s, float32 accumulation, from the vendor's datasheets; the first name found counts."""

SHARE_OF_PEAK = 0.45
"""That training in bfloat16 is taken to reach on an H100. Whole steps reach 0.51 on an H200 (bench/results), which has
a faster memory."""


def peak_flops(device: "torch.device") -> float:
    """FLOP/s that count as 100 %: the datasheet's on known GPUs, else what a large matrix product reaches."""
    import torch  # For seconds, which `train --help` does not take.

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in BF16_PEAK.items():
            if part in name:
                return peak
    return _measured(device)


def _measured(device: "torch.device", size: int = 1024, repeats: int = 8) -> float:
    import torch

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    matrix @ matrix
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # Reading a value waits for the device.
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
