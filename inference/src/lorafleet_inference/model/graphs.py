"""Decode steps that are captured once and replayed: on a GPU, Python and thousands of launches cost more than the work.

A graph computes steps of up to so many sequences with one token each, with or without LoRA; it is captured at the start,
before anything else uses the device, and serves whatever adapters, sequences and pages come. Steps that are not like that
(prompts, adapters with more than rows of A and B, scored prompts) are computed without one.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.device.interface import Captured, Graphs
from lorafleet_inference.kernels.triton.blocks import MIN_DOT
from lorafleet_inference.kernels.triton.fixed import FixedAttention, FixedLora, FixedSides, FixedTables, Room
from lorafleet_inference.model.attention import LayerKV, PagedStep, attending
from lorafleet_inference.model.batch import ChoiceInputs, HostBatch, Segment
from lorafleet_inference.model.input_batch import with_chosen
from lorafleet_inference.model.lora import LoraBank, num_pages_of
from lorafleet_inference.model.side_lora import SideBank

if TYPE_CHECKING:
    from lorafleet_inference.kernels.triton.backend import TritonKernels

logger = logging.getLogger(__name__)
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Sequences of a captured step; more are computed without one."""
NUM_ITEMS = (4, 16, 64, 256)
"""Items of LoRA, where the step has so many rows."""


@dataclass(frozen=True, slots=True)
class _Step:
    tables: FixedTables
    captured: Captured
    inputs: ChoiceInputs
    """Of all rows."""


class DecodeGraphs:
    """Computes decode steps of one model by graphs."""

    def __init__(
        self,
        graphs: Graphs,
        model: PreTrainedModel,
        layers: list[LayerKV],
        bank: LoraBank,
        *,
        sides: SideBank,
        triton: "TritonKernels",
        max_tokens: int,
        max_rank: int,
        max_requests: int,
        last_tokens: torch.Tensor | None = None,
    ) -> None:
        """`max_tokens`: of one sequence. `last_tokens`: those of `InputBatch`, where steps are submitted ahead."""
        self._graphs = graphs
        self._model, self._layers, self._bank, self._triton = model, layers, bank, triton
        self._sides = sides
        self._max_tokens, self._max_rank = max_tokens, max_rank
        self._last_tokens = last_tokens
        self._sizes = [size for size in SIZES if size < max_requests] + [min(max_requests, SIZES[-1])]
        self.captured: dict[tuple[int, int, bool], _Step] = {}
        """By sequences, items of LoRA, and whether head, embedding and experts have any, which the largest number of items alone has."""
        self.num_replayed = 0
        """Steps that were computed by a graph."""

    def compute(self, batch: HostBatch) -> tuple[torch.Tensor, ChoiceInputs] | None:
        """Return the logits [items, vocabulary] of a step, and what choosing from them needs: until the next call.

        None where no graph of such a step was captured. The items have one token each, and nothing but what both banks compute.
        """
        count = len(batch.items)
        if not count or count > self._sizes[-1]:
            return None
        if batch.segments and not self._bank.can_be_captured:
            return None
        step = self._step(count, batch.segments)
        if step is None:
            return None
        self._fill(step.tables, batch)
        step.captured.replay()
        self.num_replayed += 1
        return step.captured.output[:count], ChoiceInputs(step.inputs.rows[:count], step.inputs.wanted[:count])

    def capture_all(self) -> None:
        """Capture all that `compute` replays, or nothing; while it lasts, nothing else may use the device."""
        began = time.monotonic()
        try:
            for size in self._sizes:
                rooms = {min(size, most) for most in NUM_ITEMS} if self._bank.can_be_captured else set[int]()
                for num_items in (0, *sorted(rooms)):
                    self._capture(size, num_items)
                if rooms and self._sides.layout.places:
                    self._capture(size, max(rooms), has_sides=True)
        except Exception as error:  # noqa: BLE001  whatever hinders it, steps can be computed without
            self.captured.clear()
            logger.warning("decode steps are not captured, so they are slower: %s: %s", type(error).__name__, error)
            return
        logger.info("captured %d decode steps in %.1f s", len(self.captured), time.monotonic() - began)

    def _step(self, num_rows: int, segments: Sequence[Segment]) -> _Step | None:
        size = next(one for one in self._sizes if one >= num_rows)
        if self._sides.holds(segments):
            return self.captured.get((size, min(size, NUM_ITEMS[-1]), True))
        num_items = sum(-(-(one.end - one.begin) // MIN_DOT) for one in segments)
        room = 0 if not num_items else min(size, next(one for one in NUM_ITEMS if one >= num_items))
        return self.captured.get((size, room, False))

    def _capture(self, size: int, num_items: int, *, has_sides: bool = False) -> None:
        began = time.monotonic()
        device = self._layers[0].keys.device
        room = Room(
            size,
            num_items,
            num_blocks=-(-self._max_tokens // KV_BLOCK_TOKENS),
            num_pages=num_pages_of(self._max_rank) if num_items else 0,
            num_modules=len(self._bank.layout.places) if num_items else 0,
            num_side_pages=self._sides.most_pages(self._max_rank) if has_sides else 0,
            num_sites=len(self._sides.layout.places) if has_sides else 0,
        )
        tables = FixedTables(room, device)
        tables.begin()
        tables.send()
        captured = self._graphs.capture(lambda: self._compute(tables))
        inputs = ChoiceInputs(tables.tensor("rows"), tables.tensor("wanted"))
        self.captured[size, num_items, has_sides] = _Step(tables, captured, inputs)
        seconds = time.monotonic() - began
        logger.info("captured the decode step of %d sequences and %d LoRA items in %.2f s", size, num_items, seconds)

    def _compute(self, tables: FixedTables) -> torch.Tensor:
        """Compute the step of the tables; returns logits [rows, vocabulary]."""
        token_ids, positions = tables.tensor("token_ids"), tables.tensor("positions")
        if self._last_tokens is not None:
            token_ids = with_chosen(token_ids, self._last_tokens)
        attention = FixedAttention(self._triton.blocks, tables, tables.tensor("slots"), self._max_tokens)
        lora = FixedLora(self._triton.blocks, tables, self._max_rank) if tables.room.num_items else None
        sides = FixedSides(self._triton.blocks, tables, self._max_rank) if tables.room.num_sites else None
        with (
            self._bank.capturing(lora, tables.room.num_rows),
            self._sides.capturing(sides),
            attending(PagedStep.of_kernels(self._layers, attention)),
        ):
            logits: torch.Tensor = self._model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=0
            ).logits
        return logits[0]

    def _fill(self, tables: FixedTables, batch: HostBatch) -> None:
        here, count = tables.begin(), len(batch.items)
        here["token_ids"][:count] = batch.token_ids
        here["positions"][:count] = batch.positions
        here["lasts"][:count] = batch.positions
        here["slots"][:count] = batch.slots
        here["rows"][:count] = batch.rows
        here["wanted"][:count] = batch.wanted
        here["tables"][:count, : batch.tables.shape[1]] = batch.tables
        self._bank.fill(here["items"], here["pages"], here["ranks"], batch.segments, MIN_DOT)
        if tables.room.num_sites:
            self._sides.fill(here["owners"], here["side_pages"], here["entries"], batch.segments, MIN_DOT)
        tables.send()
