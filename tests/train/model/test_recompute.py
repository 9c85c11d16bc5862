from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.model.support import GPU_CONFIG, Sample, batch_of, random_model
from train.model import blocks
from train.model.config import DiTConfig
from train.model.float8 import to_float8
from train.model.packing import Segments, layout_of
from train.model.recompute import kept_bytes
from train.settings import Precision, Recompute

CONFIG = DiTConfig(cap_feat_dim=2304)
GIB = 2**30
SAMPLES: list[Sample] = [(16, (8, 8)), (32, (8, 8))]


@pytest.mark.parametrize(
    ("recompute", "precision", "measured"),
    [
        ("nothing", "bfloat16", 50.5),
        ("cheap", "bfloat16", 33.9),
        ("most", "bfloat16", 18.3),
        ("everything", "bfloat16", 11.5),
        ("nothing", "float8", 49.8),
        ("cheap", "float8", 37.6),
    ],
)  # GiB in all, bench/results/step_h200
def test_the_memory_is_what_was_measured(recompute: Recompute, precision: Precision, measured: float) -> None:
    tokens, weights, products = 4 * 4096 + 577, 2_609_769_152, 26 * (2304 * (3840 + 2304 + 18432) + 9216 * 2304)
    state = 2 * weights + (2 * products if precision == "float8" else 0)
    expected = (kept_bytes(CONFIG, tokens, recompute, precision) + state) / GIB
    assert expected == pytest.approx(measured, rel=0.03)


@torch.library.custom_op("illustrious_tests::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, longest: int) -> Tensor:
    """Stands for a kernel, of which the compiler knows what goes in and out, and what its backward wants."""
    return q + k.mean() + v.mean()


@torch.library.custom_op("illustrious_tests::attention_backward", mutates_args=())
def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return grad + out, torch.zeros_like(k), torch.zeros_like(v)


attention.register_fake(lambda q, _k, _v, _longest: torch.empty_like(q))
attention_backward.register_fake(lambda _grad, q, k, v, _out: (torch.empty_like(q), torch.empty_like(k), v.clone()))
attention.register_autograd(
    lambda ctx, grad: (*attention_backward(grad, *ctx.saved_tensors), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:3], output),
)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    out: Tensor = attention(q, k, v.contiguous(), segments.longest)
    return out


@pytest.fixture
def _compiler(_fresh_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "packed_attention", packed_attention)


def kept_by_the_compiler(precision: Precision) -> int:
    """Bytes that joint blocks keep of a forward pass, beside weights."""
    torch._dynamo.reset()
    model = random_model(GPU_CONFIG).bfloat16()
    if precision == "float8":
        to_float8(model)
    for block in model.layers:
        block.compile(fullgraph=True, backend="aot_eager_decomp_partition")  # What is kept is as inductor has it.
    batch, kept = batch_of(SAMPLES, GPU_CONFIG), {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out: Any = model(batch, layout_of(batch))
    assert out.requires_grad
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@pytest.mark.usefixtures("_compiler")
def test_float8_keeps_less_as_the_compiler_does() -> None:
    tokens = sum(text + rows * columns for text, (rows, columns) in SAMPLES)
    assert tokens % 16 == 0
    found = kept_by_the_compiler("bfloat16") - kept_by_the_compiler("float8")
    bfloat16, float8 = (kept_bytes(GPU_CONFIG, tokens, "nothing", precision) for precision in ("bfloat16", "float8"))
    # By the formula all blocks are in float8, and so is the one at work.
    expected = (bfloat16 - float8) * GPU_CONFIG.num_layers / (GPU_CONFIG.num_layers + 1 + 1)
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("_compiler")
def test_the_compiler_goes_on_whatever_comes() -> None:
    """Every kind of batch may be a graph more, and all blocks share the code of which they are."""
    model = random_model(replace(GPU_CONFIG, num_layers=1)).bfloat16()
    to_float8(model)
    model.recompute = "cheap"
    model.compile_blocks("eager")
    for samples in (SAMPLES, SAMPLES[:1], [(4, (33, 33))]):
        batch = batch_of(samples, GPU_CONFIG)
        model(batch, layout_of(batch)).float().square().mean().backward()
        with torch.no_grad():
            assert model(batch, layout_of(batch)).isfinite().all()
