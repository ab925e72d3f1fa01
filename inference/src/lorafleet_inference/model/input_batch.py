"""The requests that run, kept from step to step, so that a step costs what changed and not what is known.

Each request has a row: its tokens, its blocks, how its tokens are chosen, and how often each of them occurred. A plan says
what changed; the arrays of a step are gathered from the rows, go into one buffer, and take one copy to the device.
Axes: R rows, S sequences of the step, T tokens of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.engine.messages import AdapterKey, Pooling, SamplingParams
from lorafleet_inference.engine.plan import Growth, NewRequest, StepItem, StepPlan, StepResult
from lorafleet_inference.kernels.triton.step import Block, HostBlock, StepBlock, Table
from lorafleet_inference.model.batch import ChoiceInputs, FlatBatch, HostBatch, Segment
from lorafleet_inference.model.occurrences import Occurrences
from lorafleet_inference.model.sampler import Choice
from lorafleet_inference.model.transfer import on_device
from lorafleet_inference.model.wanted import WantedRows

Ints = npt.NDArray[np.int64]
ChosenToken = tuple[str, int, int]
"""Of a request: the position, and the token there."""


@dataclass(slots=True, eq=False)
class Row:
    """What is known of a running request beside the arrays."""

    index: int
    adapter: AdapterKey | None
    sampling: SamplingParams
    num_prompt: int
    num_known: int
    """Tokens in `InputBatch.token_ids`."""
    occurrences: Occurrences | None
    """Of its tokens, where choosing the next one needs them."""
    pooling: Pooling | None = None
    """The embedding of its prompt is wanted."""


@dataclass(frozen=True, slots=True)
class BatchTables:
    """The arrays of a step, in its block."""

    token_ids: Table
    """[T] int64, as in `HostBatch`."""
    positions: Table
    """[T] int64"""
    slots: Table
    """[T] int64"""
    logit_rows: Table
    """[rows] int64"""
    rows: Table | None
    """[S] int64; None where no kernel chooses tokens."""
    wanted: Table | None
    """[S, 5] float64, likewise."""


class InputBatch:
    """Rows of at most `num_rows` requests of at most `max_model_len` tokens."""

    def __init__(
        self, num_rows: int, max_model_len: int, device: torch.device, *, ahead: bool = False, has_chooser: bool = False
    ) -> None:
        """`ahead`: steps may be gathered before the tokens of the one before are known here; the device has them.

        `has_chooser`: a kernel chooses tokens, so that what it needs goes to the device with each step.
        """
        max_blocks = -(-max_model_len // KV_BLOCK_TOKENS)
        self.token_ids = np.zeros((num_rows, max_model_len + 1), np.int32)
        """[R, positions]; memory that no request has used costs nothing."""
        self.tables = np.zeros((num_rows, max_blocks), np.int32)
        """[R, blocks]: the KV blocks of each request, from position 0 on."""
        self._adapter_numbers = np.zeros(num_rows, np.int64)
        """[R]: equal where the adapter is; 0 for the base."""
        self._adapter_froms = np.zeros(num_rows, np.int64)
        """[R]: the position of the first token that the adapter of each is computed for."""
        self._rope_lengths = np.zeros(num_rows, np.int64)
        """[R]: the length that the rotary frequencies of each follow at least."""
        self.last_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device) if ahead else None
        """[R] on the device: the token that was last chosen for each."""
        self._wanted = WantedRows(num_rows) if has_chooser else None
        self._numbers: dict[AdapterKey, list[int]] = {}
        """By adapter: its number, and how many rows have it."""
        self._rows: dict[str, Row] = {}
        self._free = list(range(num_rows))[::-1]
        self._free_numbers = list(range(1, num_rows + 1))[::-1]
        self._device = device

    def row(self, request_id: str) -> Row:
        """Return what is known of a running request."""
        return self._rows[request_id]

    def rows(self, items: Sequence[StepItem]) -> list[Row]:
        """Return the row of each item's request."""
        return [self._rows[item.request_id] for item in items]

    def tokens(self, row: Row) -> npt.NDArray[np.int32]:
        """Return the known tokens of a request; a view."""
        return self.token_ids[row.index, : row.num_known]

    def apply(self, plan: StepPlan) -> None:
        """Take in what changed since the step before."""
        for request_id in plan.gone:
            self._remove(request_id)
        for new in plan.new:
            self._remove(new.request_id)
            self._add(new)
        for grown in plan.grown:
            self._grow(grown)

    def resolve(self, items: Sequence[StepItem], rows: Sequence[Row], result: StepResult) -> None:
        """Take in the tokens that a step chose. `rows`: of each item, when the step was gathered; some may be gone."""
        for item, row in zip(items, rows, strict=True):
            sampled = result.sampled.get(item.request_id)
            if sampled is not None and self._rows.get(item.request_id) is row:
                at = item.end - len(item.draft_token_ids)
                for one in (sampled, *result.further.get(item.request_id, ())):
                    self.token_ids[row.index, at] = one.token_id
                    at += 1
                row.num_known = at

    def know(self, request_id: str, position: int, token_id: int) -> None:
        """Take in a token that was chosen elsewhere; of a request that is gone, nothing."""
        row = self._rows.get(request_id)
        if row is not None:
            self.token_ids[row.index, position] = token_id
            row.num_known = position + 1

    def note(self, items: Sequence[StepItem], choice: Choice, rows: torch.Tensor | None = None) -> None:
        """Keep the tokens that a step chooses on the device, for steps that are gathered before they are known here.

        `rows`: of the items, where they are on the device already.
        """
        if self.last_tokens is None:
            return
        index = on_device([row.index for row in self.rows(items)], self.last_tokens.device) if rows is None else rows
        # a row that is not finite ends its request, but not before a step in flight has read some token of it
        self.last_tokens[index] = choice.token_ids.masked_fill(~choice.is_finite, 0)

    def gather(self, items: Sequence[StepItem]) -> HostBatch:
        """Gather a step: neighbours share an adapter, so that each adapter is one segment, or few where it begins later."""
        rows = self.rows(items)
        for item, row in zip(items, rows, strict=True):
            if item.draft_token_ids:
                self.token_ids[row.index, item.end - len(item.draft_token_ids) : item.end] = item.draft_token_ids
        index = np.array([row.index for row in rows])
        starts = np.array([item.start for item in items])
        counts = np.array([item.num_tokens for item in items])
        num_base = self._adapter_froms[index] - starts
        """[S]: of each, so many tokens come before its adapter begins; below 0 where it began in an earlier step."""
        numbers = np.where(num_base < counts, self._adapter_numbers[index], 0)
        order = np.argsort(numbers, kind="stable")
        places = order.tolist()
        ordered, rows = [items[place] for place in places], [rows[place] for place in places]
        index, starts, counts, num_base, numbers = (one[order] for one in (index, starts, counts, num_base, numbers))
        num_base = np.maximum(num_base, 0)
        scores = np.array([item.num_rows for item in ordered])
        ends = np.cumsum(counts)
        positions, owners = _ranges(starts, counts)
        of_token = index[owners]
        token_ids = self.token_ids[of_token, positions]
        is_ahead = False
        if self.last_tokens is not None:
            # what is drafted is written here, and the token before it is known
            num_drafted = np.array([len(item.draft_token_ids) for item in ordered])
            unknown = starts + counts - num_drafted > np.array([row.num_known for row in rows])
            is_ahead = bool(unknown.any())
            token_ids[ends[unknown] - 1] = index[unknown] - len(self.token_ids)
        blocks = self.tables[of_token, positions // KV_BLOCK_TOKENS].astype(np.int64)
        segments = head_segments = _segments(numbers, rows, ends - counts, ends, num_base)
        if (counts != scores + 1).any():
            end_rows = np.cumsum(scores + 1)
            head_segments = _segments(numbers, rows, end_rows - scores - 1, end_rows, np.minimum(num_base, scores))
        return HostBatch(
            items=tuple(ordered),
            adapters=tuple(row.adapter for row in rows),
            token_ids=token_ids,
            is_ahead=is_ahead,
            positions=positions,
            slots=blocks * KV_BLOCK_TOKENS + positions % KV_BLOCK_TOKENS,
            logit_rows=_rows_of_logits(ends, counts, scores),
            tables=self.tables[index, : -(-int((starts + counts).max()) // KV_BLOCK_TOKENS)],
            begins=ends - counts,
            starts=starts,
            counts=counts,
            rope_lengths=self._rope_lengths[index],
            rows=index,
            wanted=None if self._wanted is None else self._wanted.at(index, starts + counts),
            segments=segments,
            head_segments=head_segments,
        )

    def lay(self, host: HostBatch, block: Block | None = None) -> BatchTables:
        """Put the arrays of a step into its block; without one, into one that has nothing else."""
        if block is None:
            block = HostBlock() if self._device.type == "cpu" else StepBlock(self._device)
        arrays = (host.token_ids, host.positions, host.slots, host.logit_rows)
        token_ids, positions, slots, logit_rows = (block.add(one.astype(np.int64, copy=False)) for one in arrays)
        rows = wanted = None
        if host.wanted is not None:
            rows, wanted = block.add(host.rows), block.add(host.wanted)
        return BatchTables(token_ids, positions, slots, logit_rows, rows, wanted)

    def to_device(self, host: HostBatch, tables: BatchTables | None = None) -> FlatBatch:
        """Return a step with its arrays on the device, with all that was put into their block before. `tables`: its own, if it is laid."""
        if tables is None:
            tables = self.lay(host)
        input_ids, choice = tables.token_ids.tensor, None
        if tables.rows is not None and tables.wanted is not None:
            choice = ChoiceInputs(tables.rows.tensor, tables.wanted.tensor)
        if host.is_ahead and self.last_tokens is not None:
            input_ids = with_chosen(input_ids, self.last_tokens)
        positions = tables.positions.tensor[None]
        return FlatBatch(host, input_ids[None], positions, tables.slots.tensor, tables.logit_rows.tensor, choice)

    def _add(self, new: NewRequest) -> None:
        index = self._free.pop()
        num_known = len(new.token_ids)
        self.token_ids[index, :num_known] = new.token_ids
        self.tables[index] = 0
        self.tables[index, : len(new.blocks)] = new.blocks
        number = 0
        if new.adapter is not None:
            shared = self._numbers.get(new.adapter) or self._numbers.setdefault(
                new.adapter, [self._free_numbers.pop(), 0]
            )
            shared[1] += 1
            number = shared[0]
        self._adapter_numbers[index] = number
        self._adapter_froms[index] = new.adapter_from
        self._rope_lengths[index] = new.rope_length
        if self._wanted is not None:
            self._wanted.put(index, new.sampling)
        occurrences = Occurrences(new.token_ids, new.num_prompt) if new.sampling.penalises else None
        self._rows[new.request_id] = Row(
            index, new.adapter, new.sampling, new.num_prompt, num_known, occurrences, new.pooling
        )

    def _remove(self, request_id: str) -> None:
        row = self._rows.pop(request_id, None)
        if row is None:
            return
        self._free.append(row.index)
        if row.adapter is not None:
            shared = self._numbers[row.adapter]
            shared[1] -= 1
            if not shared[1]:
                self._free_numbers.append(self._numbers.pop(row.adapter)[0])

    def _grow(self, grown: Growth) -> None:
        index = self._rows[grown.request_id].index
        self.tables[index, grown.num_before : grown.num_before + len(grown.blocks)] = grown.blocks


def with_chosen(token_ids: torch.Tensor, last_tokens: torch.Tensor) -> torch.Tensor:
    """Return token ids [T] with the last chosen one of row r, of R, where r - R stands, on the device."""
    return torch.where(token_ids < 0, last_tokens[token_ids.clamp(max=-1)], token_ids)


def _ranges(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return the numbers starts[i] to before starts[i] + counts[i] of each i, one after the other, and the i of each."""
    if (counts == 1).all():
        return starts, np.arange(len(counts))
    owners = np.repeat(np.arange(len(counts)), counts)
    firsts = np.cumsum(counts) - counts
    return np.arange(len(owners)) + (starts - firsts)[owners], owners


def _segments(numbers: Ints, rows: Sequence[Row], begins: Ints, ends: Ints, num_base: Ints) -> tuple[Segment, ...]:
    """Neighbours of one adapter become one, unless it begins only after `num_base` rows of the second; the base needs none.

    `numbers` [S]: equal where the adapter is; 0 for the base.
    """
    is_first = (np.diff(numbers, prepend=-1) != 0) | ((numbers != 0) & (num_base > 0))
    firsts = np.flatnonzero(is_first)
    lasts = np.append(firsts[1:], len(numbers)) - 1
    made = []
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        adapter = rows[first].adapter
        if numbers[first] and adapter is not None:
            made.append(Segment(int(begins[first] + num_base[first]), int(ends[last]), adapter))
    return tuple(made)


def _rows_of_logits(ends: Ints, counts: Ints, scores: Ints) -> Ints:
    """Rows of the batch whose logits are needed: of each sequence the first ones, as many as it scores, and the last one."""
    if not scores.any():
        return ends - 1
    scoring, _ = _ranges(ends - counts, scores)
    return np.insert(scoring, np.cumsum(scores), ends - 1)
