"""Both ways against the definition in float64; without a GPU, the kernels run in Triton's interpreter (conftest.py)."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.train.model.support import Sample, batch_of, random_lora, random_model, relative
from train.model import blocks, qk
from train.model.dit import Lumina2DiT
from train.model.packing import Segments, layout_of
from train.model.qk import Heads, fused, normed_rotated, plain
from train.settings import Recompute

EPS = 1e-5
Way = Callable[..., Heads]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled, for a GPU")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]

SIZES = [(1, 24, 8, 96), (37, 4, 2, 12), (19, 3, 1, 24), (5, 2, 2, 2), (16, 6, 2, 96)]
"""Tokens, heads, heads of keys, channels of a head."""

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
"""Relative error: that of float32; and of one rounding to bfloat16, which in Triton's interpreter is towards zero."""


def definition(qkv: Tensor, weight_q: Tensor, weight_k: Tensor, angle: Tensor, kv_heads: int) -> Heads:
    """In float64, with complex numbers; weights are (head_dim,), angles (tokens, head_dim / 2)."""
    head_dim = len(weight_q)
    width = kv_heads * head_dim
    q, k, v = (x.unflatten(1, (-1, head_dim)) for x in qkv.tensor_split([qkv.shape[1] - 2 * width, -width], dim=1))
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        normed = x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight
        numbers = torch.complex(normed[..., ::2], normed[..., 1::2]) * turn
        return torch.stack([numbers.real, numbers.imag], dim=-1).flatten(-2)

    return turned(q, weight_q), turned(k, weight_k), v


def leaves(size: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor]:
    """Projection and weights, and the angles. Tokens differ much in size: eps matters to some."""
    tokens, heads, kv_heads, head_dim = size
    generator = torch.Generator().manual_seed(0)
    scale = 10 ** torch.linspace(-3, 1, tokens)[:, None]
    values = [
        scale * torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, generator=generator),
        *(1 + 0.3 * torch.randn(2, head_dim, generator=generator)),
    ]
    angle = 100 * torch.rand(tokens, head_dim // 2, generator=generator, dtype=torch.float64)
    return [value.to(device, dtype).requires_grad_() for value in values], angle.to(device)


def run(way: Way, size: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Outputs, and gradients of all leaves for random gradients of the outputs."""
    given, angle = leaves(size, dtype, device)
    heads = way(*given, (angle.cos().float(), angle.sin().float()), size[2], EPS)
    return [*heads, *torch.autograd.grad(heads, given, grads_of(heads, dtype))]


def grads_of(heads: Heads, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(x.shape, generator=generator).to(x.device, dtype) for x in heads]


def exact(size: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """The same of the definition, for the same (rounded) numbers."""
    given, angle = leaves(size, dtype, device)
    given = [x.detach().double().requires_grad_() for x in given]
    heads = definition(*given, angle, size[2])
    grads = [grad.double() for grad in grads_of(heads, dtype)]
    return [*heads, *torch.autograd.grad(heads, given, grads)]


def assert_equals_the_definition(way: Way, size: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    found = run(way, size, dtype, device)
    for x, y in zip(found, exact(size, dtype, device), strict=True):
        assert x.shape == y.shape
        assert x.dtype == dtype
        assert relative(x, y) < TOLERANCE[dtype]
    # Small tokens have large gradients: each for itself.
    for x, y in zip(found[3], exact(size, dtype, device)[3], strict=True):
        assert relative(x, y) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_the_plain_way_equals_the_definition(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    assert_equals_the_definition(plain, size, dtype, "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernels_equal_the_definition(size: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    assert_equals_the_definition(fused, size, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
def test_two_runs_are_bit_equal(device: str) -> None:
    first, second = (run(fused, (61, 4, 2, 24), torch.bfloat16, device) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("device", DEVICES)
def test_weights_of_another_dtype_keep_theirs(device: str) -> None:
    (qkv, *weights), angle = leaves((9, 2, 1, 12), torch.float32, device)
    half = qkv.detach().bfloat16().requires_grad_()
    heads = fused(half, *weights, (angle.cos().float(), angle.sin().float()), 1, EPS)
    assert {x.dtype for x in heads} == {torch.bfloat16}
    sum(x.sum() for x in heads).backward()  # type: ignore[union-attr]
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in weights)


@pytest.mark.parametrize("device", DEVICES)
def test_the_compiler_knows_what_the_operators_return(device: str) -> None:
    (qkv, *weights), angle = leaves((9, 4, 2, 12), torch.bfloat16, device)
    given = [x.detach() for x in (qkv, *weights)] + [angle.cos().float(), angle.sin().float()]
    q, k = qk._forward(*given, 2, EPS)
    torch.library.opcheck(qk._forward, (*given, 2, EPS))
    torch.library.opcheck(qk._backward, (*given, q, k, k, EPS))


def test_the_way_goes_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qk, "fused", None)
    (qkv, *weights), angle = leaves((9, 2, 1, 12), torch.float32, "cpu")
    normed_rotated(qkv, *weights, (angle.cos().float(), angle.sin().float()), 1, EPS)


def no_attention(q: Tensor, k: Tensor, v: Tensor, _: Segments) -> Tensor:
    """Any mixture of the tokens. What computes attention on a CPU would be compiled anew for every batch."""
    return q * (k + v.mean(dim=0)).repeat_interleave(q.shape[1] // k.shape[1], dim=1)


def learned(model: Lumina2DiT) -> dict[str, Tensor]:
    """Gradients of two batches with different numbers of tokens."""
    mixes: list[list[Sample]] = [[(2, (2, 2)), (1, (1, 3))], [(3, (1, 2)), (2, (1, 1))]]
    for batch in map(batch_of, mixes):
        model(batch, layout_of(batch)).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.skipif(not INTERPRETED, reason="tests/train/model/test_compile.py has the same for a GPU")
@pytest.mark.parametrize(
    ("make", "recompute", "graphs"),
    [(random_model, "everything", 2), (random_lora, "cheap", 3)],
)
def test_compiled_blocks_learn_the_same_with_the_kernels(
    make: Callable[[], Lumina2DiT], recompute: Recompute, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "packed_attention", no_attention)
    expected = learned(make())
    monkeypatch.setattr(blocks, "normed_rotated", fused)
    model = make()
    model.recompute = recompute
    model.compile_blocks("aot_eager_decomp_partition")
    found = learned(model)
    # One for each kind of block; and where only adapters learn, one for a block before which nothing does.
    assert counters["stats"]["unique_graphs"] == graphs
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert relative(grad, expected[name]) < 1e-5, name
