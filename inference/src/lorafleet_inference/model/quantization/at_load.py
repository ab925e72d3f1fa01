"""`--quantization`: a base in 16 or 32 bit is made small while it is read, one layer after the other.

To the nearest, without data: int8 symmetric by row; fp8 (e4m3) by row; int4 in groups of 128 inputs, each with a scale and a zero;
nf4 as bitsandbytes makes it, without double quantisation, which is what QLoRA trains on.
"""

from dataclasses import dataclass

import torch

from lorafleet_inference.config import Quantization
from lorafleet_inference.model.quantization.bits_and_bytes import BLOCK, int8_layout, table_layout
from lorafleet_inference.model.quantization.fp8 import fp8_layout
from lorafleet_inference.model.quantization.method import HALVES, QuantizationError, Shape, Source
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight, packed_pairs

GROUP = 128
"""Inputs that share a scale in int4; a row's last group may have fewer."""
_FP8_MAX = 448.0
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The numbers of nf4: quantiles of the normal distribution (QLoRA, appendix E), as bitsandbytes has them."""


@dataclass(frozen=True, slots=True)
class AtLoad:
    """All linear layers but the head, from their plain weights."""

    kind: Quantization

    @property
    def name(self) -> str:
        """As logs and `plan` say it."""
        return f"{self.kind}, quantised at load"

    @property
    def suffixes(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"weight"})

    @property
    def markers(self) -> frozenset[str]:
        """See `Method`; each layer is quantised."""
        return frozenset()

    def layout(self, module: str, shape: Shape) -> Layout:  # noqa: ARG002
        """See `Method`."""
        if self.kind == "int8":
            return int8_layout()
        if self.kind == "fp8":
            return fp8_layout((1, None))
        if self.kind == "nf4":
            return table_layout(BLOCK)
        columns = min(GROUP, shape[1])
        return Layout(Codes.UINT4, block_columns=columns, has_zeros=True, scale_dtype=torch.float32)

    def read(self, source: Source) -> QuantizedWeight:
        """See `Method`."""
        weight = source.take("weight", shape=source.shape, dtypes=HALVES).float()
        if not torch.isfinite(torch.stack(torch.aminmax(weight))).all():
            raise QuantizationError(f"tensor {source.module}.weight holds values that are not finite")
        if weight.numel() % 2:
            raise QuantizationError(f"{source.module} has an odd number of weights, {list(source.shape)}")
        layout = self.layout(source.module, source.shape)
        make = {"int8": _int8, "fp8": _fp8, "nf4": _nf4, "int4": _int4}[self.kind]
        return make(weight, layout)


def _shape(weight: torch.Tensor) -> Shape:
    return weight.shape[0], weight.shape[1]


def _int8(weight: torch.Tensor, layout: Layout) -> QuantizedWeight:
    scales = _divisor(weight.abs().amax(1, keepdim=True) / 127)
    codes = (weight / scales).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    return QuantizedWeight(layout, _shape(weight), codes=codes, scales=scales)


def _fp8(weight: torch.Tensor, layout: Layout) -> QuantizedWeight:
    scales = _divisor(weight.abs().amax(1, keepdim=True) / _FP8_MAX)
    codes = (weight / scales).clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    return QuantizedWeight(layout, _shape(weight), codes=codes, scales=scales)


def _nf4(weight: torch.Tensor, layout: Layout) -> QuantizedWeight:
    flat = weight.view(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(1)
    table = torch.tensor(_NF4, device=weight.device)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(padded / _divisor(scales)[:, None], middles).view(-1)[: len(flat)].to(torch.uint8)
    packed = packed_pairs(codes[None]).view(-1)
    return QuantizedWeight(layout, _shape(weight), codes=packed, scales=scales[None], table=table)


def _int4(weight: torch.Tensor, layout: Layout) -> QuantizedWeight:
    rows, columns = _shape(weight)
    group = layout.block_columns or columns
    # of the last group, which may be shorter, zeros are within its range, which has zero in it anyway
    padded = torch.nn.functional.pad(weight, (0, -columns % group)).view(rows, -1, group)
    least, most = padded.amin(-1).clamp_(max=0), padded.amax(-1).clamp_(min=0)
    scales = _divisor((most - least) / 15)
    zeros = (-least / scales).round_()
    codes = (padded / scales[..., None] + zeros[..., None]).round_().clamp_(0, 15).to(torch.uint8)
    codes = codes.view(rows, -1)[:, :columns].contiguous()
    packed = packed_pairs(codes) if columns % 2 == 0 else packed_pairs(codes.view(1, -1))
    return QuantizedWeight(layout, (rows, columns), codes=packed, scales=scales, zeros=zeros.to(torch.uint8))


def _divisor(scales: torch.Tensor) -> torch.Tensor:
    """Return scales without zeros: where all numbers of a block are zero, any scale serves."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)
