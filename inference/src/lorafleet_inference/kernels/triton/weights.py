"""Products with quantised weights by the kernels of `quantized.py`."""

from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.kernels.few_tokens import MAX_TOKENS
from lorafleet_inference.kernels.triton import quantized
from lorafleet_inference.kernels.triton.launch import launch

MIN_TOKENS: Final = 16
STEP: Final = 128
ORDER_STEP: Final = 64
"""Where the block of each column is looked up: registers hold a scale and a zero for each number."""
ROWS: Final = 32
EVERYTHING: Final = 1 << 30
"""A block that is as high or as wide as the matrix."""
WHOLE, E4M3, TABLE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Matrix:
    """A quantised weight [rows, width], as the kernels see it."""

    rows: int
    width: int
    kind: int
    """WHOLE, E4M3 or TABLE."""
    per_byte: int
    codes: torch.Tensor
    """[rows * width / per_byte] uint8"""
    scales: torch.Tensor
    """[blocks down, blocks across]"""
    across: int
    height: int | None
    """Rows of a block; None: all."""
    group: int | None
    """Columns of a block; None: all."""
    zeros: torch.Tensor | None
    midpoint: int
    table: torch.Tensor | None
    columns: torch.Tensor | None = None
    """[width] int32: of each column, which one of x it is multiplied by; None: they lie as those of x."""
    blocks: torch.Tensor | None = None
    """[width] int32, ascending: of each column, which block of its row it belongs to; None: `group` says it."""

    @property
    def num_blocks(self) -> int:
        """Numbers of scales."""
        return self.across * (1 if self.height is None else -(-self.rows // self.height))

    @property
    def step(self) -> int:
        """Columns whose numbers are brought back at once."""
        return STEP if self.blocks is None else ORDER_STEP

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """Return codes, scales, zeros, table, blocks; what is not there is not read."""
        others = (self.codes if one is None else one for one in (self.zeros, self.table, self.blocks))
        return self.codes, self.scales, *others

    def constants(self) -> dict[str, int | bool]:
        """Return what the kernels are compiled for."""
        return {
            "KIND": self.kind, "PER_BYTE": self.per_byte, "HEIGHT": self.height or EVERYTHING,
            "GROUP": self.group or EVERYTHING, "ORDER": self.blocks is not None, "ZEROS": self.zeros is not None,
            "MIDPOINT": self.midpoint, "STEP": self.step, "ROWS": ROWS, "num_warps": 4,
        }  # fmt: skip


def multiply(x: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x W + b [.., rows] of x [.., width]."""
    tokens = x.reshape(-1, matrix.width)
    if matrix.columns is not None:
        tokens = tokens.index_select(1, matrix.columns)
    if len(tokens) > MAX_TOKENS:
        return F.linear(tokens, _as_it_lies(matrix, x.dtype), bias).view(*x.shape[:-1], matrix.rows)
    if tokens.stride(1) != 1:
        tokens = tokens.contiguous()
    y = torch.empty((len(tokens), matrix.rows), dtype=x.dtype, device=x.device)
    tile = max(MIN_TOKENS, 1 << (len(tokens) - 1).bit_length())
    launch(
        quantized.multiply,
        (-(-matrix.rows // ROWS), -(-len(tokens) // tile)),
        (
            y, matrix.rows, tokens, tokens.stride(0), *matrix.arguments(), y if bias is None else bias, len(tokens),
            matrix.rows, matrix.width, matrix.across,
        ),
        {**matrix.constants(), "TOKENS": tile, "BIAS": bias is not None, "num_stages": 4},
    )  # fmt: skip
    return y.view(*x.shape[:-1], matrix.rows)


def multiply_grouped(x: torch.Tensor, each: Matrix, experts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return x W [pairs, rows] of x [pairs, width], whose pairs are sorted by expert; rows of pairs without one are left as they are.

    `each`: the first of the experts' matrices, behind which lie those of the others. `experts` [pairs] int64: ascending, the number
    of experts for none; `ends` [number of experts] int32: where the pairs of each end.
    """
    num_pairs, num_experts = len(x), len(ends)
    if each.columns is not None:
        columns = each.columns.view(num_experts, each.width)
        x = x.gather(1, columns.index_select(0, experts.clamp(max=num_experts - 1)).long())
    if x.stride(1) != 1:
        x = x.contiguous()
    y = torch.empty((num_pairs, each.rows), dtype=x.dtype, device=x.device)
    is_few = num_pairs < num_experts
    pairs = 1 if is_few else 2 * num_pairs // num_experts
    tile = min(MAX_TOKENS, max(MIN_TOKENS, 1 << (pairs - 1).bit_length()))
    launch(
        quantized.multiply_grouped,
        (-(-each.rows // ROWS), min(num_pairs, num_experts)),
        (
            y, each.rows, x, x.stride(0), *each.arguments(), experts, ends, num_experts,
            each.rows * each.width // each.per_byte, each.num_blocks, each.width, each.rows, each.width, each.across,
        ),
        {**each.constants(), "TOKENS": tile, "BY_PAIR": is_few, "num_stages": 4},
    )  # fmt: skip
    return y


def bring_back(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [rows, width]."""
    found = _as_it_lies(matrix, dtype)
    return found if matrix.columns is None else torch.empty_like(found).index_copy_(1, matrix.columns.long(), found)


def _as_it_lies(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """Likewise, with its columns in the order of the codes."""
    out = torch.empty((matrix.rows, matrix.width), dtype=dtype, device=matrix.codes.device)
    launch(
        quantized.bring_back,
        (-(-matrix.rows // ROWS), -(-matrix.width // matrix.step)),
        (out, *matrix.arguments(), matrix.rows, matrix.width, matrix.across),
        matrix.constants(),
    )
    return out
