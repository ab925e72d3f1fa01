"""A weight matrix in few bits, and the numbers that it stands for.

Whatever file it came from, it lies here in one of a few ways: a code for each number, and a grid of scales, of which each is for
one block of the matrix. number = (meaning of the code - zero of the block) * scale of the block, computed in float32 and rounded
once, so that it is the same number on every device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.kernels.few_tokens import ALIGN

SORTED_ROWS = 1024
"""So many rows have their columns sorted at once, which takes some copies of their codes."""


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
        return not (is_over_rows or shape[1] % ALIGN)


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
    """[in] int32: of each column, which block of its row it belongs to; None: the layout says it."""
    columns: torch.Tensor | None
    """[in] int32: of each column of codes and order, which one of the matrix it is; None: they lie as in the matrix."""
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
        self.register_buffer("columns", None, persistent=False)

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

    @torch.inference_mode()
    def sort_columns(self) -> None:
        """Have the columns of a block follow each other, where a table says which these are. The device is waited for."""
        if self.order is None or self.columns is not None:
            return
        order, places = torch.sort(self.order, stable=True)
        is_packed = self.layout.codes.per_byte == 2
        for some in self.codes.view(self.shape[0], -1).split(SORTED_ROWS):
            codes = (_unpacked_pairs(some) if is_packed else some)[:, places]
            some.copy_(packed_pairs(codes) if is_packed else codes)
        self.columns = places.int()
        usual = torch.arange(self.shape[1], device=order.device) // (self.layout.block_columns or self.shape[1])
        # the layout says the same as a table of all blocks, each with all its columns
        self.order = None if self.layout.across is None and bool((order == usual).all()) else order

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
        numbers = self._by_block(numbers, self.scales, torch.Tensor.mul_).view(self.shape).to(dtype)
        if self.columns is None:
            return numbers
        return torch.empty_like(numbers).index_copy_(1, self.columns.long(), numbers)

    def _meanings(self) -> torch.Tensor:
        """Return float32 numbers, a fresh tensor."""
        codes = self.codes
        if self.layout.codes is Codes.FP8:
            return codes.view(torch.float8_e4m3fn).float()
        if self.layout.codes.per_byte == 2:
            codes = _unpacked_pairs(codes)
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


def _unpacked_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Return the codes [rows, columns] of [rows, columns / 2] with two in a byte."""
    return torch.stack((codes & 15, codes >> 4), -1).flatten(-2)


def packed_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Return uint8 codes [rows, columns] below 16 as [rows, columns / 2], the first of two in the lower half of a byte."""
    pairs = codes.view(codes.shape[0], -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def merged(weights: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """Return the matrix of all rows of some; None where they do not lie alike, or blocks go over their ends.

    Where each has one block for all its rows, each row of the whole has its own.
    """
    first, layout = weights[0], weights[0].layout
    assert all(one.columns is None for one in weights), "before kernels have sorted them"
    if any(one.layout != layout or one.shape[1] != first.shape[1] for one in weights):
        return None
    if not _are_alike([one.table for one in weights]) or not _are_alike([one.order for one in weights]):
        return None
    scales = [one.scales for one in weights]
    zeros = [one.zeros for one in weights if one.zeros is not None]
    if layout.block_rows is None and not layout.is_flat:
        layout = replace(layout, block_rows=1)
        scales = _of_each_row(scales, weights)
        zeros = _of_each_row(zeros, weights) if zeros else zeros
    whole = layout.block_columns if layout.is_flat else layout.block_rows
    sizes = [one.shape[0] * (one.shape[1] if layout.is_flat else 1) for one in weights]
    if whole is None or any(size % whole for size in sizes):
        return None
    axis = 1 if layout.is_flat else 0
    return QuantizedWeight(
        layout,
        (sum(one.shape[0] for one in weights), first.shape[1]),
        codes=torch.cat([one.codes.reshape(-1) for one in weights]),
        scales=torch.cat(scales, axis),
        zeros=torch.cat(zeros, axis) if zeros else None,
        order=first.order,
        table=first.table,
    )


def _of_each_row(grids: Sequence[torch.Tensor], weights: Sequence[QuantizedWeight]) -> list[torch.Tensor]:
    """Return [rows, blocks across] of what all rows of a matrix share."""
    return [grid.expand(one.shape[0], -1) for grid, one in zip(grids, weights, strict=True)]


def stacked(weights: Sequence[QuantizedWeight]) -> Mapping[str, torch.Tensor] | None:
    """Lay the tensors of some matrices one behind the other, their columns sorted: return by name what holds those of all.

    The matrices keep parts of it. None where they do not lie alike.
    """
    first = weights[0]
    if any((one.layout, one.shape) != (first.layout, first.shape) for one in weights):
        return None
    if not _are_alike([one.table for one in weights]):
        return None
    for one in weights:
        one.sort_columns()
    if len({one.order is None for one in weights}) > 1:
        return None
    made = {}
    for name in ("codes", "scales", "zeros", "order", "columns"):
        if getattr(first, name) is not None:
            made[name] = torch.stack([getattr(one, name) for one in weights])
            for one, part in zip(weights, made[name], strict=True):
                setattr(one, name, part)
    return made


def _are_alike(tensors: Sequence[torch.Tensor | None]) -> bool:
    first, *others = tensors
    if first is None or any(one is None for one in others):
        return all(one is None for one in tensors)
    return all(one is first or (one is not None and one.equal(first)) for one in others)
