"""The part of a quantised matrix that one of several ranks holds: the same numbers, without a whole block of others'.

Codes are cut like numbers. A block that goes over a cut becomes several smaller ones with the same scale, as long as these are worth one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lorafleet_inference.model.quantization.method import QuantizationError, Shape
from lorafleet_inference.model.quantization.weight import Layout, QuantizedWeight

MIN_BLOCK = 16
"""Numbers that share a scale at least, after a cut."""


class CutError(QuantizationError):
    """A matrix cannot be cut so; the message names the module."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which rows and columns of a matrix of this shape are kept; each slice has a start and an end."""

    shape: Shape
    rows: tuple[slice, ...]
    columns: tuple[slice, ...]

    @property
    def kept(self) -> Shape:
        """The shape of the part."""
        return _length(self.rows), _length(self.columns)

    @property
    def has_all_columns(self) -> bool:
        """Whether it cuts rows only."""
        return self.columns == (slice(0, self.shape[1]),)


def layout_of_part(layout: Layout, module: str, cut: Cut) -> Layout:
    """Return how a part of a matrix lies in memory.

    Raises:
        CutError: it cannot be cut so.
    """
    _check_pairs(layout, module, cut)
    if layout.has_order:
        return replace(layout, across=layout.grid(cut.shape)[1])
    height: int | None = 1
    if layout.is_flat:
        width = _flat_block(layout.block_columns, cut)
    else:
        height = _block(layout.block_rows, cut.shape[0], cut.rows)
        width = _block(layout.block_columns, cut.shape[1], cut.columns)
    made = replace(layout, block_rows=height, block_columns=width)
    if made != layout and height is not None and width is not None and height * width < MIN_BLOCK:
        raise CutError(
            f"{module} has scales for blocks, which parts of {cut.kept[0]} x {cut.kept[1]} would cut into "
            f"{height * width} numbers each"
        )
    return made


def part_of(weight: QuantizedWeight, module: str, cut: Cut) -> QuantizedWeight:
    """Return a part of a matrix, a copy.

    Raises:
        CutError: as `layout_of_part`.
    """
    assert weight.columns is None, "before kernels have sorted them"
    layout = layout_of_part(weight.layout, module, cut)
    per_byte = layout.codes.per_byte
    codes = weight.codes.view(cut.shape[0], -1)
    codes = _taken(_taken(codes, cut.rows, 0), [_divided(one, per_byte) for one in cut.columns], 1)
    blocks = _flat_blocks if layout.is_flat else _blocks
    return QuantizedWeight(
        layout,
        cut.kept,
        codes=codes.contiguous(),
        scales=blocks(weight.scales, weight.layout, layout, cut),
        zeros=None if weight.zeros is None else blocks(weight.zeros, weight.layout, layout, cut),
        order=None if weight.order is None else _taken(weight.order, cut.columns, 0).clone(),
        table=None if weight.table is None else weight.table.clone(),
    )


def _check_pairs(layout: Layout, module: str, cut: Cut) -> None:
    per_byte = layout.codes.per_byte
    bounds = [cut.shape[1], *(bound for one in cut.columns for bound in (one.start, one.stop))]
    if any(bound % per_byte for bound in bounds):
        raise CutError(f"two codes of {module} share a byte, and parts have an odd number of inputs")


def _blocks(grid: torch.Tensor, before: Layout, after: Layout, cut: Cut) -> torch.Tensor:
    """Return the numbers of the part's blocks, of those of the whole [down, across]."""
    if before.block_rows is not None and after.block_rows is not None:
        grid = grid[[at // before.block_rows for at in _starts(cut.rows, after.block_rows)]]
    if before.block_columns is not None and after.block_columns is not None and not before.has_order:
        grid = grid[:, [at // before.block_columns for at in _starts(cut.columns, after.block_columns)]]
    return grid.clone(memory_format=torch.contiguous_format)


def _flat_blocks(grid: torch.Tensor, before: Layout, after: Layout, cut: Cut) -> torch.Tensor:
    """Likewise of blocks that go on over the ends of rows [1, blocks]."""
    if before.block_columns is None or after.block_columns is None:
        return grid.clone()
    starts = torch.cat([torch.arange(one.start, one.stop, after.block_columns) for one in _spans(cut)])
    return grid[:, (starts // before.block_columns).to(grid.device)].contiguous()


def _block(block: int | None, length: int, parts: tuple[slice, ...]) -> int | None:
    """Return how long blocks along an axis are after a cut; None: one is all of it."""
    if parts == (slice(0, length),):
        return block
    return None if block is None or block >= length else _common(block, parts)


def _flat_block(block: int | None, cut: Cut) -> int | None:
    width = cut.shape[1]
    if block is None or block >= cut.shape[0] * width:
        return None
    rows = [slice(one.start * width, one.stop * width) for one in cut.rows]
    return _common(block, rows if cut.has_all_columns else (slice(0, width), *cut.columns))


def _spans(cut: Cut) -> list[slice]:
    """Return what is kept as runs of a matrix whose rows lie one behind the other."""
    width = cut.shape[1]
    if cut.has_all_columns:
        return [slice(one.start * width, one.stop * width) for one in cut.rows]
    return [
        slice(row * width + some.start, row * width + some.stop)
        for one in cut.rows
        for row in range(one.start, one.stop)
        for some in cut.columns
    ]


def _common(block: int, parts: Sequence[slice]) -> int:
    """Return the largest size of which a block and each part, and what lies before it, are made."""
    return math.gcd(block, *(bound for one in parts for bound in (one.start, one.stop)))


def _starts(parts: Sequence[slice], step: int) -> list[int]:
    return [at for one in parts for at in range(one.start, one.stop, step)]


def _taken(tensor: torch.Tensor, parts: Sequence[slice], axis: int) -> torch.Tensor:
    some = [tensor[one] if axis == 0 else tensor[:, one] for one in parts]
    return some[0] if len(some) == 1 else torch.cat(some, axis)


def _divided(one: slice, by: int) -> slice:
    return slice(one.start // by, one.stop // by)


def _length(parts: Sequence[slice]) -> int:
    return sum(one.stop - one.start for one in parts)
