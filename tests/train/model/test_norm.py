"""The norm of a sample's rows: the plain code and the kernel against PyTorch's norm in float64."""

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor

from tests.train.model.support import relative
from train.model import norm
from train.model.norm import Rows, add_normed, branch_norm

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""In bfloat16 results are rounded, 2^-9 at most."""
SIZES = [(48, (1,), 0), (48, (5, 1, 30), 0), (80, (2, 1, 1, 1, 40, 7), 12), (2304, (3, 5), 7)]
"""Width, rows of samples, rows behind them."""

Function = Callable[..., tuple[Tensor, ...]]


@pytest.fixture(params=["plain", "kernel", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where to compute; by the kernel also on a CPU, where Triton interprets it (conftest.py)."""
    if request.param == "gpu":
        return "cuda"
    if request.param == "kernel":
        if torch.cuda.is_available():
            pytest.skip("the kernel runs on the GPU")
        pytest.importorskip("triton")
        monkeypatch.setattr(norm, "normed", norm.normed_by_kernel)
        monkeypatch.setattr(norm, "gradients", norm.gradients_by_kernel)
    return "cpu"


def rows_of(lengths: tuple[int, ...], behind: int) -> Rows:
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ends = [*accumulate(lengths)] + ([sum(lengths) + behind] if behind else [])
    return Rows(F.pad(sample, (0, behind), value=len(lengths) - 1), torch.tensor([0, *ends], dtype=torch.int32))


def plain_branch(x: Tensor, weight: Tensor, rows: Rows, eps: float) -> tuple[Tensor, Tensor]:
    return F.rms_norm(x, x.shape[1:], eps=eps) * weight[rows.sample], x


def plain_added(stream: Tensor, x: Tensor, weight: Tensor, rows: Rows, eps: float) -> Tensor:
    return stream + F.rms_norm(x, x.shape[1:], eps=eps) * weight[rows.sample]


def branch(run: Function, stream: Tensor, x: Tensor, weight: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """A branch, and something to add its gradient to."""
    normed, kept = run(stream, weight, rows, EPS)
    return normed, kept * 0.5 + x


def added(run: Callable[..., Tensor], stream: Tensor, x: Tensor, weight: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    out = run(stream, x, weight, rows, EPS)
    return out, out


CASES = [(branch, branch_norm, plain_branch), (added, add_normed, plain_added)]


def results(case: Function, run: Function, inputs: list[Tensor], targets: list[Tensor], rows: Rows) -> list[Tensor]:
    """Outputs and the gradients of stream, x and weight."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    outputs = case(run, *leaves, rows)
    torch.autograd.backward(outputs, targets)
    return [*outputs, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(("case", "ours", "plain"), CASES)
@pytest.mark.parametrize(("width", "lengths", "behind"), SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_pytorch_in_float64(
    device: str,
    case: Function,
    ours: Function,
    plain: Function,
    width: int,
    lengths: tuple[int, ...],
    behind: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    rows = rows_of(lengths, behind)
    size = len(rows.sample), width
    inputs = [torch.randn(size).to(dtype), 3 * torch.randn(size).to(dtype), torch.randn(len(lengths), width)]
    targets = [torch.randn(size).to(dtype), torch.randn(size).to(dtype)]
    expected = results(case, plain, [x.double() for x in inputs], [x.double() for x in targets], rows)
    there = Rows(*(tensor.to(device) for tensor in rows))
    found = results(case, ours, [x.to(device) for x in inputs], [x.to(device) for x in targets], there)
    assert len(found) == len(expected) == 5
    for mine, other in zip(found, expected, strict=True):
        assert mine.shape == other.shape
        assert relative(mine.cpu(), other) < TOLERANCE[dtype]
    again = results(case, ours, [x.to(device) for x in inputs], [x.to(device) for x in targets], there)
    assert all(map(torch.equal, found, again))


def test_gradients_may_be_one_number_that_stands_for_all(device: str) -> None:
    rows = Rows(*(tensor.to(device) for tensor in rows_of((3, 4), 0)))
    x, weight = torch.randn(7, 48), torch.randn(2, 48)

    def grads(run: Callable[..., tuple[Tensor, Tensor]], device: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(device, dtype).t().contiguous().t().requires_grad_(), weight.to(device, dtype).requires_grad_()]
        normed, kept = run(*leaves, Rows(*(tensor.to(device) for tensor in rows)), EPS)
        (normed.sum() + kept.sum()).backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    expected = grads(plain_branch, "cpu", torch.float64)
    for mine, other in zip(grads(branch_norm, device, torch.float32), expected, strict=True):
        assert relative(mine.cpu(), other) < 1e-5


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # By what interprets the kernel.
def test_a_row_of_infinity_stays_alone(device: str) -> None:
    """What the guard goes by must not vanish, nor spread to other samples."""
    rows = Rows(*(tensor.to(device) for tensor in rows_of((3, 4), 0)))
    x, weight = torch.randn(7, 48, device=device), torch.ones(2, 48, device=device)
    x[1, 5] = torch.inf
    out, _ = branch_norm(x, weight, rows, EPS)
    assert out.isfinite().all(dim=1).tolist() == [True, False, True, True, True, True, True]
