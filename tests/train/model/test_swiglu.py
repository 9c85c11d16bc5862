"""SwiGLU: the plain code and the kernel against PyTorch's own in float64."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor

from tests.train.model.support import relative
from train.model import swiglu as module
from train.model.swiglu import gradient, swiglu

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
"""In bfloat16 results are rounded; the interpreter cuts off."""


def expected(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double().requires_grad_()
    gate, value = x.chunk(2, dim=1)
    out = F.silu(gate) * value
    out.backward(grad.double())
    assert x.grad is not None
    return out, x.grad


@pytest.mark.parametrize("where", ["plain", "kernel", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(1, 16), (7, 1536), (33, 9216)])
def test_equals_pytorch_in_float64(where: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    if (where == "gpu") != torch.cuda.is_available() and where != "plain":
        pytest.skip("a kernel runs on a GPU where there is one, else in Triton's interpreter")
    torch.manual_seed(0)
    x, grad = (3 * torch.randn(size[0], 2 * size[1])).to(dtype), torch.randn(size).to(dtype)
    forward, backward = swiglu, gradient
    if where == "kernel":
        pytest.importorskip("triton")
        from train.model.kernels import swiglu as kernels

        forward, backward = kernels.forward, kernels.backward
    device = "cuda" if where == "gpu" else "cpu"
    found = forward(x.to(device)), backward(grad.to(device), x.to(device))
    for mine, other in zip(found, expected(x, grad), strict=True):
        assert relative(mine.cpu(), other) < TOLERANCE[dtype]


def test_large_gates_overflow_nothing() -> None:
    x = torch.tensor([[-3e4, 3e4, 1.0, 1.0]])
    assert torch.equal(swiglu(x), torch.tensor([[-0.0, 3e4]]))
    assert torch.equal(gradient(torch.ones(1, 2), x), torch.tensor([[-0.0, 1.0, -0.0, 3e4]]))


def test_autograd_goes_through_the_operator() -> None:
    x = torch.randn(5, 12, dtype=torch.float32, requires_grad=True)
    grad = torch.randn(5, 6)
    swiglu(x).backward(grad)
    assert torch.equal(x.grad, module.gradient(grad, x.detach()))  # type: ignore[arg-type]
