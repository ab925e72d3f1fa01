"""The flat batch: all tokens of a step in one row.

Axes: T tokens of the step, S sequences of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.plan import StepItem


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `begin` to `end` of the batch belong to one sequence; the first is at position `start` of it."""

    begin: int
    end: int
    start: int
    blocks: tuple[int, ...]

    @property
    def num_known(self) -> int:
        """Tokens of the sequence whose KV is there after the step."""
        return self.start + self.end - self.begin


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `begin` to `end` of the batch use this adapter."""

    begin: int
    end: int
    adapter: AdapterKey


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """What one forward pass needs."""

    items: tuple[StepItem, ...]
    """In the order of the batch: neighbours share an adapter, so that each adapter is one segment."""
    input_ids: torch.Tensor
    """[1, T] int64, on the device."""
    position_ids: torch.Tensor
    """[1, T] int64, on the device."""
    slots: torch.Tensor
    """[T] int64, on the device: where the KV of each token goes, block * KV_BLOCK_TOKENS + offset."""
    spans: tuple[Span, ...]
    segments: tuple[Segment, ...]
    head_segments: tuple[Segment, ...]
    """As `segments`, over `sampled_rows`."""
    sampled_rows: torch.Tensor
    """[rows] int64, on the device: rows whose logits are needed, in the order of the items.

    Of each item first those that score its prompt, then its last one, which chooses the next token, or at the end of a
    part of a prompt shows whether the numbers are finite so far.
    """


def in_order(items: Sequence[StepItem]) -> tuple[StepItem, ...]:
    """Return items in the order of a batch."""
    return tuple(
        sorted(items, key=lambda item: ("", "") if item.adapter is None else (item.adapter.name, item.adapter.digest))
    )


def segments_of(items: Sequence[StepItem]) -> list[Segment]:
    """Return the segments of items of one token each, given in the order of the batch."""
    segments: list[Segment] = []
    for row, item in enumerate(items):
        _extend(segments, item.adapter, row, row + 1)
    return segments


def build_batch(items: Sequence[StepItem], device: torch.device) -> FlatBatch:
    """Lay out the items of a step."""
    ordered = in_order(items)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    spans: list[Span] = []
    segments: list[Segment] = []
    head_segments: list[Segment] = []
    rows: list[int] = []
    for item in ordered:
        begin, end = len(token_ids), len(token_ids) + len(item.token_ids)
        token_ids += item.token_ids
        for position in range(item.start, item.start + len(item.token_ids)):
            positions.append(position)
            slots.append(item.blocks[position // KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS)
        spans.append(Span(begin, end, item.start, item.blocks))
        _extend(segments, item.adapter, begin, end)
        num_before = len(rows)
        rows += (*range(begin, begin + len(item.score)), end - 1)
        _extend(head_segments, item.adapter, num_before, len(rows))
    return FlatBatch(
        items=ordered,
        input_ids=torch.tensor([token_ids], dtype=torch.int64, device=device),
        position_ids=torch.tensor([positions], dtype=torch.int64, device=device),
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        spans=tuple(spans),
        segments=tuple(segments),
        head_segments=tuple(head_segments),
        sampled_rows=torch.tensor(rows, dtype=torch.int64, device=device),
    )


def _extend(segments: list[Segment], adapter: AdapterKey | None, begin: int, end: int) -> None:
    """Add a segment, or lengthen the last one if it is of the same adapter; the base needs none."""
    if adapter is not None and segments and segments[-1].adapter == adapter:
        segments[-1] = Segment(segments[-1].begin, end, adapter)
    elif adapter is not None:
        segments.append(Segment(begin, end, adapter))
