"""Rows of a quantised matrix, brought back on the host: no weight is brought back on the device for whoever reads some of its numbers."""

from collections.abc import Callable
from dataclasses import replace

import torch

from lorafleet_inference.model.quantization.weight import Layout, QuantizedWeight

ToHost = Callable[[torch.Tensor], torch.Tensor]
"""Returns a contiguous tensor, wherever it is, on the host."""


class RowsOnHost:
    """Reads rows of one matrix [out, in]."""

    def __init__(self, weight: QuantizedWeight, to_host: ToHost) -> None:
        self._weight, self._to_host = weight, to_host
        once = (weight.order, weight.columns, weight.table)
        self._order, self._columns, self._table = (None if one is None else to_host(one) for one in once)
        self._layout = _layout_of_rows(weight.layout, weight.shape[1], has_order=weight.order is not None)

    def read(self, begin: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """Return rows `begin` to before `end`, the numbers that `QuantizedWeight.dequantized` gives: a fresh tensor of the host."""
        weight = self._weight
        rows = QuantizedWeight(
            self._layout,
            (end - begin, weight.shape[1]),
            codes=self._to_host(weight.codes.view(weight.shape[0], -1)[begin:end]),
            scales=self._of_rows(weight.scales, begin, end),
            zeros=None if weight.zeros is None else self._of_rows(weight.zeros, begin, end),
            order=self._order,
            table=self._table,
        )
        rows.columns = self._columns
        return rows.dequantized(dtype)

    def _of_rows(self, grid: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """Return what a grid says of these rows, as their layout wants it."""
        layout, (num_rows, width) = self._weight.layout, self._weight.shape
        if not layout.is_flat:
            if layout.block_rows is None:
                return self._to_host(grid)
            return self._repeated(grid, begin, end, layout.block_rows)
        if layout.block_columns is None:
            return self._to_host(grid)
        if width % layout.block_columns == 0:
            return self._to_host(grid.view(num_rows, -1)[begin:end])
        return self._repeated(grid[0], begin * width, end * width, layout.block_columns).view(end - begin, width)

    def _repeated(self, blocks: torch.Tensor, begin: int, end: int, size: int) -> torch.Tensor:
        """Return for each place from `begin` to before `end` what its block of `size` places has; of one place each they are that."""
        first = begin // size
        some = self._to_host(blocks[first : (end - 1) // size + 1])
        return some if size == 1 else some[torch.arange(begin, end) // size - first]


def _layout_of_rows(layout: Layout, width: int, *, has_order: bool) -> Layout:
    """Return how some rows of a matrix lie, whose grids are those of `RowsOnHost`. `has_order`: columns that were sorted may have none."""
    if not layout.is_flat:
        return replace(layout, block_rows=None if layout.block_rows is None else 1, has_order=has_order)
    if layout.block_columns is None:
        return replace(layout, block_rows=None, is_flat=False, has_order=has_order)
    columns = (
        layout.block_columns if width % layout.block_columns == 0 else 1
    )  # else blocks go on over the ends of rows
    return replace(layout, block_rows=1, block_columns=columns, is_flat=False, has_order=has_order)
