"""Products in float8: against torchao's, and the kernels against PyTorch's own operators."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from shared.errors import UserError
from tests.train.model.support import CONFIG, GPU_CONFIG, MIXED, batch_of, random_model, relative
from train.model.dit import Lumina2DiT
from train.model.float8 import GRADIENT, OPERAND, SMALLEST, Float8Linear, products, scaled_cast, to_float8
from train.model.packing import layout_of
from train.precision import MasterWeights
from train.ranks import Ranks
from train.settings import Recompute

SIZES = [(16, 16), (128, 128), (130, 144), (1, 48), (37, 272), (400, 128)]
DTYPES = [OPERAND, GRADIENT]


def matrix(m: int, n: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(m * 1000 + n)
    return (3 * torch.randn(m, n, generator=generator)).to(dtype)


def linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight.data = matrix(outputs, inputs)
    return layer.to(dtype)


def torchao_linear(layer: nn.Linear, *, emulate: bool) -> nn.Linear:
    float8 = pytest.importorskip("torchao.float8")
    found: nn.Linear = float8.float8_linear.Float8Linear.from_float(layer, float8.Float8LinearConfig(emulate=emulate))
    return found


def passes(layer: nn.Module, x: Tensor, target: Tensor) -> list[Tensor]:
    """The output, and the gradients of input and weight."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    out = layer(x)
    out.backward(target)
    (weight,) = layer.parameters()
    assert x.grad is not None
    assert weight.grad is not None
    return [out.detach(), x.grad, weight.grad.clone()]


@pytest.mark.parametrize("rows", [16, 40, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])  # Half of 2^-7.
def test_equals_torchao(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    layer = linear(48, 96, dtype)
    x, target = matrix(rows, 48, dtype), 1e-3 * matrix(rows, 96, dtype)
    expected = passes(torchao_linear(layer, emulate=True), x, target)
    found = passes(Float8Linear(layer), x, target)
    for mine, other in zip(found, expected, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        assert relative(mine, other) < tolerance
    exact = passes(layer, x, target)
    assert all(1e-2 < relative(mine, plain) < 0.1 for mine, plain in zip(found, exact, strict=True))
    with torch.no_grad():
        assert torch.equal(Float8Linear(layer)(x), found[0])


def test_what_does_not_learn_has_no_gradient() -> None:
    layer = Float8Linear(linear(48, 32, torch.float32))
    x, target = matrix(5, 48, torch.float32), matrix(5, 32, torch.float32)
    _, of_x, of_weight = passes(layer, x, target)
    layer(x).backward(target)
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, 2 * of_weight)
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).backward(target)
    assert x.grad is not None
    assert torch.equal(x.grad, of_x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), SIZES)
def test_both_layouts_have_the_values(dtype: torch.dtype, m: int, n: int) -> None:
    x = matrix(m, n)
    rows, columns, inverse = scaled_cast(x, dtype, True, True)
    assert rows.float().abs().max() == torch.finfo(dtype).max
    step = torch.finfo(dtype).eps / 2 * x.float().abs() + inverse * torch.finfo(dtype).smallest_normal
    assert ((rows.float() * inverse - x.float()).abs() <= step).all()
    assert columns.shape == (n, -(-m // 16) * 16)
    assert torch.equal(columns[:, :m].float(), rows.float().t())
    assert not columns[:, m:].float().any()
    for wanted in (True, False), (False, True):
        for found, whole, is_wanted in zip(scaled_cast(x, dtype, *wanted), (rows, columns), wanted, strict=False):
            assert torch.equal(found.float(), whole.float()) if is_wanted else not found.numel()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """What the guard goes by."""
    layer = Float8Linear(linear(48, 32, torch.float32))
    x, target = matrix(5, 48, torch.float32), matrix(5, 32, torch.float32)
    x[3, 4] = bad
    out, _, of_weight = passes(layer, x, target)
    assert out.isnan().all()
    assert of_weight.isnan().all()
    target[1, 2] = bad
    assert all(gradient.isnan().all() for gradient in passes(layer, x, target)[1:])


def by_kernel(x: Tensor, dtype: torch.dtype, wanted: tuple[bool, bool] = (True, True)) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels make of a matrix: interpreted, for there is no GPU (conftest.py)."""
    if torch.cuda.is_available():
        pytest.skip("the kernels run on the GPU")
    pytest.importorskip("triton")
    from train.model.kernels import cast

    padded = -(-len(x) // 16) * 16
    # Not zeros, so that what is left out is seen.
    rows = torch.ones(x.shape if wanted[0] else 0).to(dtype)
    columns = torch.ones((x.shape[1], padded) if wanted[1] else 0).to(dtype)
    return rows, columns, cast.scaled_cast(x, rows, columns, SMALLEST)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [*SIZES, (40, 2304)])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
def test_interpreted_kernels_equal_the_operators(dtype: torch.dtype, m: int, n: int, source: torch.dtype) -> None:
    # The interpreter forgets to carry where it rounds up, so these are values of float8, times a power of two.
    values = torch.randint(256, (m, n), generator=torch.Generator().manual_seed(0)).to(torch.uint8).view(dtype).float()
    values = values.where(values.isfinite(), 0)
    values[m // 2, n - 1] = -torch.finfo(dtype).max
    x = (values / 8).to(source)
    found = by_kernel(x, dtype)
    for mine, other in zip(found, scaled_cast(x, dtype, True, True), strict=True):
        assert torch.equal(mine.float(), other.float())
    assert torch.equal(found[0].float(), values)
    for wanted in (True, False), (False, True):
        for alone, both, is_wanted in zip(by_kernel(x, dtype, wanted), found, (*wanted, True), strict=True):
            assert torch.equal(alone.float(), both.float()) if is_wanted else not alone.numel()


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered")  # By what interprets the kernel.
@pytest.mark.parametrize("value", [0.0, -1e-20, 1e30, torch.nan, torch.inf, -torch.inf])
def test_interpreted_kernels_find_the_scale(value: float) -> None:
    for dtype in torch.bfloat16, torch.float32:
        x = torch.zeros(300, 144, dtype=dtype)
        x[299, 143] = value
        expected, found = scaled_cast(x, OPERAND, True, True), by_kernel(x, OPERAND)
        assert torch.equal(found[2].nan_to_num(-1), expected[2].nan_to_num(-1))
        assert found[2].isfinite() == bool(torch.tensor(value).isfinite())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [None, 0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
def test_on_a_gpu_kernels_equal_the_operators(dtype: torch.dtype, value: float | None, source: torch.dtype) -> None:
    for m, n in (*SIZES, (1040, 2304), (333, 9216)):
        x = matrix(m, n, source)
        if value is not None:
            x = torch.zeros_like(x)
            x[m // 2, n // 2] = value
        for wanted in (True, True), (True, False), (False, True):
            expected = scaled_cast(x, dtype, *wanted)
            for mine, other in zip(scaled_cast(x.cuda(), dtype, *wanted), expected, strict=True):
                assert mine.shape == other.shape
                torch.testing.assert_close(mine.cpu().float(), other.float(), rtol=0, atol=0, equal_nan=True)


def converted(model: Lumina2DiT) -> Lumina2DiT:
    to_float8(model)
    return model


def predicted(model: Lumina2DiT) -> Tensor:
    batch = batch_of(MIXED, model.config)
    with torch.no_grad():
        return model(batch, layout_of(batch))


def test_the_products_of_the_joint_blocks_are_converted_and_nothing_else_changes() -> None:
    plain, model = random_model(), converted(random_model())
    kinds = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    names = ("attn.to_qkv", "attn.to_out.0", "feed_forward.linear_13", "feed_forward.linear_2")
    assert kinds == {f"layers.{block}.{name}" for block in range(2) for name in names}
    assert kinds == {name for name, _ in products(plain)}
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert 1e-3 < relative(predicted(model), predicted(plain)) < 0.1


def test_the_copies_follow_the_weights() -> None:
    model = random_model()
    exact = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    masters = MasterWeights(model, torch.float32, Ranks())
    to_float8(model)

    def computes_with(factor: float) -> bool:
        fresh = random_model()
        for name, weight in fresh.named_parameters():
            weight.data = exact[name] * factor
        return torch.equal(predicted(model), predicted(converted(fresh)))

    assert computes_with(1)
    with masters.computing_with({name: x * 0.5 for name, x in exact.items()}):
        assert computes_with(0.5)
    assert computes_with(1)
    with torch.no_grad():
        for weight in masters.weights.values():
            weight.mul_(2)
    masters.publish()
    assert computes_with(2)


def test_weights_of_another_rank_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch does not count what a collective writes, nor what is written to the `data` of a tensor."""
    model = random_model()
    masters = MasterWeights(model, torch.float32, ranks := Ranks())
    to_float8(model)
    monkeypatch.setattr(ranks, "from_owners", lambda owned: [tensor.zero_() for tensor, _ in owned])
    owned = {name: weight for name, weight in masters.weights.items() if "linear_2" not in name}
    with masters.computing_with(owned):
        predicted(model)
        layers = [module for module in model.modules() if isinstance(module, Float8Linear)]
        assert layers
        assert not any(layer.rows.float().any() for layer in layers)


class Branch(nn.Module):
    """A block's way of using products: one after the other, and with a chunk in between."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Float8Linear(linear(48, 160, torch.float32))
        self.down = Float8Linear(linear(80, 48, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=1)
        out: Tensor = x + self.down(nn.functional.silu(gate) * value)
        return out


@pytest.mark.usefixtures("_fresh_compiler")
def test_one_graph_serves_any_number_of_rows_and_new_weights() -> None:
    block = Branch()
    block.compile(fullgraph=True, backend="aot_eager")
    for number, rows in enumerate((32, 48, 37, 1024)):
        if number == 3:
            with torch.no_grad():
                block.up.weight.mul_(3)
                block.up.weight[0] += 1
            block.up.refresh()
        found = []
        for run in block, block.forward:
            block.zero_grad()
            x = matrix(rows, 48, torch.float32).requires_grad_()
            torch._dynamo.maybe_mark_dynamic(x, 0)
            out = run(x)
            out.sum().backward()
            found.append([out.detach(), x.grad, block.up.weight.grad, block.down.weight.grad])
        for compiled, plain in zip(*found, strict=True):
            assert compiled is not None
            assert plain is not None
            assert relative(compiled, plain) < 1e-6
        assert counters["stats"]["unique_graphs"] == 1
    assert relative(block.up.rows.float() * block.up.inverse, block.up.weight) < 0.1


def gradients(model: Lumina2DiT, device: str = "cpu") -> dict[str, Tensor]:
    """A prediction and the gradients of all weights."""
    batch = batch_of(MIXED[:3], model.config).to(device)
    model.zero_grad(set_to_none=True)
    prediction = model(batch, layout_of(batch))
    prediction.float().square().mean().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"prediction": prediction.detach(), **found}


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_blocks_learn_the_same() -> None:
    expected = gradients(converted(random_model()))
    model = converted(random_model())
    model.recompute = "everything"
    model.compile_blocks("aot_eager")
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-3, name


@pytest.mark.gpu
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("recompute", ["nothing", "cheap", "everything"])
def test_on_a_gpu_compiled_blocks_learn_as_those_of_torchao(recompute: Recompute) -> None:
    def compiled(model: Lumina2DiT) -> dict[str, Tensor]:
        model.recompute = recompute
        model.compile_blocks()
        return gradients(model, "cuda")

    exact = gradients(random_model(GPU_CONFIG).cuda(), "cuda")
    reference = random_model(GPU_CONFIG).cuda().bfloat16()
    for name, layer in list(products(reference)):
        reference.set_submodule(name, torchao_linear(layer, emulate=False))
    expected = compiled(reference)
    found = compiled(converted(random_model(GPU_CONFIG).cuda().bfloat16()))
    assert found.keys() == expected.keys() == exact.keys()
    assert relative(found["prediction"], expected["prediction"]) < 2e-2
    for name, value in exact.items():
        # Rounding is chaotic: nearly equal operands may be rounded apart. But no error is larger than torchao's.
        assert relative(found[name], value) < 1.25 * relative(expected[name], value) + 1e-2, name


def test_a_width_that_float8_does_not_take_is_named() -> None:
    model = random_model(replace(CONFIG, ffn_dim_multiplier=0.69, multiple_of=4))
    with pytest.raises(UserError, match=r"layers\.0\.feed_forward\.linear_13\.weight is 264 x 48, both must be"):
        to_float8(model)
    assert not any(isinstance(module, Float8Linear) for module in model.modules())


def test_copies_that_were_cast_with_the_model_are_made_anew() -> None:
    model = converted(random_model())
    expected = gradients(model)
    model.to(torch.float32)  # The weights have that type, so nothing is written to them.
    assert torch.equal(gradients(model)["prediction"], expected["prediction"])
