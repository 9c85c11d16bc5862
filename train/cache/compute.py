"""What encoders compute on and in."""

import torch

from shared.device import devices


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return devices()[0]


def compute_dtype(device: torch.device) -> torch.dtype:
    """What encoders compute in. Not float16: FLUX's autoencoder overflows in it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def configure_compiler() -> None:
    """Before anything is compiled."""
    torch._dynamo.config.recompile_limit = 64  # Copies on several GPUs share the code.
    torch._dynamo.config.specialize_float = True  # FlexAttention takes no other cap of scores.
