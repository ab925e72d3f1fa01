"""compressed-tensors, as llm-compressor writes it: groups of modules, each with a way of its own.

`pack-quantized`: `weight_packed` int32 [out, in / n] holds n = 32 / bits codes of a row in each word, lowest bits first, each plus
2^(bits-1); `weight_scale` [out, groups]; `weight_zero_point` int32 [out / n, groups] packed likewise along the outputs, where it is not
symmetric; `weight_g_idx` int32 [in] where groups follow the order of activations; `weight_shape` [2].
`float-quantized`: `weight` float8_e4m3fn [out, in] with `weight_scale` of all, of rows or of blocks.
`int-quantized`: `weight` int8 [out, in] with `weight_scale` likewise, and `weight_zero_point` int8 where it is not symmetric.
weight = (code - zero) * scale. Where a group quantises activations too, these stay in 16 bit here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field

from lorafleet_inference.model.quantization.fp8 import INPUT_SCALES, fp8_layout, read_fp8, scales_of
from lorafleet_inference.model.quantization.grouped import check_order
from lorafleet_inference.model.quantization.method import (
    FIELD,
    HALVES,
    Fields,
    QuantizationError,
    Shape,
    Source,
    parse,
    unpacked,
    whole_groups,
)
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight, packed_pairs

_INT = (torch.int32,)
_Format = Literal["pack-quantized", "float-quantized", "int-quantized", "naive-quantized"]
_AnyFormat = Literal["pack-quantized", "float-quantized", "int-quantized", "naive-quantized", "mixed-precision"]
Strategy = Literal["tensor", "channel", "group", "block"]


class _Weights(Fields):
    num_bits: Literal[4, 8]
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Strategy = "tensor"
    group_size: int | None = None
    block_structure: tuple[int, int] | None = Field(default=None, strict=False)
    actorder: Literal["group", "weight", "static", "dynamic", None] = None


class _Group(Fields):
    targets: list[str]
    weights: _Weights | None = None
    output_activations: None = None
    format: _Format | None = None


class _Sparsity(Fields):
    format: Literal["dense"] = "dense"


class _Config(Fields):
    config_groups: dict[str, _Group]
    format: _AnyFormat = Field(validation_alias=AliasChoices("format", "compression_format"))
    ignore: list[str] | None = None
    quantization_status: Literal["compressed", None] = None
    sparsity_config: _Sparsity | None = None
    transform_config: dict[str, None] | None = Field(default=None, max_length=0)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the modules of a group are quantised."""

    targets: tuple[str, ...]
    format: _Format
    bits: int
    is_symmetric: bool
    strategy: Strategy
    group_size: int
    """-1: a row."""
    block: tuple[int, int] | None
    has_order: bool

    @property
    def is_float(self) -> bool:
        """Whether weights are of floating point."""
        return self.format == "float-quantized"

    @property
    def name(self) -> str:
        """In short."""
        kind = "fp8" if self.is_float else f"int{self.bits}"
        size = f" of {self.group_size}" if self.strategy == "group" else ""
        return f"{kind} by {self.strategy}{size}"


@dataclass(frozen=True, slots=True)
class Compressed:
    """All groups of a checkpoint."""

    schemes: tuple[Scheme, ...]
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        """As logs and `plan` say it."""
        return f"compressed-tensors, {', '.join(dict.fromkeys(scheme.name for scheme in self.schemes))}"

    @property
    def suffixes(self) -> frozenset[str]:
        """See `Method`."""
        own = {"weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"}
        return frozenset(own | INPUT_SCALES | {"input_zero_point"})

    @property
    def markers(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"weight_packed", "weight_scale"})

    def _scheme(self, module: str) -> Scheme | None:
        if any(_matches(pattern, module) for pattern in self.left_out):
            return None
        named = (one for one in self.schemes if any(_matches(target, module) for target in one.targets))
        all_linear = (one for one in self.schemes if "Linear" in one.targets)
        return next(named, next(all_linear, None))

    def layout(self, module: str, shape: Shape) -> Layout | None:
        """See `Method`."""
        scheme = self._scheme(module)
        if scheme is None:
            return None
        if scheme.format == "pack-quantized":
            return _packed_layout(scheme, module, shape)
        if scheme.is_float:
            return fp8_layout(scheme.block or (1, None), torch.bfloat16)
        return Layout(Codes.UINT8, midpoint=128, scale_dtype=torch.bfloat16)

    def read(self, source: Source) -> QuantizedWeight:
        """See `Method`."""
        scheme = self._scheme(source.module)
        if scheme is None:
            raise QuantizationError(f"the files hold {source.module} quantised, and no group of {FIELD} is for it")
        if scheme.format == "pack-quantized":
            return _read_packed(scheme, source)
        if scheme.is_float:
            return read_fp8(source, "weight_scale", scheme.block)
        return _read_int8(source)


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return module == pattern or module.endswith(f".{pattern}")


def _packed_layout(scheme: Scheme, module: str, shape: Shape) -> Layout:
    return Layout(
        Codes.UINT4 if scheme.bits == 4 else Codes.UINT8,
        block_rows=None if scheme.strategy == "tensor" else 1,
        block_columns=whole_groups(scheme.group_size, shape[1], module),
        midpoint=1 << (scheme.bits - 1) if scheme.is_symmetric else 0,
        has_zeros=not scheme.is_symmetric,
        has_order=scheme.has_order,
        scale_dtype=torch.bfloat16,
    )


def _read_packed(scheme: Scheme, source: Source) -> QuantizedWeight:
    num_out, num_in = source.shape
    per_word = 32 // scheme.bits
    layout = _packed_layout(scheme, source.module, source.shape)
    grid = layout.grid(source.shape)
    words = source.take("weight_packed", shape=(num_out, -(-num_in // per_word)), dtypes=_INT)
    codes = unpacked(words, scheme.bits)[:, :num_in].contiguous()
    is_one = scheme.strategy == "tensor"
    scales = source.take("weight_scale", shape=(1,) if is_one else grid, dtypes=HALVES).view(grid)
    zeros = None
    if not scheme.is_symmetric:
        zeros = _packed_zeros(scheme, source, grid)
    order = None
    if scheme.has_order:
        order = source.take("weight_g_idx", shape=(num_in,), dtypes=_INT)
        check_order(source.module, "weight_g_idx", order, grid[1])
    return QuantizedWeight(
        replace(layout, scale_dtype=scales.dtype),
        source.shape,
        codes=packed_pairs(codes) if scheme.bits == 4 else codes,
        scales=scales.contiguous(),
        zeros=zeros,
        order=order,
    )


def _packed_zeros(scheme: Scheme, source: Source, grid: tuple[int, int]) -> torch.Tensor:
    """Return zeros [out, groups] as uint8; early releases of the library stored them as they are, in int8."""
    found = source.tensors.get("weight_zero_point")
    if found is not None and found.dtype == torch.int8:
        zeros = source.take("weight_zero_point", shape=grid, dtypes=(torch.int8,))
        return (zeros.int() + (1 << (scheme.bits - 1))).to(torch.uint8)
    per_word = 32 // scheme.bits
    packed = source.take("weight_zero_point", shape=(-(-grid[0] // per_word), grid[1]), dtypes=_INT)
    return unpacked(packed.t(), scheme.bits)[:, : grid[0]].t().contiguous()


def _read_int8(source: Source) -> QuantizedWeight:
    codes = source.take("weight", shape=source.shape, dtypes=(torch.int8,))
    scales, layout = scales_of(source, "weight_scale", None)
    zeros = None
    if "weight_zero_point" in source.tensors:
        stored = source.tensors["weight_zero_point"]
        zeros = source.take("weight_zero_point", shape=tuple(stored.shape), dtypes=(torch.int8,))
        if zeros.numel() != scales.numel():
            raise QuantizationError(f"tensor {source.module}.weight_zero_point has the shape {list(stored.shape)}")
        zeros = _plus_128(zeros).view(scales.shape)
    layout = replace(layout, codes=Codes.UINT8, midpoint=128 if zeros is None else 0, has_zeros=zeros is not None)
    return QuantizedWeight(layout, source.shape, codes=_plus_128(codes), scales=scales, zeros=zeros)


def _plus_128(codes: torch.Tensor) -> torch.Tensor:
    """Return int8 codes plus 128 as uint8."""
    return codes.contiguous().view(torch.uint8) ^ 128


def compressed_tensors(fields: Mapping[str, Any]) -> Compressed:
    """Return the method of a `quantization_config` with `quant_method` compressed-tensors.

    Raises:
        QuantizationError: it is not supported.
    """
    found = parse(_Config, fields)
    schemes = tuple(_scheme_of(key, group, found.format) for key, group in found.config_groups.items())
    return Compressed(schemes, tuple(found.ignore or ()))


def _scheme_of(key: str, group: _Group, whole: str) -> Scheme:
    where = f"{FIELD}.config_groups.{key}"
    weights, used = group.weights, group.format or whole
    if weights is None:
        raise QuantizationError(f"{where}.weights is missing")
    if used == "mixed-precision":
        raise QuantizationError(f"{where}.format is missing, and {FIELD}.format is {whole}")
    if used == "naive-quantized":
        used = "float-quantized" if weights.type == "float" else "int-quantized"
    of_format = {
        "pack-quantized": ("int", weights.num_bits),
        "float-quantized": ("float", 8),
        "int-quantized": ("int", 8),
    }
    if (weights.type, weights.num_bits) != of_format[used]:
        raise QuantizationError(
            f"{where}.weights are {weights.type} of {weights.num_bits} bits, not supported in {used}"
        )
    if weights.type == "float" and not weights.symmetric:
        raise QuantizationError(f"{where}.weights.symmetric is False, which is not supported in {used}")
    allowed = ("tensor", "channel", "group") if used == "pack-quantized" else ("tensor", "channel", "block")
    if weights.strategy not in allowed or (weights.strategy == "block") > (used == "float-quantized"):
        raise QuantizationError(f"{where}.weights.strategy is {weights.strategy}, which is not supported in {used}")
    if weights.strategy == "group" and not weights.group_size:
        raise QuantizationError(f"{where}.weights.group_size is missing")
    if weights.strategy == "block" and weights.block_structure is None:
        raise QuantizationError(f"{where}.weights.block_structure is missing")
    return Scheme(
        tuple(group.targets),
        used,  # type: ignore[arg-type]
        weights.num_bits,
        weights.symmetric,
        weights.strategy,
        (weights.group_size or -1) if weights.strategy == "group" else -1,
        weights.block_structure if weights.strategy == "block" else None,
        weights.actorder in ("group", "dynamic"),
    )
