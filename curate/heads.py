"""Aesthetic heads: a stack of linear layers on an embedding, without activations between them.

LAION V1 is one layer, LAION V2 (improved-aesthetic-predictor) and V2.5 are five, with dropout in training. Without
activations a stack is one affine map, so the layers are multiplied once, and a score is a single dot product.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.files import file_sha256


@dataclass(frozen=True)
class Head:
    """score = embedding @ weight + bias."""

    weight: NDArray[np.float64]
    """(dim,)."""
    bias: float
    weights: str
    """Hash of the file."""

    def score(self, embeddings: NDArray[np.float16]) -> NDArray[np.float32]:
        """(n,) of embeddings (n, dim) of length 1."""
        scores: NDArray[np.float32] = (embeddings.astype(np.float64) @ self.weight + self.bias).astype(np.float32)
        return scores


def load_head(path: Path, dim: int) -> Head:
    """A head from a file of PyTorch (nothing in it is executed) or safetensors.

    Its layers are named by numbers (`layers.0.weight`, `layers.2.weight`, ...), or there is only one. Raises UserError
    where the file is not such a head, or one for embeddings of another width than `dim`.
    """
    tensors = _tensors(path)
    names = sorted((name for name in tensors if name.endswith("weight")), key=_number)
    shapes = [tensors[name].shape for name in names]
    widths = [dim, *(shape[0] for shape in shapes if shape)]
    if not names or widths[-1] != 1 or shapes != [(after, before) for before, after in pairwise(widths)]:
        found = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names) or "nothing"
        raise UserError(f"{path}: must be linear layers from the embedding's {dim} numbers to one, has {found}")
    matrix, bias = np.eye(dim), np.zeros(dim)
    for name in names:
        layer = tensors[name]
        matrix, bias = layer @ matrix, layer @ bias + tensors.get(name.removesuffix("weight") + "bias", 0.0)
    return Head(matrix[0], float(bias[0]), file_sha256(path)[:16])


def _number(name: str) -> int:
    """The last number in a name: that of the layer."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else 0


def _tensors(path: Path) -> dict[str, NDArray[np.float64]]:
    import torch  # It takes seconds to import.
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.double().numpy() for name, tensor in tensors.items()}
    except Exception as error:  # Of two libraries, about files of any kind.
        first = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as weights ({first}); give a .pth or .safetensors file") from None
