"""Has the Triton kernels compute the products of a model's quantised layers."""

from dataclasses import replace

import torch

from lorafleet_inference.kernels.triton.weights import (
    E4M3,
    TABLE,
    WHOLE,
    Matrix,
    bring_back,
    multiply,
    multiply_grouped,
)
from lorafleet_inference.model.quantization.stacks import StackedWeight
from lorafleet_inference.model.quantization.weight import Codes, QuantizedWeight, stacked

_KINDS = {Codes.UINT4: WHOLE, Codes.UINT8: WHOLE, Codes.FP8: E4M3, Codes.TABLE4: TABLE}


def use_kernels(model: torch.nn.Module) -> tuple[int, int]:
    """Have the kernels compute what they can; return how many weights these are, and how many are left to torch."""
    done = left = 0
    for module in model.modules():  # a stack before its weights
        if isinstance(module, StackedWeight):
            each = _matrix_of_each(module)
            module.kernels = None if each is None else Experts(each)
        if isinstance(module, QuantizedWeight):
            matrix = matrix_of(module)
            if matrix is None:
                left += 1
            else:
                done += 1
                module.kernels = Products(matrix)
    return done, left


class Products:
    """What `QuantizedWeight` leaves to the kernels."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers [out, in]."""
        return bring_back(self._matrix, dtype)

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return x W + b."""
        return multiply(x, self._matrix, bias)


class Experts:
    """What `StackedWeight` leaves to the kernels."""

    def __init__(self, each: Matrix) -> None:
        self._each = each

    def grouped(self, x: torch.Tensor, experts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Return the products [pairs, out]."""
        return multiply_grouped(x, self._each, experts, ends)


def _matrix_of_each(stack: StackedWeight) -> Matrix | None:
    """Return the first matrix of a stack, with the tensors of all for its own; None: the kernels are not for them, or they differ."""
    weights = stack.one_of_each()
    each = None if weights is None else matrix_of(weights[0])
    whole = None if weights is None or each is None else stacked(weights)
    if weights is None or each is None or whole is None:
        return None
    return replace(
        each,
        codes=whole["codes"],
        scales=whole["scales"],
        zeros=whole.get("zeros"),
        columns=whole.get("columns"),
        blocks=whole.get("order"),
    )


def matrix_of(weight: QuantizedWeight) -> Matrix | None:
    """Return a weight as the kernels see it, which may sort its columns; None: they are not for it."""
    layout, (rows, width) = weight.layout, weight.shape
    group = layout.block_columns
    if not layout.has_kernels(weight.shape):
        return None
    weight.sort_columns()
    return Matrix(
        rows,
        width,
        _KINDS[layout.codes],
        layout.codes.per_byte,
        weight.codes,
        weight.scales,
        across=width // group if layout.is_flat and group else layout.grid(weight.shape)[1],
        height=1 if layout.is_flat else layout.block_rows,
        group=group,
        zeros=weight.zeros,
        midpoint=layout.midpoint,
        table=weight.table,
        columns=weight.columns,
        blocks=weight.order,
    )
