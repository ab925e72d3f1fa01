"""The flat batch: all tokens of a step in one row.

Axes: T tokens of the step, S sequences of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.plan import StepItem
from lorafleet_inference.model.transfer import on_device


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `begin` to `end` of the batch belong to one sequence; the first is at position `start` of it."""

    begin: int
    end: int
    start: int
    blocks: npt.NDArray[np.int32]
    """KV blocks of the sequence, from position 0 to its last token of the step."""

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
class HostBatch:
    """A step on the host, in the order of the batch: neighbours share an adapter, so that each adapter is one segment.

    More are those of an adapter that is computed for the last tokens of some of its sequences only.
    """

    items: tuple[StepItem, ...]
    adapters: tuple[AdapterKey | None, ...]
    """Of each item."""
    token_ids: npt.NDArray[np.int32]
    """[T]: row - rows of `InputBatch` where the token is not known on the host; then it is the last one chosen for this row."""
    is_ahead: bool
    """Whether there is one."""
    positions: npt.NDArray[np.int64]
    """[T]"""
    slots: npt.NDArray[np.int64]
    """[T]: where the KV of each token goes, block * KV_BLOCK_TOKENS + offset."""
    logit_rows: npt.NDArray[np.int64]
    """[rows]: rows whose logits are needed, in the order of the items.

    Of each item first those that score its prompt, or come before its draft tokens; then its last one, which chooses the next
    token, or at the end of a part of a prompt shows whether the numbers are finite so far.
    """
    tables: npt.NDArray[np.int32]
    """[S, blocks of the longest sequence]"""
    begins: npt.NDArray[np.int64]
    """[S]: the row of each sequence's first token in the batch."""
    starts: npt.NDArray[np.int64]
    """[S]: the position of that token in its sequence."""
    counts: npt.NDArray[np.int64]
    """[S]: tokens of each sequence."""
    rope_lengths: npt.NDArray[np.int64]
    """[S]: the length that the rotary frequencies of each sequence follow at least."""
    rows: npt.NDArray[np.int64]
    """[S]: the row of each in `InputBatch`."""
    wanted: npt.NDArray[np.float64] | None
    """[S, 5]: what each wants of the kernel that chooses its next token, as `wanted.py` says; None where there is none."""
    segments: tuple[Segment, ...]
    head_segments: tuple[Segment, ...]
    """As `segments`, over `logit_rows`."""

    @property
    def has_single_tokens(self) -> bool:
        """Whether each sequence has one token, and one row of logits."""
        return len(self.token_ids) == len(self.logit_rows) == len(self.items)

    @property
    def spans(self) -> list[Span]:
        """The place of each sequence in the batch."""
        return [self.span(index) for index in range(len(self.counts))]

    def span(self, index: int) -> Span:
        """Return the place of a sequence in the batch."""
        begin, start, count = (int(one[index]) for one in (self.begins, self.starts, self.counts))
        num_blocks = -(-(start + count) // KV_BLOCK_TOKENS)
        return Span(begin, begin + count, start, self.tables[index, :num_blocks])


@dataclass(frozen=True, slots=True)
class ChoiceInputs:
    """What a kernel needs to choose tokens, on the device, where it came with the batch."""

    rows: torch.Tensor
    """[S] int64, as in `HostBatch`."""
    wanted: torch.Tensor
    """[S, 5] float64, as in `HostBatch`."""

    def some(self, sequences: Sequence[int]) -> "ChoiceInputs":
        """Return those of some sequences, ascending."""
        if len(sequences) == len(self.rows):
            return self
        index = on_device(sequences, self.rows.device)
        return ChoiceInputs(self.rows[index], self.wanted[index])


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """What one forward pass needs."""

    host: HostBatch
    input_ids: torch.Tensor
    """[1, T] int64, on the device."""
    position_ids: torch.Tensor
    """[1, T] int64, on the device."""
    slots: torch.Tensor
    """[T] int64, on the device: where the KV of each token goes, block * KV_BLOCK_TOKENS + offset."""
    sampled_rows: torch.Tensor
    """[rows] int64, on the device: rows whose logits are needed."""
    choice: ChoiceInputs | None
