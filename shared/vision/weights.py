"""What a model is, wherever it was loaded from."""

import hashlib

import torch
from torch import nn


def weights_hash(model: nn.Module) -> str:
    """A hash of the parameters and buffers of a model on the CPU, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
