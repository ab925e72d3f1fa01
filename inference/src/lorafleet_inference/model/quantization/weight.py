"""A weight matrix in few bits, and the numbers that it stands for.

Whatever file it came from, it lies here in one of a few ways: a code for each number, and a grid of scales, of which each is for
one block of the matrix. number = (meaning of the code - zero of the block) * scale of the block, computed in float32 and rounded
once, so that it is the same number on every device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.kernels.few_tokens import ALIGN


class Codes(Enum):
    """What a code is."""

    UINT4 = "uint4"
    UINT8 = "uint8"
    FP8 = "float8_e4m3fn"
    TABLE4 = "table of 16"
    """An index into 16 numbers."""

    @property
    def per_byte(self) -> int:
        """Codes in a byte; of two the first lies in the lower half."""
        return 2 if self in (Codes.UINT4, Codes.TABLE4) else 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How a matrix lies in memory, as far as that does not depend on its shape."""

    codes: Codes
    block_rows: int | None = 1
    """Rows of a block; None: all of them."""
    block_columns: int | None = None
    """Columns of a block; None: all of them. The last block of a row may have fewer."""
    midpoint: int = 0
    """Code of zero, where blocks have none of their own."""
    has_zeros: bool = False
    """Whether each block has a zero of its own."""
    has_order: bool = False
    """Whether a table says to which block of its row a column belongs."""
    across: int | None = None
    """Blocks of a row, where a part of a matrix with such a table has as many as the whole; None: what its columns make."""
    is_flat: bool = False
    """Whether blocks go on over the ends of rows: then the matrix counts as one row."""
    scale_dtype: torch.dtype = torch.float16

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return how many blocks a matrix has, down and across."""
        rows, columns = (1, shape[0] * shape[1]) if self.is_flat else shape
        return -(-rows // (self.block_rows or rows)), self.across or -(-columns // (self.block_columns or columns))

    def num_bytes(self, shape: tuple[int, int]) -> int:
        """Return what a matrix takes of memory."""
        blocks = self.grid(shape)[0] * self.grid(shape)[1]
        size = -(-shape[0] * shape[1] // self.codes.per_byte)
        size += blocks * self.scale_dtype.itemsize + blocks * self.has_zeros
        return size + 4 * shape[1] * self.has_order + 4 * 16 * (self.codes is Codes.TABLE4)

    def has_kernels(self, shape: tuple[int, int]) -> bool:
        """Whether the kernels of a GPU are for a matrix."""
        is_over_rows = self.is_flat and (self.block_columns is None or shape[1] % self.block_columns > 0)
        return not (self.has_order or is_over_rows or shape[1] % ALIGN)


class Products(Protocol):
    """What computes with a weight in place of torch."""

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers [out, in]."""

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return x W + bias."""


class QuantizedWeight(torch.nn.Module):
    """A matrix [out, in]."""

    codes: torch.Tensor
    """[out, in / codes of a byte] uint8; flat where the layout is."""
    scales: torch.Tensor
    """[blocks down, blocks across], in the layout's dtype."""
    zeros: torch.Tensor | None
    """Likewise, uint8."""
    order: torch.Tensor | None
    """[in] int32: of each column, which block of its row it belongs to."""
    table: torch.Tensor | None
    """[16] float32"""

    def __init__(
        self,
        layout: Layout,
        shape: tuple[int, int],
        *,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
        table: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        assert codes.dtype == torch.uint8, codes.dtype
        assert codes.numel() * layout.codes.per_byte == shape[0] * shape[1], (codes.shape, shape)
        assert tuple(scales.shape) == layout.grid(shape), (scales.shape, layout, shape)
        assert (zeros is not None, order is not None) == (layout.has_zeros, layout.has_order)
        assert (table is not None) == (layout.codes is Codes.TABLE4)
        self.layout, self.shape = layout, shape
        self.kernels: Products | None = None
        for name, tensor in {"codes": codes, "scales": scales, "zeros": zeros, "order": order, "table": table}.items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def empty(cls, layout: Layout, shape: tuple[int, int]) -> "QuantizedWeight":
        """Return one whose numbers nobody has written."""
        grid = layout.grid(shape)
        return cls(
            layout,
            shape,
            codes=torch.empty(shape[0], shape[1] // layout.codes.per_byte, dtype=torch.uint8),
            scales=torch.empty(grid, dtype=layout.scale_dtype),
            zeros=torch.empty(grid, dtype=torch.uint8) if layout.has_zeros else None,
            order=torch.empty(shape[1], dtype=torch.int32) if layout.has_order else None,
            table=torch.empty(16) if layout.codes is Codes.TABLE4 else None,
        )

    @property
    def num_bytes(self) -> int:
        """What it takes of memory."""
        return sum(one.numel() * one.element_size() for one in self.buffers())

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers [out, in]."""
        return self._by_torch(dtype) if self.kernels is None else self.kernels.dequantized(dtype)

    def product(self, x: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Return x W + bias of x [.., in], in this dtype, which the weight is brought back to."""
        if self.kernels is not None:
            return self.kernels.product(x, bias)
        return F.linear(x, self._by_torch(dtype), bias)

    def _by_torch(self, dtype: torch.dtype) -> torch.Tensor:
        rows, columns = self.shape
        if self.layout.is_flat:
            rows, columns = 1, rows * columns
        numbers = self._meanings().view(rows, columns)
        if self.zeros is not None:
            numbers = self._by_block(numbers, self.zeros, torch.Tensor.sub_)
        elif self.layout.midpoint:
            numbers.sub_(self.layout.midpoint)
        return self._by_block(numbers, self.scales, torch.Tensor.mul_).view(self.shape).to(dtype)

    def _meanings(self) -> torch.Tensor:
        """Return float32 numbers, a fresh tensor."""
        codes = self.codes
        if self.layout.codes is Codes.FP8:
            return codes.view(torch.float8_e4m3fn).float()
        if self.layout.codes.per_byte == 2:
            codes = torch.stack((codes & 15, codes >> 4), -1)
        return codes.float() if self.table is None else self.table[codes.int()]

    def _by_block(self, numbers: torch.Tensor, grid: torch.Tensor, change: object) -> torch.Tensor:
        """Change numbers [rows, columns] in place by their block's number in the grid."""
        assert callable(change)
        rows, columns = numbers.shape
        height = self.layout.block_rows or rows
        width = self.layout.block_columns or columns
        grid = grid.float()
        if self.order is not None:
            change(numbers, grid[:, self.order.long()])
        elif rows % height or columns % width:
            change(numbers, grid.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns])
        else:
            blocks = numbers.view(rows // height, height, columns // width, width)
            change(blocks, grid[:, None, :, None])
        return numbers


def packed_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Return uint8 codes [rows, columns] below 16 as [rows, columns / 2], the first of two in the lower half of a byte."""
    pairs = codes.view(codes.shape[0], -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def merged(weights: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """Return the matrix of all rows of some; None where they do not lie alike, or blocks go over their ends."""
    first, layout = weights[0], weights[0].layout
    if layout.has_order or any(one.layout != layout or one.shape[1] != first.shape[1] for one in weights):
        return None
    tables = [one.table for one in weights if one.table is not None]
    if any(table is not tables[0] and not table.equal(tables[0]) for table in tables):
        return None
    whole = layout.block_columns if layout.is_flat else layout.block_rows
    sizes = [one.shape[0] * (one.shape[1] if layout.is_flat else 1) for one in weights]
    if whole is None or any(size % whole for size in sizes):
        return None
    axis = 1 if layout.is_flat else 0
    zeros = [one.zeros for one in weights if one.zeros is not None]
    return QuantizedWeight(
        layout,
        (sum(one.shape[0] for one in weights), first.shape[1]),
        codes=torch.cat([one.codes.reshape(-1) for one in weights]),
        scales=torch.cat([one.scales for one in weights], axis),
        zeros=torch.cat(zeros, axis) if zeros else None,
        table=first.table,
    )
