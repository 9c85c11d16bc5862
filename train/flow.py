"""Flow matching as Lumina-Image-2.0 was trained.

Time runs from noise (t = 0) to data (t = 1): x_t = t * data + (1 - t) * noise, and the network predicts the
velocity data - noise. It is given t as it is, in float32.
"""

import torch
from torch import Tensor

# The shift of the timestep law is linear in the number of image tokens, through these two points.
_TOKENS, _SHIFTS = (256, 4096), (0.5, 1.15)


def shift(image_tokens: float) -> float:
    """m of the timestep law: 0.5 at 256 image tokens (256 px), 1.15 at 4096 (1024 px)."""
    slope = (_SHIFTS[1] - _SHIFTS[0]) / (_TOKENS[1] - _TOKENS[0])
    return _SHIFTS[0] + slope * (image_tokens - _TOKENS[0])


def timesteps(normal: Tensor, m: Tensor | float) -> Tensor:
    """Training times from standard normal numbers, same shape, in (0, 1).

    t = sigmoid(n); its noise fraction s = 1 - t is shifted towards noise: s' = e^m / (e^m + 1 / s - 1).
    With logit(s) = -n that is a plain addition: logit(s') = m - n, hence t' = sigmoid(n - m).
    """
    return torch.sigmoid(normal.double() - m).float()


def noisy(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t; `t` broadcasts against `data`."""
    return t * data + (1 - t) * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """What the network is to predict."""
    return data - noise


def sample_losses(prediction: Tensor, target: Tensor, sample: Tensor, samples: int) -> Tensor:
    """Mean squared error of each sample of a packed batch.

    prediction, target: (tokens, channels); `sample` (tokens,) says to which of the `samples` a token belongs.
    Returns (samples,) in float32.
    """
    errors = (prediction.float() - target.float()).square().mean(dim=1)
    total = errors.new_zeros(samples).index_add(0, sample, errors)
    count = errors.new_zeros(samples).index_add(0, sample, torch.ones_like(errors))
    return total / count


def by_time(losses: Tensor, t: Tensor, bins: int) -> Tensor:
    """Sums and counts (2, bins) of losses (samples,) by time, in equal parts of [0, 1]."""
    part = (t * bins).long().clamp(0, bins - 1)
    values = torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)])
    return values.new_zeros(2, bins).index_add(1, part, values)


def schedule(steps: int, shift: float) -> list[float]:
    """Times of an Euler sampler, steps + 1 values from 0 to 1.

    The noise fractions 1 .. 0 are shifted by s' = shift * s / (1 + (shift - 1) * s), as inference does;
    training never uses this shift.
    """
    fractions = [1 - i / steps for i in range(steps + 1)]
    return [1 - shift * s / (1 + (shift - 1) * s) for s in fractions]


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance whose result is not longer than the conditional prediction.

    Both (tokens, channels) of one sample. Without the renormalisation a scale of 4 burns the colours.
    """
    result = unconditional + scale * (conditional - unconditional)
    limit, length = conditional.norm(), result.norm()
    scaled: Tensor = result * (limit / length).clamp(max=1.0)
    return scaled
