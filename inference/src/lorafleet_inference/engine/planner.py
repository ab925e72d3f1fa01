"""Chooses the tokens of a step under one budget that decode and chunked prefill share. Pure.

A sequence is waiting (holds nothing) or running (holds blocks). Decode goes first; what is left of the budget goes to
prompts, running and new ones, of the least served adapters.

Progress: a sequence that lacks a block takes it from another running one, never from the oldest, which is served first
and fits alone, because a request that could not is refused at the start. So the oldest one always comes to its end.

Fairness: an adapter that has nothing running takes the place of one that has several.
"""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.draft_planner import DraftPlanner
from lorafleet_inference.engine.fairness import ANSWER_WEIGHT, PROMPT_WEIGHT, ServiceCounters
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.pace import StepBound
from lorafleet_inference.engine.plan import Drafted, Growth, StepItem, StepPlan
from lorafleet_inference.engine.running import Place, RunningSet
from lorafleet_inference.engine.sequence import Sequence, WaitingQueues

MAX_SCORED_TOKENS = 256
"""Tokens of prompts that a step scores, of all its sequences: each takes a row of logits over the whole vocabulary."""


def num_running(max_requests: int, max_tokens: int) -> int:
    """Return how many sequences run at the same time, at most: decode leaves room for prompts."""
    return min(max_requests, max(1, max_tokens // 2))


@dataclass(slots=True)
class _Draft:
    """A step in the making."""

    room: int
    """Tokens of the budget that are left."""
    bound: StepBound | None
    busy_room: int
    """Of these, for prompts of adapters that are busy by the bound."""
    num_decoding: int = 0
    """Sequences of which one token is left to compute."""
    draft_room: int = 0
    """Draft tokens that are left: each takes a row of logits, as a request does, and memory is there for those of all requests."""
    room_to_score: int = MAX_SCORED_TOKENS
    """Rows of logits for scored tokens that are left."""
    items: dict[str, StepItem] = field(default_factory=dict)
    proposed: Mapping[str, Drafted] = field(default_factory=dict)
    """By a draft model."""
    adapters: set[AdapterKey] = field(default_factory=set)
    started: list[Sequence] = field(default_factory=list)
    grown: list[Growth] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)

    def room_for(self, sequence: Sequence) -> int:
        """Return for how many tokens of its prompt there is room."""
        is_busy = self.bound is not None and self.bound.is_busy(sequence.adapter)
        return min(self.room, self.busy_room) if is_busy else self.room

    def takes(self, sequence: Sequence) -> bool:
        """Whether there is room for at least one token of its prompt."""
        return self.room_for(sequence) > 0 and (self.room_to_score > 0 or not sequence.num_to_score())


class Planner:
    """Owns who waits, who runs, and on which blocks.

    At most `max_batch_requests` run, and no more than half of `max_batch_tokens`, so that decode leaves room for prompts.
    """

    def __init__(
        self,
        blocks: BlockManager,
        counters: ServiceCounters,
        *,
        max_batch_tokens: int,
        max_batch_requests: int,
        max_model_len: int,
    ) -> None:
        self._blocks = blocks
        self._counters = counters
        self._max_batch_tokens = max_batch_tokens
        self._max_running = num_running(max_batch_requests, max_batch_tokens)
        self.running = RunningSet(counters)
        self.waiting = WaitingQueues()
        self.drafts = DraftPlanner(
            blocks,
            self.running,
            max_step_drafts=min(self._max_running, max_batch_tokens),
            max_model_len=max_model_len,
        )
        self._restarted: list[str] = []
        """Set back by `restart` since the last plan."""
        self._gone: list[str] = []
        """Have not run any more since the last step."""

    def waiting_adapters(self) -> list[AdapterKey]:
        """Adapters with waiting sequences, in the order in which they would start."""
        return [adapter for adapter in sorted(self.waiting, key=self._turn) if adapter is not None]

    def plan(
        self,
        on_device: Collection[AdapterKey],
        held: Collection[AdapterKey],
        bound: StepBound | None,
        drafted: Mapping[str, Drafted],
    ) -> StepPlan:
        """Choose the next step, as `Scheduler.plan` says."""
        room = busy_room = self._max_batch_tokens
        num_decoding = self.running.num_decoding
        if bound is not None:
            room = min(room, num_decoding + bound.num_prompt_tokens(num_decoding))
            busy_room = bound.num_busy_tokens(num_decoding)
        draft = _Draft(
            room, bound, busy_room, num_decoding, draft_room=self._max_running - num_decoding, proposed=drafted
        )
        able = {one for one in self.waiting if one is None or (one in on_device and one not in held)}
        contending = able.union(self.running.adapters)
        self._claim_places(draft, able)
        self._decode(draft)
        self._fill(draft, able)
        self._counters.advance(contending)
        first = [sequence for sequence in draft.started if sequence.num_cached is None]
        for sequence in first:
            sequence.num_cached = sequence.num_computed
        restarted, self._restarted = self._restarted, []
        hits = (draft.items[sequence.request_id].start for sequence in draft.started)
        gone: list[str] = []
        if draft.items:  # an empty plan tells nobody anything
            gone, self._gone = self._gone, []
        return StepPlan(
            items=tuple(draft.items.values()),
            gone=tuple(gone),
            new=tuple(sequence.new() for sequence in draft.started),
            grown=tuple(draft.grown),
            adapters=frozenset(draft.adapters),
            first_scheduled=tuple(sequence.request_id for sequence in first),
            preempted=(*restarted, *draft.preempted),
            max_tokens=room,
            num_queried_tokens=sum(len(sequence.token_ids) for sequence in draft.started),
            num_hit_tokens=sum(hits),
        )

    def _decode(self, draft: _Draft) -> None:
        """Continue answers, and prompts of which one token is left. Most steps do nothing else, for hundreds of them."""
        block_tokens = self._blocks.block_tokens
        for sequence in self.running.decoding():
            if sequence.request_id in draft.items:
                continue  # a newcomer
            if draft.room and sequence.blocks and sequence.num_computed >= len(sequence.blocks) * block_tokens:
                self._grow(draft, sequence)
            if not draft.room or not sequence.blocks:  # it was preempted meanwhile, maybe by itself
                continue
            if sequence.num_charged > sequence.num_computed or not sequence.continues_answer:
                self._add(draft, sequence, draft.room)
                continue
            self._counters.charge(sequence.adapter, 1, ANSWER_WEIGHT)
            sequence.num_charged = sequence.num_computed + 1
            drafted = () if sequence.drafts is None else self._speculate(draft, sequence)
            draft.items[sequence.request_id] = StepItem(
                sequence.request_id, sequence.num_computed, 1 + len(drafted), True, 0, True, drafted
            )
            if sequence.adapter is not None:
                draft.adapters.add(sequence.adapter)
            draft.room -= 1 + len(drafted)
            draft.draft_room -= len(drafted)
            if not (sequence.num_computed + 1) % block_tokens:
                self.publish(sequence, sequence.num_computed + 1)

    def _speculate(self, draft: _Draft, sequence: Sequence) -> tuple[int, ...]:
        room = min(draft.room - draft.num_decoding, draft.draft_room)
        proposed = draft.proposed.get(sequence.request_id, ())
        drafted, grown = self.drafts.draft(sequence, room, draft.bound, draft.num_decoding, proposed)
        if grown is not None:
            draft.grown.append(grown)
        return drafted

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        if sequence.blocks:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def restart(self, sequence: Sequence, rope_length: int) -> None:
        """Set a running sequence back, to be computed again with rotary frequencies that follow another length."""
        sequence.rope_length = rope_length
        sequence.hashes.clear()
        self.start_over(sequence)

    def take_back(self, block: int) -> None:
        """Let nobody find a block that a step was to compute and did not."""
        self._blocks.unpublish(block)

    def start_over(self, sequence: Sequence) -> None:
        """Set a running sequence back, as its blocks hold what was not computed or what is not wanted any more."""
        self._stop(sequence)
        self.waiting.add(sequence)
        self._restarted.append(sequence.request_id)

    def set_back(self, adapter: AdapterKey) -> int:
        """Let the running sequences of an adapter wait, and return how many; they are computed again later."""
        some = [one for one in self.running if one.adapter == adapter]
        for sequence in some:
            self._stop(sequence)
            self.waiting.add(sequence)
        return len(some)

    def _turn(self, adapter: AdapterKey | None) -> Place:
        return self.running.place(self.waiting.first(adapter))

    def _claim_places(self, draft: _Draft, able: Collection[AdapterKey | None]) -> None:
        """Every adapter has a right to one running sequence: where there is no room, adapters with several make way."""
        newcomers = [adapter for adapter in able if adapter not in self.running.adapters]
        for adapter in sorted(newcomers, key=self._turn):
            sequence = self.waiting.first(adapter)
            known = self._known(sequence)
            if self._fits(sequence, known) or not draft.takes(sequence):
                continue  # it starts in its turn, or in a later step
            leaving = self._making_way(draft, sequence, known)
            if leaving is None:
                return
            for one in leaving:
                self._preempt(draft, one)
            self._start(draft, sequence, known)
            # this step's decode keeps its room
            self._add_prompt(draft, sequence, max(1, draft.room - self.running.num_decoding))

    def _making_way(self, draft: _Draft, sequence: Sequence, known: Many[int]) -> Many[Sequence] | None:
        """Return the fewest that have to leave for a sequence to start, in their order; None if all are too few."""
        candidates = [one for one in self.running.making_way() if one.request_id not in draft.items]
        num_fresh = self._blocks.blocks_for(len(sequence.token_ids)) - len(known)
        most = self._blocks.num_takable(known) + sum(len(one.blocks) for one in candidates)
        if most < num_fresh:
            return None  # without counting what they share
        takable = self._blocks.takable_after(known, (one.blocks for one in candidates))
        # no more than `_max_running` run, so there is a place as soon as one has left
        for count, num_takable in enumerate(takable, 1):
            if num_fresh <= num_takable:
                return candidates[:count]
        return None

    def _fill(self, draft: _Draft, able: Collection[AdapterKey | None]) -> None:
        """Give the room that is left to prompts, running and new ones, in their order.

        Nobody overtakes a new one that does not fit yet, and none is started in a step that had to preempt. Where an
        adapter that had nothing running starts, prompts of those that had wait: its first token is not made later by them.
        """
        had_running = frozenset(self.running.adapters)
        prompts = [
            one for one in self.running if one.request_id not in draft.items and one.num_pending and draft.takes(one)
        ]
        starting = {one for one in able if one in self.waiting} if not draft.preempted else set()
        while draft.room:
            running = min(prompts, key=self.running.place, default=None)
            waiting = self.waiting.first(min(starting, key=self._turn)) if starting else None
            if running is not None and (waiting is None or self.running.place(running) < self.running.place(waiting)):
                prompts.remove(running)
                if draft.takes(running):
                    self._add_prompt(draft, running, draft.room)
            elif waiting is None:
                break
            elif not draft.takes(waiting):
                starting.remove(waiting.adapter)
            else:
                known = self._known(waiting)
                if not self._fits(waiting, known):
                    starting.clear()
                    continue
                self._start(draft, waiting, known)
                self._add_prompt(draft, waiting, draft.room)
                if waiting.adapter not in self.waiting:
                    starting.remove(waiting.adapter)
                if waiting.adapter not in had_running:
                    starting -= had_running
                    prompts = [one for one in prompts if one.adapter not in had_running]

    def _known(self, sequence: Sequence) -> Many[int]:
        """Return the blocks of its prefix that need not be computed again; all must be where more than the KV is wanted.

        At least the last token is left out, because a step must compute something to give logits.
        """
        if sequence.needs_all_computed:
            return ()
        size = self._blocks.block_tokens
        num_full = (len(sequence.token_ids) - 1) // size
        return self._blocks.match(sequence.block_hash(index, size) for index in range(num_full))

    def _fits(self, sequence: Sequence, known: Many[int]) -> bool:
        """Whether a sequence could start beside the running ones."""
        num_fresh = self._blocks.blocks_for(len(sequence.token_ids)) - len(known)
        return len(self.running) < self._max_running and num_fresh <= self._blocks.num_takable(known)

    def _start(self, draft: _Draft, sequence: Sequence, known: Many[int]) -> None:
        self._blocks.share(known)
        fresh = self._blocks.take(self._blocks.blocks_for(len(sequence.token_ids)) - len(known))
        assert fresh is not None, "counted just now"
        sequence.blocks = [*known, *fresh]
        sequence.num_published = len(known)
        sequence.num_computed = len(known) * self._blocks.block_tokens
        self.waiting.remove(sequence)
        self.running.add(sequence)
        draft.started.append(sequence)

    def _grow(self, draft: _Draft, sequence: Sequence) -> None:
        """Give a decoding sequence the block of its next token, preempting others, at last itself."""
        while sequence.blocks:
            num_before = len(sequence.blocks)
            num_fresh = self._blocks.blocks_for(sequence.num_computed + 1) - num_before
            if num_fresh <= 0:
                break
            fresh = self._blocks.take(num_fresh)
            if fresh is not None:
                sequence.blocks += fresh
                draft.grown.append(Growth(sequence.request_id, num_before, tuple(fresh)))
                break
            self._preempt(draft, self.running.victim(sequence, draft.items))

    def _preempt(self, draft: _Draft, sequence: Sequence) -> None:
        self._stop(sequence)
        self.waiting.add(sequence)
        draft.preempted.append(sequence.request_id)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._gone.append(sequence.request_id)
        self._blocks.release(sequence.blocks)
        sequence.blocks, sequence.num_published, sequence.num_computed = [], 0, 0
        sequence.num_ahead = 0
        sequence.epoch += 1

    def _add_prompt(self, draft: _Draft, sequence: Sequence, room: int) -> None:
        before = draft.room
        self._add(draft, sequence, min(room, draft.room_for(sequence)))
        if draft.bound is not None and draft.bound.is_busy(sequence.adapter):
            draft.busy_room -= before - draft.room

    def _add(self, draft: _Draft, sequence: Sequence, room: int) -> None:
        num_tokens = min(sequence.num_pending, room)
        num_to_score = sequence.num_to_score()
        if num_to_score > draft.room_to_score:
            num_tokens = min(num_tokens, draft.room_to_score)
        draft.room_to_score -= min(num_tokens, num_to_score)
        end = sequence.num_computed + num_tokens
        self._charge(sequence, end)
        draft.items[sequence.request_id] = sequence.item(num_tokens)
        if sequence.adapter is not None:
            draft.adapters.add(sequence.adapter)
        draft.room -= num_tokens
        self.publish(sequence, end)

    def publish(self, sequence: Sequence, end: int) -> None:
        """Let others find the blocks that are full when the step has computed the tokens up to `end`, as far as these are known.

        Whoever starts in the same step can share them: a step writes all its KV before any of it is read.
        """
        size = self._blocks.block_tokens
        for index in range(sequence.num_published, min(end, len(sequence.token_ids)) // size):
            self._blocks.publish(sequence.blocks[index], sequence.block_hash(index, size))
            sequence.num_published += 1

    def _charge(self, sequence: Sequence, end: int) -> None:
        """Charge the adapter for the tokens up to a position, each once."""
        begin = max(sequence.num_charged, sequence.num_computed)
        num_prompt = max(0, min(end, len(sequence.request.prompt_token_ids)) - begin)
        self._counters.charge(sequence.adapter, num_prompt, PROMPT_WEIGHT)
        self._counters.charge(sequence.adapter, max(0, end - begin - num_prompt), ANSWER_WEIGHT)
        sequence.num_charged = max(sequence.num_charged, end)
