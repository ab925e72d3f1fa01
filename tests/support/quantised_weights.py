"""Quantised weights with random codes, scales and orders, as the kernels get them."""

import torch

from lorafleet_inference.model.quantization.cut import Cut, part_of
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight

ROWS = 40
COLUMN_ORDER = Layout(Codes.UINT4, block_columns=32, has_zeros=True, has_order=True)


def weight_of(layout: Layout, width: int, device: torch.device, seed: int = 0) -> QuantizedWeight:
    torch.manual_seed(seed)
    made = QuantizedWeight.empty(layout, (ROWS, width)).to(device)
    codes = torch.randint(0, 256, made.codes.shape, dtype=torch.uint8)
    if layout.codes is Codes.FP8:  # no NaN
        codes = torch.where(codes & 127 == 127, codes - 1, codes)
    made.codes.copy_(codes)
    made.scales.copy_(torch.rand(made.scales.shape) / 8 + 0.01)
    if made.zeros is not None:
        made.zeros.copy_(torch.randint(0, 16, made.zeros.shape))
    if made.table is not None:
        made.table.copy_(torch.randn(16, generator=torch.Generator().manual_seed(0)))
    if made.order is not None:
        assert layout.block_columns is not None
        made.order.copy_(torch.arange(width)[torch.randperm(width)] // layout.block_columns)
    return made


def part_of_columns(weight: QuantizedWeight, width: int) -> QuantizedWeight:
    """Return what a rank has of it: of a weight with an order, some columns of most blocks and none of the first."""
    if weight.order is not None:
        weight.order[:width].clamp_(min=1)
    return part_of(weight, "down_proj", Cut(weight.shape, (slice(0, weight.shape[0]),), (slice(0, width),)))
