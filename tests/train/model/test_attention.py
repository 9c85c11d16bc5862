import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.train.model.support import relative
from train.model import attention, flash4
from train.model.attention import backend, packed_attention
from train.model.packing import LONGEST, Segments

HEADS, KV_HEADS = 6, 2


def plain(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The definition, one sample and one head at a time."""
    out = torch.empty_like(q)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            scores = q[rows, head] @ k[rows, group].T / q.shape[2] ** 0.5
            out[rows, head] = scores.softmax(dim=1) @ v[rows, group]
        start += length
    return out


def random_heads(lengths: list[int], device: str = "cpu", head_dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(lengths), heads, head_dim) for heads in (HEADS, KV_HEADS, KV_HEADS))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def segments(lengths: list[int], device: str = "cpu") -> Segments:
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return Segments(offsets, tuple(lengths), -(-max(lengths) // LONGEST) * LONGEST)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_equals_the_definition_with_its_gradients(lengths: list[int]) -> None:
    heads = random_heads(lengths)
    found, expected = packed_attention(*heads, segments(lengths)), plain(*heads, lengths)
    assert relative(found, expected) < 1e-12
    weights = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad((found * weights).sum(), heads),
        torch.autograd.grad((expected * weights).sum(), heads),
        strict=True,
    ):
        # A segment of one token gives its query no gradient at all.
        assert (x - y).norm() < 1e-12 * (1 + y.norm())


def test_the_fused_kernel_is_for_half_precision_on_a_gpu() -> None:
    assert backend(torch.device("cpu"), torch.bfloat16, 96) == "sdpa"
    assert backend(torch.device("cuda"), torch.float32, 96) == "sdpa"
    assert backend(torch.device("cuda"), torch.bfloat16, 96) in ("flash2", "flash4")
    assert backend(torch.device("cuda"), torch.bfloat16, 16) == "flash2"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kernel", "head_dim"), [("flash2", 16), ("flash2", 96), *(("flash4", width) for width in flash4.HEAD_DIMS)]
)
@pytest.mark.parametrize("lengths", [[70, 1, 300, 129], [1100, 4097], [5]])
def test_a_fused_kernel_equals_the_definition(
    kernel: str, head_dim: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "flash4" and not flash4.available():
        pytest.skip("needs flash-attn-4 and a Hopper GPU")
    monkeypatch.setattr(attention, "backend", lambda *_: kernel)
    exact = random_heads(lengths, "cuda", head_dim)
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    found, expected = packed_attention(*half, segments(lengths, "cuda")), plain(*exact, lengths)
    assert relative(found, expected) < 1e-2
    weights = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad((found * weights.bfloat16()).sum(), half),
        torch.autograd.grad((expected * weights).sum(), exact),
        strict=True,
    ):
        assert relative(x, y) < 2e-2
