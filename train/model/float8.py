"""Products in float8 (arXiv 2209.05433), scaled by tensor as torchao does by default, in fewer passes over the memory.

Operands are e4m3, gradients e5m2, each scaled so that its largest magnitude becomes that of its type. The products
want the inner dimension of both operands contiguous and a multiple of 16. So an operand of two products is cast into
both layouts at once; weights are cast when they have changed, not for every product.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UserError
from train.model.blocks import ModulatedNorm
from train.model.dit import Lumina2DiT
from train.model.packing import MULTIPLE

OPERAND, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
CAPABILITY = (8, 9)
"""Of GPUs that multiply in float8."""
SMALLEST = 1e-12
"""What smaller magnitudes count as, for zeros to have a scale."""


class Float8Linear(nn.Linear):
    """A linear layer without bias that computes with float8 copies of its weight, which `refresh` makes."""

    rows: Tensor
    """The weight (out_features, in_features)."""
    columns: Tensor
    """The same, transposed."""
    inverse: Tensor
    """What the copies are to be multiplied with, a float32 scalar."""

    def __init__(self, linear: nn.Linear) -> None:
        """Takes over the weight of a linear layer, both of whose dimensions are multiples of 16."""
        assert linear.bias is None
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        for name in ("rows", "columns", "inverse"):
            self.register_buffer(name, None, persistent=False)
        self._copied: tuple[int, int] | None = None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weight, unless nothing was written to it since.

        PyTorch counts what is written to a tensor. Who writes past that, through its `data` or from another rank, must
        tell (`torch.autograd.graph.increment_version`).
        """
        now = self.weight.data_ptr(), self.weight._version
        if now != self._copied or self.rows.dtype != OPERAND:  # `Module.to` casts buffers, too.
            self.rows, self.columns, self.inverse = scaled_cast(self.weight, OPERAND, True, True)
            self._copied = now

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, in_features) -> (tokens, out_features)."""
        if torch.is_grad_enabled():
            out: Tensor = _Product.apply(x, self.weight, self.rows, self.columns, self.inverse)
            return out
        rows, _, inverse = scaled_cast(x, OPERAND, True, False)
        return _product(rows, inverse, self.rows, self.inverse, x.dtype, fast=True)


def products(model: Lumina2DiT) -> Iterator[tuple[str, nn.Linear]]:
    """The large products of the joint blocks, by name.

    Modulations are products of one row per sample: nothing to gain, and not a multiple of 16.
    """
    modulations = {id(module.linear) for module in model.modules() if isinstance(module, ModulatedNorm)}
    for name, module in model.layers.named_modules(prefix="layers"):
        if isinstance(module, nn.Linear) and id(module) not in modulations:
            yield name, module


def to_float8(model: Lumina2DiT) -> None:
    """Let the large products of the joint blocks be computed in float8, with the weights as they are at every call.

    Raises UserError where the GPU or the shape of the model cannot.
    """
    chosen = list(products(model))
    for name, linear in chosen:
        _check(name, linear.weight)
    for name, linear in chosen:
        model.set_submodule(name, Float8Linear(linear))
    model.register_forward_pre_hook(_refresh)


def _check(name: str, weight: Tensor) -> None:
    if any(size % MULTIPLE for size in weight.shape):
        rows, columns = weight.shape
        raise UserError(
            f"train.precision = float8: {name}.weight is {rows} x {columns}, both must be multiples of {MULTIPLE}; "
            "use bfloat16"
        )
    if weight.is_cuda and (found := torch.cuda.get_device_capability(weight.device)) < CAPABILITY:
        raise UserError(
            f"train.precision = float8: {torch.cuda.get_device_name(weight.device)} has compute capability "
            f"{found[0]}.{found[1]}, needed is {CAPABILITY[0]}.{CAPABILITY[1]} (Ada, Hopper and later); use bfloat16"
        )


def _refresh(model: nn.Module, _: Any) -> None:
    for module in model.modules():
        if isinstance(module, Float8Linear):
            module.refresh()


class _Product(torch.autograd.Function):
    """x @ weight.t(), by copies of the weight. Of x a float8 copy is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _weight: Tensor, rows: Tensor, columns: Tensor, inverse: Tensor) -> Tensor:
        x_rows, x_columns, x_inverse = scaled_cast(x, OPERAND, True, ctx.needs_input_grad[1])
        ctx.save_for_backward(x_columns, x_inverse, columns, inverse)
        return _product(x_rows, x_inverse, rows, inverse, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_columns, x_inverse, weight_columns, weight_inverse = ctx.saved_tensors
        (grad,), (of_x, of_weight, *_) = grads, ctx.needs_input_grad
        rows, columns, inverse = scaled_cast(grad, GRADIENT, of_x, of_weight)
        return (
            _product(rows, inverse, weight_columns, weight_inverse, grad.dtype) if of_x else None,
            _product(columns, inverse, x_columns, x_inverse, grad.dtype) if of_weight else None,
            *(None, None, None),
        )


def _product(
    left: Tensor, left_inverse: Tensor, right: Tensor, right_inverse: Tensor, dtype: torch.dtype, *, fast: bool = False
) -> Tensor:
    """left @ right.t(). `fast` leaves sums in the tensor cores' own precision, which is good enough forward."""
    out: Tensor = torch._scaled_mm(
        left, right.t(), scale_a=left_inverse, scale_b=right_inverse, out_dtype=dtype, use_fast_accum=fast
    )
    return out


@torch.library.custom_op("illustrious::scaled_cast", mutates_args=())
def scaled_cast(x: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix (m, n) as float8 in `rows` (m, n) and in `columns` (n, m rounded up to 16), where zeros follow.

    What is not wanted is empty. The third is what they are to be multiplied with, a float32 scalar. All that is
    computed with a matrix that has a NaN or an infinity is NaN.
    """
    scale = (torch.finfo(dtype).max / x.abs().max().double().clamp(min=SMALLEST)).float()
    cast = (x.float() * scale).to(dtype)
    in_rows, in_columns = _empty(x, dtype, rows, columns)
    if rows:
        in_rows.copy_(cast)
    if columns:
        in_columns.zero_()[:, : len(x)].copy_(cast.t())
    return in_rows, in_columns, scale.reciprocal()


@scaled_cast.register_kernel("cuda")
def _(x: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> tuple[Tensor, Tensor, Tensor]:
    from train.model.kernels import cast

    in_rows, in_columns = _empty(x, dtype, rows, columns)
    return in_rows, in_columns, cast.scaled_cast(x.contiguous(), in_rows, in_columns, SMALLEST)


@scaled_cast.register_fake
def _(x: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> tuple[Tensor, Tensor, Tensor]:
    return *_empty(x, dtype, rows, columns), x.new_empty((), dtype=torch.float32)


def _empty(x: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> tuple[Tensor, Tensor]:
    m, n = x.shape
    padded = (m + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    return (
        x.new_empty((m, n) if rows else (0,), dtype=dtype),
        x.new_empty((n, padded) if columns else (0,), dtype=dtype),
    )
