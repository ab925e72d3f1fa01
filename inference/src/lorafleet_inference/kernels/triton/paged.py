"""Attention of a step by the kernels of `attention.py`: what is prepared once a step, and what is launched in a layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels.fp8_pages import is_fp8, width_of
from lorafleet_inference.kernels.layer_ops import HeadSpec
from lorafleet_inference.kernels.triton import attention, layer_ops
from lorafleet_inference.kernels.triton.blocks import MIN_DOT, STAGES, Blocks
from lorafleet_inference.kernels.triton.launch import launch
from lorafleet_inference.kernels.triton.step import Int32s, StepBlock, Table, table_of

LOG2E = attention.LOG2E.value
MAX_WIDTH = 256
KINDS = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEADS = 128
"""Query heads that share a key head."""
SPLIT_TOKENS = 256
"""A split of `decode` has at least about so many keys: less is not worth the merge."""
MAX_SPLITS = 32
FP8_ELEMENTS = 16 * 256
"""Of keys in 8 bits, so many are brought back at once by `decode` without that registers are spilled."""
FP8_FLOAT32_WIDTH = 128
"""Widest head whose numbers in 8 bits are brought back to float32: registers of a program hold no wider ones."""
FP8_FLOAT32_WARPS = 8
"""These have twice the registers for the same numbers."""


def _padded(number: int) -> int:
    return max(MIN_DOT, 1 << (number - 1).bit_length())


def _decode_keys(blocks: Blocks, dtype: torch.dtype) -> int:
    return blocks.decode_keys_float32 if dtype == torch.float32 else blocks.decode_keys


class AttentionStep:
    """Sequences of a step, prepared once for all layers.

    `spans[i]`: rows of the batch from, to before; position of the first; KV blocks of the sequence. `slots` [T] int64: where the
    KV of each token goes.
    """

    def __init__(
        self,
        blocks: Blocks,
        block: StepBlock,
        spans: Sequence[tuple[int, int, int, Sequence[int] | Int32s]],
        slots: Table,
    ) -> None:
        self._blocks, self._slots = blocks, slots
        decodes = [one for one in spans if one[1] - one[0] == 1]
        chunks = [one for one in spans if one[1] - one[0] > 1]
        self._num_decodes, self._num_chunks = len(decodes), len(chunks)
        self._longest_chunk = max((end - begin for begin, end, *_ in chunks), default=0)
        self._longest_decode = max((start + 1 for _, _, start, _ in decodes), default=0)
        self._tables: Table = block.add(table_of([blocks for *_, blocks in (*decodes, *chunks)]))
        self._rows: Table = block.add(np.array([begin for begin, *_ in decodes], dtype=np.int32))
        self._lasts: Table = block.add(np.array([start for _, _, start, _ in decodes], dtype=np.int32))
        numbers = [(len(decodes) + at, begin, start, end - begin) for at, (begin, end, start, _) in enumerate(chunks)]
        self._chunks = block.add(np.array(numbers, dtype=np.int32).reshape(-1, 4))
        self._parts = torch.empty(0)
        self._tops = torch.empty(0)

    @staticmethod
    def can_attend(query: torch.Tensor, values: torch.Tensor) -> bool:
        """Whether there is a kernel for query [H, T, D] and pages of values, E wide, in its dtype or in 8 bits."""
        heads, _, width = query.shape
        groups = values.shape[1]
        is_of_kind = query.dtype in KINDS if is_fp8(values) else query.dtype == values.dtype
        widest = FP8_FLOAT32_WIDTH if is_fp8(values) and query.dtype == torch.float32 else MAX_WIDTH
        return heads // groups <= MAX_HEADS and max(width, width_of(values)) <= widest and is_of_kind

    def write(self, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put key [G, T, D] and value [G, T, E] into the pages."""
        key, value = (one if one.stride(2) == 1 else one.contiguous() for one in (key, value))
        groups, tokens, width = key.shape
        launch(
            attention.write,
            (tokens, groups),
            (keys, values, key, value, key.stride(1), key.stride(0), value.stride(1), value.stride(0),
             self._slots.tensor, groups),
            {
                "BLOCK": KV_BLOCK_TOKENS, "WIDTH": width, "VALUE": value.shape[2],
                "PAD": _padded(max(width, value.shape[2])), "FP8": is_fp8(keys), "num_warps": 1,
            },
        )  # fmt: skip

    def rotate_write(
        self,
        qkv: torch.Tensor,
        heads: HeadSpec,
        cos: torch.Tensor,
        sin: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Rotate qkv [T, (H + 2 G) D], put keys and values into the pages, and return the queries [T, H, D]."""
        return layer_ops.rotate_write(qkv, heads, cos, sin, keys, values, self._slots.tensor)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
    ) -> None:
        """Fill out [T, H, E] for all tokens of the step, whose KV is in the pages.

        query [H, T, D]; keys [num_blocks, G, KV_BLOCK_TOKENS, D], values [num_blocks, G, KV_BLOCK_TOKENS, E], or both in
        8 bits, as `fp8_pages` says; out contiguous; sinks [H]; key_bias [H, positions]: added to the scaled scores of the key
        at each position.
        """
        if query.stride(2) != 1:
            query = query.contiguous()
        heads, _, width = query.shape
        groups, value_width = values.shape[1], width_of(values)
        tables = self._tables.tensor
        unused = self._slots.tensor  # a pointer where a kernel is compiled without the argument
        pages = (query, query.stride(1), query.stride(0), keys, values, tables, tables.stride(0))
        extras = (
            unused if sinks is None else sinks,
            unused if key_bias is None else key_bias,
            0 if key_bias is None else key_bias.stride(0),
            scale * LOG2E,
            softcap or 0.0,
            window or 0,
            groups,
        )
        shape = {
            "HEADS": heads // groups, "BLOCK": KV_BLOCK_TOKENS, "WIDTH": width, "VALUE": value_width,
            "PAD": _padded(width), "VALUE_PAD": _padded(value_width), "SOFTCAP": softcap is not None,
            "WINDOW": window is not None, "SINKS": sinks is not None, "BIAS": key_bias is not None,
            "FP8": is_fp8(keys),
        }  # fmt: skip
        if self._num_decodes:
            self._decode(out, pages, extras, shape)
        if self._num_chunks:
            self._prefill(out, pages, extras, shape)

    def _decode(self, out: torch.Tensor, pages: tuple, extras: tuple, shape: dict[str, Any]) -> None:
        heads, value_width, groups = out.shape[1], out.shape[2], extras[-1]
        window = extras[-2] if shape["WINDOW"] else self._longest_decode
        wanted = min(
            -(-self._blocks.programs // (self._num_decodes * groups)),
            -(-min(self._longest_decode, window) // SPLIT_TOKENS),
            MAX_SPLITS,
        )
        splits = 1 << (wanted - 1).bit_length()
        rows, lasts = self._rows.tensor, self._lasts.tensor
        num_parts = self._num_decodes * heads * splits
        parts, tops = (lasts, lasts) if splits == 1 else self._scratch(num_parts, value_width)
        key_bytes = (shape["PAD"] + shape["VALUE_PAD"]) * out.element_size()
        keys = self._blocks.keys_of(_decode_keys(self._blocks, out.dtype), key_bytes)
        if shape["FP8"]:
            keys = min(keys, FP8_ELEMENTS // max(shape["PAD"], shape["VALUE_PAD"]))
        launch(
            attention.decode,
            (self._num_decodes, groups, splits),
            (out, parts, tops, *pages, lasts, rows, *extras),
            {
                **shape,
                "M": _padded(shape["HEADS"]),
                "STEP": keys,
                "SPLITS": splits,
                "num_warps": FP8_FLOAT32_WARPS if shape["FP8"] and out.dtype == torch.float32 else 4,
                "num_stages": STAGES,
            },
        )
        if splits > 1:
            launch(
                attention.merge,
                (self._num_decodes, heads),
                (out, parts, tops, lasts, rows),
                {
                    "H": heads,
                    "VALUE": value_width,
                    "VALUE_PAD": shape["VALUE_PAD"],
                    "SPLITS": splits,
                    "num_warps": min(8, max(1, splits * shape["VALUE_PAD"] // 1024)),
                },
            )

    def _scratch(self, num_parts: int, value_width: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tops.numel() < num_parts * 2 or self._parts.numel() < num_parts * value_width:
            device = self._slots.tensor.device
            self._parts = torch.empty(num_parts * value_width, dtype=torch.float32, device=device)
            self._tops = torch.empty(num_parts * 2, dtype=torch.float32, device=device)
        return self._parts, self._tops

    def _prefill(self, out: torch.Tensor, pages: tuple, extras: tuple, shape: dict[str, Any]) -> None:
        width = max(shape["PAD"], shape["VALUE_PAD"])
        sizes = next(one for one in self._blocks.prefill if width <= one.width)
        if out.dtype == torch.float32:
            sizes = self._blocks.prefill_float32
        rows = max(sizes.rows, _padded(shape["HEADS"]))
        warps = sizes.warps if rows == sizes.rows else 8
        if shape["FP8"] and out.dtype == torch.float32:
            warps = max(warps, FP8_FLOAT32_WARPS)
        key_bytes = (shape["PAD"] + shape["VALUE_PAD"]) * out.element_size()
        launch(
            attention.prefill,
            (-(-self._longest_chunk // (rows // shape["HEADS"])), self._num_chunks, extras[-1]),
            (out, *pages, self._chunks.tensor, *extras),
            {
                **shape,
                "M": rows,
                "STEP": self._blocks.keys_of(sizes.keys, key_bytes),
                "num_warps": warps,
                "num_stages": STAGES,
            },
        )
