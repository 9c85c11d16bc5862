"""SwiGLU (arXiv 2002.05202) of rows that hold gate and value side by side.

On a GPU each way is one kernel, at the speed of the memory: what the compiler makes of the gradient, which is to be
written side by side too, takes nearly twice as long (bench/results).
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor


@torch.library.custom_op("illustrious::swiglu", mutates_args=())
def swiglu(x: Tensor) -> Tensor:
    """(rows, gate and value) -> silu(gate) * value, (rows, width). In float32, rounded once."""
    gate, value = x.float().chunk(2, dim=1)
    return (F.silu(gate) * value).to(x.dtype)


@torch.library.custom_op("illustrious::swiglu_backward", mutates_args=())
def gradient(grad: Tensor, x: Tensor) -> Tensor:
    """That of x."""
    gate, value = x.float().chunk(2, dim=1)
    share = gate.sigmoid()
    return torch.cat((grad * value * share * (1 + gate * (1 - share)), grad * gate * share), dim=1).to(x.dtype)


@swiglu.register_kernel("cuda")
def _(x: Tensor) -> Tensor:
    from train.model.kernels import swiglu as kernels

    return kernels.forward(x.contiguous())


@gradient.register_kernel("cuda")
def _(grad: Tensor, x: Tensor) -> Tensor:
    from train.model.kernels import swiglu as kernels

    return kernels.backward(grad.contiguous(), x.contiguous())


@swiglu.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


@gradient.register_fake
def _(_grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    found: Tensor = gradient(grad, x)
    return found


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG001 - called by these names
    ctx.save_for_backward(*inputs)


swiglu.register_autograd(_backward, setup_context=_save)
