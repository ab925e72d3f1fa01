"""Steps that are captured once and replayed: on a GPU, Python and hundreds of launches cost more than the work of a small step.

A graph computes steps of up to so many sequences with one token each, or of up to so many tokens where some are of prompts, with or
without LoRA; it is captured at the start, before anything else uses the device, and serves whatever adapters, sequences and pages
come. Larger steps, and those of adapters with more than A and B, are computed without one.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.device.interface import Captured, Graphs
from lorafleet_inference.kernels.triton import fixed_prompts
from lorafleet_inference.kernels.triton.affines import AffineStep
from lorafleet_inference.kernels.triton.fixed import FixedAttention, FixedLora, FixedSides, FixedTables, Room
from lorafleet_inference.kernels.triton.fixed_prompts import FixedPrompts
from lorafleet_inference.kernels.triton.paged import AttentionStep
from lorafleet_inference.kernels.triton.step import Given
from lorafleet_inference.model.affine_bank import AffineBank
from lorafleet_inference.model.attention import attending
from lorafleet_inference.model.batch import ChoiceInputs, HostBatch, Segment
from lorafleet_inference.model.graph_rooms import (
    ITEM_TOKENS,
    NUM_ITEMS,
    PIECE_TOKENS,
    DecodeRoom,
    PromptRoom,
    decode_rooms,
    decode_sizes,
    prompt_room,
    prompt_rooms,
)
from lorafleet_inference.model.input_batch import with_chosen
from lorafleet_inference.model.lora import LoraBank
from lorafleet_inference.model.paged_step import LayerKV, PagedStep
from lorafleet_inference.model.side_lora import SideBank

if TYPE_CHECKING:
    from lorafleet_inference.kernels.triton.backend import TritonKernels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    tables: FixedTables
    captured: Captured
    inputs: ChoiceInputs
    """Of all rows."""


class StepGraphs:
    """Computes steps of one model by graphs."""

    def __init__(
        self,
        graphs: Graphs,
        model: PreTrainedModel,
        layers: list[LayerKV],
        bank: LoraBank,
        *,
        sides: SideBank,
        affine: AffineBank | None,
        triton: "TritonKernels",
        max_tokens: int,
        max_rank: int,
        max_requests: int,
        max_batch_tokens: int,
        last_tokens: torch.Tensor | None = None,
    ) -> None:
        """`max_tokens`: of one sequence; `max_batch_tokens`: of a step.

        `last_tokens`: those of `InputBatch`, where steps are submitted ahead."""
        self._graphs = graphs
        self._model, self._layers, self._bank, self._triton = model, layers, bank, triton
        self._sides, self._affine = sides, affine
        self._max_tokens, self._max_rank = max_tokens, max_rank
        self._last_tokens = last_tokens
        has_lora = bank.can_be_captured
        self._sizes = decode_sizes(max_requests)
        self._has_sides, has_affine = bool(sides.layout.places), affine is not None
        self._decodes = list(
            decode_rooms(max_requests, has_lora=has_lora, has_sides=self._has_sides, has_affine=has_affine)
        )
        self._prompts = prompt_rooms(max_batch_tokens, max_requests, has_lora=has_lora)
        self._logits = torch.empty(0)
        """[rows of the largest step, vocabulary] on the device: of the step that was computed last."""
        self.captured: dict[DecodeRoom | PromptRoom, _Step] = {}
        self.num_replayed = 0
        """Steps that were computed by a graph."""

    def compute(self, batch: HostBatch) -> tuple[torch.Tensor, ChoiceInputs] | None:
        """Return the logits [items, vocabulary] of a step, and what choosing from them needs: until the next call.

        None where no graph of such a step was captured. The items have nothing but what both banks compute.
        """
        room = self._room(batch)
        step = None if room is None else self.captured.get(room)
        if step is None:
            return None
        self._fill(step.tables, batch)
        step.captured.replay()
        self.num_replayed += 1
        count = len(batch.items)
        inputs = ChoiceInputs(step.inputs.rows[:count], step.inputs.wanted[:count])
        return step.captured.output[: len(batch.logit_rows)], inputs

    def capture_all(self) -> None:
        """Capture all that `compute` replays; while it lasts, nothing else may use the device.

        Decode steps and steps with prompts each wholly or not at all, and the latter only with the former.
        """
        for name, rooms in (("decode steps", self._decodes), ("steps with prompts", self._prompts)):
            began = time.monotonic()
            try:
                for room in rooms:
                    self.capture(room)
            except Exception as error:  # noqa: BLE001  whatever hinders it, steps can be computed without
                for room in rooms:
                    self.captured.pop(room, None)
                logger.warning("%s are not captured, so they are slower: %s: %s", name, type(error).__name__, error)
                return
            logger.info("captured %d %s in %.1f s", len(rooms), name, time.monotonic() - began)

    @torch.inference_mode()
    def capture_anew(self, room: DecodeRoom, *, dependent_launch: bool, max_rank: int) -> None:
        """Capture one room again, to compare: as the option says, and for adapters of at most this rank."""
        blocks, most = self._triton.blocks, self._max_rank
        self._triton.begin_early(dependent_launch)
        self._max_rank = max_rank
        try:
            self.capture(room)
        finally:
            self._triton.begin_early(blocks.dependent_launch)
            self._max_rank = most

    def _room(self, batch: HostBatch) -> DecodeRoom | PromptRoom | None:
        """Return the room of a step, if there is one."""
        segments, num_rows = batch.segments, len(batch.items)
        if not num_rows or (segments and not self._bank.can_be_captured):
            return None
        num_items, has_sides = _num_items(segments), self._sides.holds(segments)
        has_affine = self._affine is not None and self._affine.holds(segments)
        if not batch.has_single_tokens:
            if has_sides or has_affine:
                return None
            most_rows, has_decodes = max(num_rows, len(batch.logit_rows)), bool((batch.counts == 1).any())
            return prompt_room(self._prompts, len(batch.token_ids), most_rows, num_items, has_decodes=has_decodes)
        size = next((one for one in self._sizes if one >= num_rows), None)
        if size is None:
            return None
        if has_affine:
            return DecodeRoom(size, min(size, NUM_ITEMS[-1]), has_sides=self._has_sides, has_affine=True)
        if has_sides:
            return DecodeRoom(size, min(size, NUM_ITEMS[-1]), has_sides=True)
        return DecodeRoom(size, min(size, next(one for one in (0, *NUM_ITEMS) if one >= num_items)))

    def capture(self, step: DecodeRoom | PromptRoom) -> None:
        """Capture the steps of one room; while it lasts, nothing else may use the device."""
        began = time.monotonic()
        device = self._layers[0].keys.device
        num_items, has_sides = step.num_items, isinstance(step, DecodeRoom) and step.has_sides
        prompt = step if isinstance(step, PromptRoom) else None
        affine = self._affine if isinstance(step, DecodeRoom) and step.has_affine else None
        room = Room(
            step.num_rows,
            num_items,
            num_blocks=-(-self._max_tokens // KV_BLOCK_TOKENS),
            num_side_pages=self._sides.most_pages(self._max_rank) if has_sides else 0,
            num_sites=len(self._sides.layout.places) if has_sides else 0,
            num_affine_pages=0 if affine is None else affine.most_pages(),
            num_affine_modules=0 if affine is None else len(affine.layout.index),
            num_tokens=0 if prompt is None else prompt.num_tokens,
            num_decodes=prompt.num_rows if prompt is not None and prompt.has_decodes else 0,
            num_pieces=0 if prompt is None else prompt.num_pieces,
        )
        tables = FixedTables(room, device)
        tables.begin()
        tables.send()
        captured = self._graphs.capture(lambda: self._compute(tables))
        inputs = ChoiceInputs(tables.tensor("rows"), tables.tensor("wanted"))
        self.captured[step] = _Step(tables, captured, inputs)
        logger.debug("captured %s in %.2f s", step, time.monotonic() - began)

    def _compute(self, tables: FixedTables) -> torch.Tensor:
        """Compute the step of the tables; returns logits [rows, vocabulary]."""
        room, token_ids, positions = tables.room, tables.tensor("token_ids"), tables.tensor("positions")
        if self._last_tokens is not None:
            token_ids = with_chosen(token_ids, self._last_tokens)
        attention: AttentionStep
        if room.num_tokens:
            attention = FixedPrompts(self._triton.blocks, tables, self._max_tokens, PIECE_TOKENS)
        else:
            attention = FixedAttention(self._triton.blocks, tables, tables.tensor("slots"), self._max_tokens)
        lora = None
        if room.num_items:
            assert self._bank.tables is not None
            lora = FixedLora(self._triton.blocks, tables, self._bank.tables, self._max_rank)
        sides = FixedSides(self._triton.blocks, tables, self._max_rank) if tables.room.num_sites else None
        with (
            nullcontext() if self._affine is None else self._affine.capturing(_affine_of(tables)),
            self._bank.capturing(lora, len(token_ids)),
            self._sides.capturing(sides),
            attending(PagedStep.of_kernels(self._layers, attention)),
        ):
            logits: torch.Tensor = self._model(
                input_ids=token_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=tables.tensor("logit_rows") if room.num_tokens else 0,
            ).logits[0]
        # in one place for all graphs: those of each would be memory of its own, as long as there is the graph
        if not self._logits.numel():
            most_rows = max([*(one.num_rows for one in self._decodes), *(one.num_rows for one in self._prompts)])
            self._logits = logits.new_empty(most_rows, logits.shape[1])
        return self._logits[: len(logits)].copy_(logits)

    def _fill(self, tables: FixedTables, batch: HostBatch) -> None:
        here, count, num_tokens = tables.begin(), len(batch.items), len(batch.token_ids)
        here["token_ids"][:num_tokens] = batch.token_ids
        here["positions"][:num_tokens] = batch.positions
        here["slots"][:num_tokens] = batch.slots
        here["rows"][:count] = batch.rows
        here["wanted"][:count] = batch.wanted
        if tables.room.num_tokens:
            here["logit_rows"][: len(batch.logit_rows)] = batch.logit_rows
            places = (batch.begins, batch.starts, batch.counts, batch.tables)
            fixed_prompts.fill(here, *places, piece_tokens=PIECE_TOKENS)
        else:
            here["lasts"][:count] = batch.positions
            here["tables"][:count, : batch.tables.shape[1]] = batch.tables
        self._bank.fill(here["items"], batch.segments, ITEM_TOKENS)
        if tables.room.num_sites:
            names = ("side_items", "owners", "side_pages", "entries")
            items, owners, pages, entries = (here[name] for name in names)
            self._sides.fill(items, owners, pages, entries, batch.segments, item_tokens=ITEM_TOKENS)
        if tables.room.num_affine_modules and self._affine is not None:
            own = here["affine_items"], here["affine_pages"], here["affine_entries"]
            self._affine.fill(*own, batch.segments, ITEM_TOKENS)
        tables.send()


def _affine_of(tables: FixedTables) -> AffineStep | None:
    if not tables.room.num_affine_modules:
        return None
    names = ("affine_items", "affine_pages", "affine_entries")
    return AffineStep.of_tables(*(Given(tables.tensor(name)) for name in names))


def _num_items(segments: Sequence[Segment]) -> int:
    return sum(-(-(one.end - one.begin) // ITEM_TOKENS) for one in segments)
