"""GPTQ and AWQ: whole numbers of 4 or 8 bits in groups along the inputs of a layer, each group with a scale and a zero.

GPTQ (AutoGPTQ, GPTQModel): `qweight` int32 [in / n, out] holds n = 32 / bits codes of a column in each word, lowest bits first;
`qzeros` int32 [groups, out / n] likewise along the outputs; `scales` [groups, out]; `g_idx` int32 [in] the group of each input,
which with `desc_act` is no longer their order. weight = (code - zero) * scale. Format "gptq" stores zeros less one, in as many
bits, so that a zero of 0 is stored as all ones; "gptq_v2" stores them as they are.
AWQ (format "gemm"): `qweight` int32 [in, out / 8] packs along the outputs, as do `qzeros` [groups, out / 8], with the codes of
outputs 0, 2, 4, 6, 1, 3, 5, 7 in this order from the lowest bits on; `scales` [groups, out].
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
    unpacked,
    whole_groups,
)
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight, packed_pairs

_INT = (torch.int32,)
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word the code of each of eight outputs is."""


class _GptqFields(Fields):
    bits: Literal[4, 8]
    group_size: int = Field(ge=-1)
    desc_act: bool = False
    sym: bool = True
    checkpoint_format: Literal["gptq", "gptq_v2", None] = Field(
        default=None, validation_alias=AliasChoices("checkpoint_format", "format")
    )
    dynamic: dict[str, None] | None = Field(default=None, max_length=0)
    """Other settings for some modules."""
    is_marlin_format: Literal[False, None] = False
    pack_dtype: Literal["int32", None] = None


class _AwqFields(Fields):
    bits: Literal[4] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int = Field(ge=-1, validation_alias=AliasChoices("group_size", "q_group_size"))
    zero_point: Literal[True] = True
    version: Literal["gemm", "GEMM", None] = Field(
        default=None, validation_alias=AliasChoices("version", "checkpoint_format", "format")
    )
    modules_to_not_convert: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Grouped:
    """Either of them."""

    title: str
    bits: int
    group_size: int
    """-1: one group a row."""
    has_order: bool = False
    has_zeros: bool = True
    """By the config; the files say it for sure."""
    zero_less_one: bool = False
    is_awq: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As logs and `plan` say it."""
        groups = "rows" if self.group_size == -1 else f"groups of {self.group_size}"
        return f"{self.title}, {self.bits} bit, {groups}"

    @property
    def suffixes(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"qweight", "qzeros", "scales"} | ({"g_idx"} if not self.is_awq else set()))

    @property
    def markers(self) -> frozenset[str]:
        """See `Method`."""
        return frozenset({"qweight"})

    def layout(self, module: str, shape: Shape) -> Layout | None:
        """See `Method`."""
        if is_named(module, self.left_out):
            return None
        return self._layout(module, shape, has_zeros=self.has_zeros, has_order=self.has_order)

    def _layout(self, module: str, shape: Shape, *, has_zeros: bool, has_order: bool) -> Layout:
        return Layout(
            Codes.UINT4 if self.bits == 4 else Codes.UINT8,
            block_columns=whole_groups(self.group_size, shape[1], module),
            midpoint=0 if has_zeros else 1 << (self.bits - 1),
            has_zeros=has_zeros,
            has_order=has_order,
        )

    def read(self, source: Source) -> QuantizedWeight:
        """See `Method`."""
        num_out, num_in = source.shape
        group = whole_groups(self.group_size, num_in, source.module)
        groups, per_word = num_in // group, 32 // self.bits
        scales = source.take("scales", shape=(groups, num_out), dtypes=HALVES).t().contiguous()
        words = source.take("qzeros", shape=(groups, num_out // per_word), dtypes=_INT)
        zeros = self._along_outputs(words).t().contiguous()
        if self.zero_less_one:
            zeros = (zeros + 1) & ((1 << self.bits) - 1)
        if self.is_awq:
            words = source.take("qweight", shape=(num_in, num_out // per_word), dtypes=_INT)
            codes = self._along_outputs(words).t().contiguous()
        else:
            words = source.take("qweight", shape=(num_in // per_word, num_out), dtypes=_INT)
            codes = unpacked(words.t(), self.bits)
        order = self._order(source, group)
        midpoint = 1 << (self.bits - 1)
        has_zeros = bool((zeros != midpoint).any())
        layout = self._layout(source.module, source.shape, has_zeros=has_zeros, has_order=order is not None)
        return QuantizedWeight(
            Layout(
                layout.codes,
                block_columns=layout.block_columns,
                midpoint=layout.midpoint,
                has_zeros=has_zeros,
                has_order=layout.has_order,
                scale_dtype=scales.dtype,
            ),
            source.shape,
            codes=packed_pairs(codes) if self.bits == 4 else codes,
            scales=scales,
            zeros=zeros if has_zeros else None,
            order=order,
        )

    def _along_outputs(self, words: torch.Tensor) -> torch.Tensor:
        """Return the codes [n, out] of words [n, out / codes of a word]."""
        codes = unpacked(words, self.bits)
        if not self.is_awq:
            return codes
        eights = codes.view(len(words), -1, 8)
        return eights[..., _AWQ_PLACES].view(len(words), -1)

    def _order(self, source: Source, group: int) -> torch.Tensor | None:
        """Return the group of each input where that is not their order."""
        if self.is_awq or not (self.has_order or "g_idx" in source.tensors):
            return None
        num_in = source.shape[1]
        order = source.take("g_idx", shape=(num_in,), dtypes=_INT)
        usual = torch.arange(num_in, dtype=torch.int32, device=order.device) // group
        if torch.equal(order, usual):
            return None
        check_order(source.module, "g_idx", order, num_in // group)
        return order


def check_order(module: str, suffix: str, order: torch.Tensor, num_groups: int) -> None:
    """Check that each group is one that there is.

    Raises:
        QuantizationError: it is not.
    """
    least, most = int(order.min()), int(order.max())
    if least < 0 or most >= num_groups:
        raise QuantizationError(f"tensor {module}.{suffix} names group {least if least < 0 else most} of {num_groups}")


def gptq(fields: Mapping[str, Any]) -> Grouped:
    """Return the method of a `quantization_config` with `quant_method` gptq.

    Raises:
        QuantizationError: it is not supported.
    """
    found = parse(_GptqFields, fields)
    return Grouped(
        "GPTQ",
        found.bits,
        found.group_size or -1,
        has_order=found.desc_act,
        has_zeros=not found.sym,
        zero_less_one=found.checkpoint_format != "gptq_v2",
    )


def awq(fields: Mapping[str, Any]) -> Grouped:
    """Return the method of a `quantization_config` with `quant_method` awq.

    Raises:
        QuantizationError: it is not supported.
    """
    found = parse(_AwqFields, fields)
    left_out = tuple(found.modules_to_not_convert or ())
    return Grouped("AWQ", found.bits, found.group_size or -1, is_awq=True, left_out=left_out)
