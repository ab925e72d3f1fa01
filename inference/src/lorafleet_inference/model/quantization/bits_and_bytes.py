"""bitsandbytes: 4 bit with a table of 16 numbers (nf4, fp4), and 8 bit by row (LLM.int8).

4 bit: `weight` uint8 [out * in / 2, 1], two codes a byte, the first of two in the upper half, row after row; `weight.absmax` one scale
for each `blocksize` numbers in this order; `weight.quant_map` [16] float32 the numbers; `weight.quant_state.bitsandbytes__nf4` (or
`…fp4`) JSON. With double quantisation `weight.absmax` is uint8: an index into `weight.nested_quant_map` [256], times
`weight.nested_absmax` of a block of `nested_blocksize`, plus `nested_offset`.
8 bit: `weight` int8 [out, in] and `SCB` [out]: number = code * SCB / 127. bitsandbytes itself rounds activations to 8 bit too,
but for outliers; here they stay in 16 bit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorafleet_inference.model.quantization.method import (
    FIELD,
    Fields,
    QuantizationError,
    Shape,
    Source,
    is_named,
    parse,
)
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight

BLOCK = 64
"""Numbers that share a scale, if nobody says otherwise."""
_STATE = "weight.quant_state.bitsandbytes__"
_BYTES, _FLOAT = (torch.uint8,), (torch.float32,)


class _BitsAndBytesFields(Fields):
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    llm_int8_skip_modules: list[str] | None = None
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "fp4"
    bnb_4bit_quant_storage: Literal["uint8", None] = None


class _State(BaseModel):
    """What bitsandbytes stores beside a weight of 4 bit."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_type: Literal["nf4", "fp4"]
    blocksize: int = Field(ge=1)
    shape: tuple[int, int]
    nested_blocksize: int | None = None
    nested_offset: float | None = None


@dataclass(frozen=True, slots=True)
class FourBit:
    """nf4 and fp4."""

    kind: str
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As logs and `plan` say it."""
        return f"bitsandbytes {self.kind}"

    @property
    def suffixes(self) -> frozenset[str]:
        """See `Method`."""
        parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        return frozenset({"weight", f"{_STATE}nf4", f"{_STATE}fp4", *(f"weight.{part}" for part in parts)})

    @property
    def markers(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"weight.absmax"})

    def layout(self, module: str, shape: Shape) -> Layout | None:  # noqa: ARG002
        """See `Method`."""
        return None if is_named(module, self.left_out) else table_layout(BLOCK)

    def read(self, source: Source) -> QuantizedWeight:
        """See `Method`."""
        state = _state(source)
        numel = source.shape[0] * source.shape[1]
        if state.shape != source.shape or numel % 2:
            raise QuantizationError(
                f"tensor {source.module}.weight has the shape {list(state.shape)}, not {list(source.shape)}"
            )
        num_blocks = -(-numel // state.blocksize)
        stored = source.take("weight", shape=(numel // 2, 1), dtypes=_BYTES).view(-1)
        return QuantizedWeight(
            table_layout(state.blocksize),
            source.shape,
            codes=stored << 4 | stored >> 4,
            scales=_scales(source, state, num_blocks).view(1, num_blocks),
            table=source.take("weight.quant_map", shape=(16,), dtypes=_FLOAT),
        )


@dataclass(frozen=True, slots=True)
class EightBit:
    """LLM.int8."""

    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As logs and `plan` say it."""
        return "bitsandbytes int8"

    @property
    def suffixes(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"weight", "SCB", "weight_format"})

    @property
    def markers(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"SCB"})

    def layout(self, module: str, shape: Shape) -> Layout | None:  # noqa: ARG002
        """See `Method`."""
        return None if is_named(module, self.left_out) else int8_layout()

    def read(self, source: Source) -> QuantizedWeight:
        """See `Method`."""
        order = source.tensors.get("weight_format")
        if order is not None and int(order) != 0:
            raise QuantizationError(
                f"tensor {source.module}.weight_format is {int(order)}; weights by row (0) are read"
            )
        codes = source.take("weight", shape=source.shape, dtypes=(torch.int8,))
        scales = source.take("SCB", shape=(source.shape[0],), dtypes=_FLOAT) / 127
        return QuantizedWeight(
            int8_layout(), source.shape, codes=codes.contiguous().view(torch.uint8) ^ 128, scales=scales[:, None]
        )


def table_layout(block: int) -> Layout:
    """Return the layout of 4 bit codes in blocks that go on over the ends of rows."""
    return Layout(Codes.TABLE4, block_columns=block, is_flat=True, scale_dtype=torch.float32)


def int8_layout() -> Layout:
    """Return the layout of symmetric 8 bit codes with a scale a row."""
    return Layout(Codes.UINT8, midpoint=128, scale_dtype=torch.float32)


def _state(source: Source) -> _State:
    for kind in ("nf4", "fp4"):
        stored = source.tensors.get(_STATE + kind)
        if stored is not None:
            try:
                return _State.model_validate(json.loads(bytes(stored.cpu().tolist())))
            except (ValueError, ValidationError) as error:
                raise QuantizationError(
                    f"tensor {source.module}.{_STATE}{kind} cannot be understood: {error}"
                ) from error
    raise QuantizationError(f"tensor {source.module}.{_STATE}nf4 is missing")


def _scales(source: Source, state: _State, num_blocks: int) -> torch.Tensor:
    """Return [blocks] float32."""
    if state.nested_blocksize is None:
        return source.take("weight.absmax", shape=(num_blocks,), dtypes=_FLOAT)
    outer = -(-num_blocks // state.nested_blocksize)
    codes = source.take("weight.absmax", shape=(num_blocks,), dtypes=_BYTES)
    table = source.take("weight.nested_quant_map", shape=(256,), dtypes=_FLOAT)
    largest = source.take("weight.nested_absmax", shape=(outer,), dtypes=_FLOAT)
    by_block = largest.repeat_interleave(state.nested_blocksize)[:num_blocks]
    return table[codes.int()] * by_block + (state.nested_offset or 0.0)


def bits_and_bytes(fields: Mapping[str, Any]) -> FourBit | EightBit:
    """Return the method of a `quantization_config` with `quant_method` bitsandbytes.

    Raises:
        QuantizationError: it is not supported.
    """
    found = parse(_BitsAndBytesFields, fields)
    left_out = tuple(found.llm_int8_skip_modules or ())
    if found.load_in_4bit:
        return FourBit(found.bnb_4bit_quant_type, left_out)
    if found.load_in_8bit:
        return EightBit(left_out)
    raise QuantizationError(f"{FIELD}.load_in_4bit and load_in_8bit are both false")
