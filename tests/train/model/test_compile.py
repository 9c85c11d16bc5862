"""Compiled blocks: the same numbers, and few graphs, whatever the mix of sizes."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.train.model.support import CONFIG, GPU_CONFIG, MIXED, Sample, batch_of, random_lora, random_model, relative
from train.model import attention
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT
from train.model.packing import layout_of
from train.settings import Recompute

MIXES: list[list[Sample]] = [
    list(MIXED),
    [(5, (3, 4)), (9, (8, 8))],
    [(5, (3, 4))] * 3,
    [(12, (5, 4)), (9, (8, 2)), (3, (3, 3)), (4, (1, 2))],
    [(9, (6, 6))],
]


@torch.library.custom_op("illustrious_tests::by_sample", mutates_args=())
def by_sample(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """Stands for a kernel that is given offsets, as those on a GPU are."""
    lengths = offsets.diff()
    assert longest >= int(lengths.max())
    return attention._by_sample(q, k, v, tuple(lengths.tolist()))


@by_sample.register_fake
def _(q: Tensor, _k: Tensor, _v: Tensor, _offsets: Tensor, _longest: int) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("illustrious_tests::by_sample_backward", mutates_args=())
def by_sample_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> list[Tensor]:
    """Of the one above."""
    lengths = tuple(offsets.diff().tolist())
    _, backward = torch.func.vjp(lambda *inputs: attention._by_sample(*inputs, lengths), q, k, v)
    return list(backward(gradient))


@by_sample_backward.register_fake
def _(_: Tensor, q: Tensor, k: Tensor, v: Tensor, _offsets: Tensor) -> list[Tensor]:
    return [torch.empty_like(x) for x in (q, k, v)]


by_sample.register_autograd(
    lambda context, gradient: (*by_sample_backward(gradient, *context.saved_tensors), None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:4]),  # noqa: ARG005
)


@pytest.fixture
def _a_kernel_of_offsets(_fresh_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "backend", torch.compiler.assume_constant_result(lambda *_: "flash2"))
    monkeypatch.setattr(
        attention, "_varlen", lambda q, k, v, offsets, _, longest, __: by_sample(q, k, v, offsets, longest)
    )


@pytest.mark.usefixtures("_a_kernel_of_offsets")
@pytest.mark.parametrize(
    ("make", "modulated", "recompute"),
    [*((random_model, 1, recompute) for recompute in get_args(Recompute)), (random_lora, 2, "cheap")],
)
def test_one_graph_for_each_kind_of_block_serves_any_mix(
    make: Callable[[], Lumina2DiT], modulated: int, recompute: Recompute
) -> None:
    """With adapters the first modulated block is of another kind: nothing in front of it learns."""
    model = make()
    expected = [learned(model, samples) for samples in MIXES]
    model.recompute = recompute
    model.compile_blocks("aot_eager")
    for samples, (plain, gradients) in zip(MIXES, expected, strict=True):
        found, found_gradients = learned(model, samples)
        assert relative(found, plain) < 1e-6
        assert found_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert relative(found_gradients[name], gradient) < 1e-5, name
        # And others for a sample that is alone: the compiler makes constants of ones.
        assert counters["stats"]["unique_graphs"] == 1 + modulated * (1 if len(samples) > 1 else 2)


def test_what_is_recomputed_is_not_kept_and_changes_no_gradient() -> None:
    config = replace(CONFIG, num_layers=1, num_refiner_layers=0)
    batch = batch_of([(5, (8, 12))])
    layout = layout_of(batch)
    kept, found = [], []
    for recompute in get_args(Recompute):
        torch._dynamo.reset()
        model = random_model(config)
        model.recompute = recompute
        model.compile_blocks("aot_eager")
        sizes: dict[int, int] = {}

        def note(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.data_ptr()] = x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            prediction = model(batch, layout)
        weights = sum(parameter.nbytes for parameter in model.parameters() if parameter.data_ptr() in sizes)
        kept.append(sum(sizes.values()) - weights)
        prediction.square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, *others in zip(*found, strict=True):
        assert plain is not None
        assert all(other is not None and relative(other, plain) < 1e-5 for other in others)
    assert kept == sorted(kept, reverse=True)
    assert kept[1] < 0.8 * kept[0]
    assert kept[2] < 0.6 * kept[1]
    assert kept[3] < 0.6 * kept[2]


def learned(
    model: Lumina2DiT, samples: list[Sample], place: str = "cpu", config: DiTConfig = CONFIG
) -> tuple[Tensor, dict[str, Tensor]]:
    """A prediction, and the gradients of its mean square."""
    batch = batch_of(samples, config).to(place, model.dtype)
    prediction = model(batch, layout_of(batch))
    prediction.float().square().mean().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return prediction.detach(), found


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", get_args(Recompute))
def test_on_a_gpu_compiled_bfloat16_follows_float32(recompute: str) -> None:
    mixes: list[list[Sample]] = [
        [(40, (16, 24)), (7, (4, 4)), (200, (32, 20))],
        [(40, (20, 20))] * 5,
        [(11, (9, 30)), (64, (31, 8))],
    ]
    model = random_model(GPU_CONFIG).cuda()
    expected = [learned(model, samples, "cuda", GPU_CONFIG) for samples in mixes]
    torch._dynamo.reset()
    counters.clear()
    model.bfloat16()
    model.recompute = recompute  # type: ignore[assignment]
    model.compile_blocks()
    for samples, (prediction, grads) in zip(mixes, expected, strict=True):
        found, found_grads = learned(model, samples, "cuda", GPU_CONFIG)
        assert relative(found, prediction) < 2e-2
        for name, grad in found_grads.items():
            assert relative(grad, grads[name]) < 0.1, name
    assert counters["stats"]["unique_graphs"] <= 4
