import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.train.model.support import (
    CONFIG,
    GPU_CONFIG,
    MIXED,
    Sample,
    batch_of,
    diffusers_model,
    inputs_of,
    random_model,
    relative,
)
from train.model.blocks import ModulatedNorm
from train.model.config import DiTConfig
from train.model.dit import Lumina2DiT, time_features
from train.model.names import to_diffusers
from train.model.packing import PackedBatch, layout_of, unpatchify
from train.settings import Recompute

SAMPLES = st.lists(
    st.tuples(st.integers(1, 12), st.tuples(st.integers(1, 5), st.integers(1, 5))), min_size=1, max_size=4
)


def run(model: Lumina2DiT, batch: PackedBatch) -> Tensor:
    prediction: Tensor = model(batch, layout_of(batch))
    return prediction


def pictures(prediction: Tensor, batch: PackedBatch) -> list[Tensor]:
    """The packed prediction as one (channels, height, width) for each sample."""
    parts = prediction.split(list(batch.image_lengths))
    patch, channels = CONFIG.patch_size, CONFIG.in_channels
    return [unpatchify(part, grid, patch, channels) for part, grid in zip(parts, batch.grids, strict=True)]


def test_one_mixed_batch_equals_diffusers_sample_by_sample() -> None:
    model = random_model()
    reference = diffusers_model(model)
    batch = batch_of(MIXED)
    batch = replace(batch, text=batch.text.requires_grad_(), patches=batch.patches.requires_grad_())
    found = pictures(run(model, batch), batch)
    targets = [torch.randn(picture.shape, generator=torch.Generator().manual_seed(1)) for picture in found]
    torch.stack([(x * y).sum() for x, y in zip(found, targets, strict=True)]).sum().backward()

    latent_grads, caption_grads = [], []
    for sample, picture, target in zip(MIXED, found, targets, strict=True):
        latent, caption, time = inputs_of(sample)
        latent.requires_grad_()
        caption.requires_grad_()
        mask = torch.ones(1, len(caption), dtype=torch.long)
        expected = reference(latent[None], time[None], caption[None], mask).sample[0]
        assert relative(picture, expected) < 1e-5
        (expected * target).sum().backward()
        latent_grads.append(latent.grad)
        caption_grads.append(caption.grad)

    assert batch.text.grad is not None
    assert relative(batch.text.grad, torch.cat(caption_grads)) < 1e-5  # type: ignore[arg-type]
    assert batch.patches.grad is not None
    for picture_grad, expected_grad in zip(pictures(batch.patches.grad, batch), latent_grads, strict=True):
        assert expected_grad is not None
        assert relative(picture_grad, expected_grad) < 1e-5
    found_grads = to_diffusers({name: parameter.grad for name, parameter in model.named_parameters()})  # type: ignore[misc]
    for name, parameter in reference.named_parameters():
        assert relative(found_grads[name], parameter.grad) < 2e-5, name


def test_equals_diffusers_with_padded_captions() -> None:
    model = random_model()
    samples: list[Sample] = [(3, (4, 6)), (11, (4, 6)), (8, (4, 6))]
    latents, captions, times = zip(*map(inputs_of, samples), strict=True)
    text = torch.nn.utils.rnn.pad_sequence(list(captions), batch_first=True)
    mask = torch.arange(11) < torch.tensor([[3], [11], [8]])
    expected = diffusers_model(model)(torch.stack(latents), torch.stack(times), text, mask).sample
    batch = batch_of(samples)
    assert relative(torch.stack(pictures(run(model, batch), batch)), expected) < 1e-5


@settings(max_examples=15, deadline=None)
@given(samples=SAMPLES, data=st.data())
def test_a_sample_does_not_depend_on_what_it_is_packed_with(samples: list[Sample], data: st.DataObject) -> None:
    model = random_model()
    order = data.draw(st.permutations(range(len(samples))))
    together = batch_of([samples[i] for i in order])
    with torch.no_grad():
        found = pictures(run(model, together), together)
        for place, i in enumerate(order):
            alone = batch_of([samples[i]])
            assert relative(found[place], pictures(run(model, alone), alone)[0]) < 1e-5


def test_recomputing_changes_no_gradient() -> None:
    batch = batch_of(MIXED[:2])
    gradients = []
    for recompute in get_args(Recompute):
        model = random_model()
        model.recompute = recompute
        run(model, batch).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, *recomputed in zip(*gradients, strict=True):
        assert all(torch.equal(kept, other) for other in recomputed)


def test_recomputing_everything_keeps_less() -> None:
    def kept(recompute: Recompute) -> int:
        model, sizes = random_model(), []
        model.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):  # type: ignore[func-returns-value]
            run(model, batch_of(MIXED))
        return sum(sizes)

    assert kept("everything") < kept("nothing") / 3


def test_time_features_resolve_what_bfloat16_does_not() -> None:
    near = torch.tensor([0.9010, 0.9015])
    assert near.bfloat16().unique().numel() == 1
    features = time_features(near)
    assert features.dtype == torch.float32
    assert (features[0] - features[1]).abs().max() > 1e-4


def test_initial_model_predicts_zero_and_starts_as_the_official_one() -> None:
    model = Lumina2DiT(CONFIG)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    torch.manual_seed(0)
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not run(model, batch_of(MIXED)).any()
    assert not any(m.linear.weight.any() for m in model.modules() if isinstance(m, ModulatedNorm))
    state = to_diffusers(model.state_dict())
    for rows, names in ((2 * CONFIG.hidden_size, ("to_q", "to_k", "to_v")), (CONFIG.ffn_dim, ("linear_1", "linear_3"))):
        extra = 2 * CONFIG.kv_dim if "to_q" in names else CONFIG.hidden_size
        bound = math.sqrt(6 / (rows + extra))
        for name in names:
            weight = state[f"layers.0.{'attn' if 'to_q' in names else 'feed_forward'}.{name}.weight"]
            assert 0.95 * bound < weight.abs().max() <= bound


def test_parameters_of_the_released_model() -> None:
    with torch.device("meta"):
        model = Lumina2DiT(DiTConfig(cap_feat_dim=2304))
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_609_769_152


def test_batches_beyond_the_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"40 tokens.*39.*max_tokens"):
        run(random_model(), batch_of([(40, (1, 1))]))


def test_bfloat16_autocast_keeps_one_dtype_along_the_residual() -> None:
    model, batch = random_model(), batch_of(MIXED)
    expected = run(model, batch)
    seen = set()
    for block in model.layers:
        block.register_forward_hook(lambda _block, _inputs, output: seen.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model, batch)
    assert seen == {torch.bfloat16}
    assert relative(found, expected) < 0.05
    found.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_gpu_bfloat16_follows_float32(autocast: bool) -> None:
    samples: list[Sample] = [(40, (16, 24)), (7, (4, 4)), (200, (32, 20))]
    batch = batch_of(samples, GPU_CONFIG).to("cuda")
    model = random_model(GPU_CONFIG).cuda()
    expected = run(model, batch)
    expected.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    if not autocast:
        model, batch = model.bfloat16(), batch.to("cuda", torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        found = run(model, batch)
    assert relative(found, expected) < 2e-2
    found.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, gradients[name]) < 0.1, name  # type: ignore[arg-type]
