"""Weights of 8 bit floating point, e4m3: `fp8` (DeepSeek, Qwen and others write it; so does Neural Magic's AutoFP8), and `fbgemm_fp8`.

`weight` float8_e4m3fn [out, in], and either `weight_scale_inv`, one for each block of `weight_block_size`, or `weight_scale`, one
for all or one for each output. weight = code * scale, in each case, whatever the name of the scale says. The scales of activations that
some files hold (`input_scale`) are not used: activations stay in 16 bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field

from lorafleet_inference.model.quantization.method import (
    HALVES,
    Fields,
    QuantizationError,
    Shape,
    Source,
    is_named,
    parse,
)
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight

_E4M3 = (torch.float8_e4m3fn,)
_EXPONENTS = torch.float8_e8m0fnu
INPUT_SCALES = frozenset({"input_scale", "input_scale_ub", "output_scale", "k_scale", "v_scale"})
"""Of activations."""


class _Fp8Fields(Fields):
    fmt: Literal["e4m3", None] = None
    activation_scheme: Literal["dynamic", "static", None] = None
    weight_block_size: tuple[int, int] | None = Field(default=None, strict=False)
    left_out: list[str] | None = Field(
        default=None, validation_alias=AliasChoices("modules_to_not_convert", "ignored_layers")
    )


@dataclass(frozen=True, slots=True)
class Fp8:
    """Weights with one scale, one a row, or one a block."""

    title: str
    block: tuple[int, int] | None
    """Rows and columns; None: the files say whether scales are of rows or of all."""
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As logs and `plan` say it."""
        return self.title + (f", blocks of {self.block[0]} x {self.block[1]}" if self.block else "")

    @property
    def suffixes(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"weight"} | self.markers | INPUT_SCALES)

    @property
    def markers(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"weight_scale_inv", "weight_scale"})

    def layout(self, module: str, shape: Shape) -> Layout | None:  # noqa: ARG002
        """See `Method`."""
        if is_named(module, self.left_out):
            return None
        return fp8_layout(self.block or (1, None))

    def read(self, source: Source) -> QuantizedWeight:
        """See `Method`."""
        name = "weight_scale_inv" if "weight_scale_inv" in source.tensors else "weight_scale"
        return read_fp8(source, name, self.block)


def fp8_layout(block: tuple[int | None, int | None], dtype: torch.dtype = torch.float32) -> Layout:
    """Return the layout of blocks of (rows, columns)."""
    return Layout(Codes.FP8, block_rows=block[0], block_columns=block[1], scale_dtype=dtype)


def read_fp8(source: Source, scale: str, block: tuple[int, int] | None) -> QuantizedWeight:
    """Return a layer's weight with the scales of this name.

    Raises:
        QuantizationError: the tensors are not these.
    """
    codes = source.take("weight", shape=source.shape, dtypes=_E4M3)
    scales, layout = scales_of(source, scale, block)
    return QuantizedWeight(
        replace(layout, codes=Codes.FP8), source.shape, codes=codes.contiguous().view(torch.uint8), scales=scales
    )


def scales_of(source: Source, scale: str, block: tuple[int, int] | None) -> tuple[torch.Tensor, Layout]:
    """Return the scales of rows, of blocks or of all, and how they lie; the codes of the layout are to be set.

    Raises:
        QuantizationError: the tensor is of another shape, or is missing.
    """
    found = source.tensors.get(scale)
    dtypes = (*HALVES, _EXPONENTS)
    if block is not None:
        layout = fp8_layout(block)
        scales = source.take(scale, shape=layout.grid(source.shape), dtypes=dtypes)
    elif found is not None and found.numel() == 1:
        layout = fp8_layout((None, None))
        scales = source.take(scale, shape=tuple(found.shape), dtypes=dtypes).view(1, 1)
    else:
        layout = fp8_layout((1, None))
        num_out = source.shape[0]
        shape = (num_out,) if found is not None and found.dim() == 1 else (num_out, 1)
        scales = source.take(scale, shape=shape, dtypes=dtypes).view(num_out, 1)
    if scales.dtype == _EXPONENTS:
        scales = scales.float()
    return scales.contiguous(), replace(layout, scale_dtype=scales.dtype)


def fp8(fields: Mapping[str, Any]) -> Fp8:
    """Return the method of a `quantization_config` with `quant_method` fp8.

    Raises:
        QuantizationError: it is not supported.
    """
    found = parse(_Fp8Fields, fields)
    block = found.weight_block_size
    if block is not None and min(block) < 1:
        raise QuantizationError(f"quantization_config.weight_block_size is {list(block)}")
    return Fp8("fp8", block, tuple(found.left_out or ()))


def fbgemm_fp8(fields: Mapping[str, Any]) -> Fp8:
    """Return the method of a `quantization_config` with `quant_method` fbgemm_fp8.

    Raises:
        QuantizationError: it is not supported.
    """
    found = parse(_Fp8Fields, fields)
    return Fp8("fbgemm fp8", None, tuple(found.left_out or ()))
