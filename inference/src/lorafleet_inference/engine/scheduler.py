"""Takes requests in, has each step planned, and takes its result in. Pure: no torch, no clock, no network.

A step that is submitted is in flight until its result comes. Others may be planned meanwhile, as if it had been computed: of a
token that is not known yet the place is, and mostly that is enough. Whatever ends a request or takes its blocks makes the
results that are still to come nothing to it. Devices compute in the order of submission, so that a block may be handed on while a
step in flight still writes to it.

Every accepted request ends in exactly one terminal event, made by `_end`, where its blocks are given back too.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import msgspec

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.activation import activation
from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.fairness import ANSWER_WEIGHT, ServiceCounters
from lorafleet_inference.engine.form import Form, FormDrafts
from lorafleet_inference.engine.messages import AdapterKey, LengthRope, Submit
from lorafleet_inference.engine.pace import StepBound
from lorafleet_inference.engine.plan import Drafted, DraftWanted, Sampled, StepItem, StepPlan, StepResult
from lorafleet_inference.engine.planner import Planner
from lorafleet_inference.engine.rope import must_restart, rope_length
from lorafleet_inference.engine.sequence import Sequence
from lorafleet_inference.engine.speculation import PATIENCE, DraftLength, RightParts, Speculator
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent
from lorafleet_inference.engine.vocabulary import Vocabulary, first_unknown

_FlightItem = tuple[StepItem, Sequence, int, list[int]]
"""An item, its sequence, and epoch and blocks of that when the step was submitted.

In a later epoch it has ended since or lost its blocks, and does not want the result. Thousands are made a second: a named tuple
would cost several times as much.
"""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step in flight."""

    items: list[_FlightItem]
    adapters: frozenset[AdapterKey]


class Scheduler:
    """Owns all sequences, from Submit to their terminal event."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batch_tokens: int,
        max_batch_requests: int,
        max_model_len: int,
        eos_token_ids: Collection[int],
        vocabulary_of: Callable[[AdapterKey | None], Vocabulary],
        length_rope: LengthRope | None = None,
        invocation_of: Callable[[AdapterKey], tuple[int, ...]] = lambda _: (),
        max_draft_tokens: int = 0,
        has_draft_model: bool = False,
    ) -> None:
        """`vocabulary_of` says which token ids requests of an adapter, or of the base, may name; `invocation_of`, from which
        tokens of a prompt on an adapter is computed. `max_draft_tokens`: of an answer in a step; 0: none are made.
        `has_draft_model`: they are handed in, and not looked up."""
        self._max_draft_tokens = max_draft_tokens
        self._right_parts = RightParts() if has_draft_model else None
        self._invocation_of = invocation_of
        self._length_rope = length_rope
        self._blocks = blocks
        self._max_model_len = max_model_len
        self._eos = frozenset(eos_token_ids)
        self._vocabulary_of = vocabulary_of
        self._counters = ServiceCounters()
        self._sequences: dict[str, Sequence] = {}
        self._num_of: Counter[AdapterKey | None] = Counter()
        self._flights: deque[_Flight] = deque()
        self._planner = Planner(
            blocks,
            self._counters,
            max_batch_tokens=max_batch_tokens,
            max_batch_requests=max_batch_requests,
            max_model_len=max_model_len,
        )
        self._num_arrived = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._planner.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that do not."""
        return len(self._sequences) - len(self._planner.running)

    @property
    def num_requests(self) -> Mapping[AdapterKey | None, int]:
        """Sequences that wait or run by adapter, of adapters that have some; a live view."""
        return self._num_of

    def running_adapters(self) -> set[AdapterKey]:
        """Adapters whose weights the running sequences need, or a step in flight."""
        running = {adapter for adapter in self._planner.running.adapters if adapter is not None}
        return running.union(*(flight.adapters for flight in self._flights))

    def computing_adapters(self) -> set[AdapterKey]:
        """Those of them with a sequence that computes what has not been computed before."""
        running = self._planner.running
        return {one.adapter for one in running if one.adapter is not None and one.num_computed >= one.num_charged}

    def set_back(self, adapter: AdapterKey) -> int:
        """Let the running sequences of an adapter wait, between two steps; return how many."""
        return self._planner.set_back(adapter)

    def waiting_adapters(self) -> list[AdapterKey]:
        """Adapters with waiting sequences, the least served first."""
        return self._planner.waiting_adapters()

    def has_work(self, adapter: AdapterKey) -> bool:
        """Whether a sequence of the adapter waits or runs, or a step in flight computes it."""
        if adapter in self._planner.running.adapters or self._planner.waiting.of(adapter):
            return True
        return any(adapter in flight.adapters for flight in self._flights)

    def service(self, adapter: AdapterKey) -> float:
        """Return the adapter's virtual counter: the higher, the more it has been served."""
        return self._counters.of(adapter)

    def submit(self, request: Submit, form: Form | None = None) -> TokenEvent | None:
        """Accept a request, whose answer has to match `form`, or return the terminal event that refuses it."""
        if request.request_id in self._sequences:
            return TokenEvent(request.request_id, finish=FinishReason.ERROR, error="a request of this id is running")
        refusal = self._refusal(request)
        if refusal is not None:
            code, message = refusal
            return TokenEvent(request.request_id, finish=FinishReason.ERROR, error=message, code=code)
        invocation = () if request.adapter is None else self._invocation_of(request.adapter)
        sequence = Sequence(request, self._num_arrived, list(request.prompt_token_ids), form)
        sequence.adapter_from = activation(request.prompt_token_ids, invocation)
        sequence.rope_length = rope_length(self._length_rope, len(sequence.token_ids))
        sequence.known_from = self._known_from(sequence)
        most = request.sampling.max_draft_tokens
        most = self._max_draft_tokens if most is None else min(most, self._max_draft_tokens)
        if most and not request.sampling.uses_history and self._length_rope is None:
            sequence.drafts = self._drafts(sequence.adapter, most)
            if form is not None:
                sequence.form_drafts = FormDrafts(most, form, self._vocabulary_of(request.adapter).num_inputs)
        self._num_arrived += 1
        self._sequences[request.request_id] = sequence
        self._num_of[sequence.adapter] += 1
        self._planner.waiting.add(sequence)
        return None

    def cancel(self, request_id: str) -> TokenEvent | None:
        """End a request between two steps; None if it is unknown or has ended."""
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._end(sequence, FinishReason.CANCELLED)

    def cancel_all(self) -> list[TokenEvent]:
        """End every request."""
        return [self._end(sequence, FinishReason.CANCELLED) for sequence in list(self._sequences.values())]

    def fail_flights(self, error: str) -> list[TokenEvent]:
        """End the requests of the steps in flight, whose results never come, with an error."""
        items = [one for flight in self._flights for one in flight.items]
        self._flights.clear()
        return [
            self._end(sequence, FinishReason.ERROR, error=error)
            for _, sequence, epoch, _ in items
            if epoch == sequence.epoch
        ]

    def fail_adapter(self, adapter: AdapterKey, reason: Reason, message: str) -> list[TokenEvent]:
        """End the waiting requests of an adapter that could not be loaded."""
        return [
            self._end(sequence, FinishReason.ERROR, error=message, reason=reason)
            for sequence in self._planner.waiting.of(adapter)
        ]

    def forget(self, adapter: AdapterKey) -> None:
        """An adapter is gone."""
        self._counters.forget(adapter)

    def plan(
        self,
        on_device: Collection[AdapterKey],
        held: Collection[AdapterKey] = (),
        bound: StepBound | None = None,
        drafted: Mapping[str, Drafted] | None = None,
    ) -> StepPlan:
        """Choose the next step.

        `on_device`: adapters that can be computed; requests of others wait without holding anyone back. `held`: adapters
        of which nothing new is started, so that they can make room. `bound`: how many tokens a step may have; without it, or
        within it, it has at most `max_batch_tokens`. `drafted`: by request, what the draft model has proposed.
        """
        return self._planner.plan(on_device, held, bound, drafted or {})

    def may_draft(self, bound: StepBound | None, round_seconds: float = 0.0) -> bool:
        """Whether the next step would have draft tokens if it were planned when all results are known, by what is known now.

        `round_seconds`: what the draft model takes to propose a token for each answer.
        """
        return self._planner.drafts.may_draft(bound, round_seconds)

    def drafts_wanted(self, bound: StepBound | None, round_seconds: float) -> list[DraftWanted]:
        """Return what the draft model should propose for the next step; nothing is in flight."""
        return self._planner.drafts.wanted(bound, round_seconds)

    def advance(self, plan: StepPlan) -> None:
        """Take it that a step is in flight from now on; its result comes by `resolve`, after those of earlier ones."""
        items = []
        for item in plan.items:
            sequence = self._sequences[item.request_id]
            end = sequence.num_computed = item.start + item.num_tokens
            if item.samples and end + 1 < sequence.known_from:
                sequence.num_ahead += 1
            items.append((item, sequence, sequence.epoch, sequence.blocks))
        self._flights.append(_Flight(items, plan.adapters))

    def resolve(self, result: StepResult) -> list[TokenEvent]:
        """Take in what the oldest step in flight computed; return the events of new tokens and of requests that ended.

        A request that failed or whose logits are not finite ends. No block that it was to compute in this step is found any
        more, and who shared one already starts over.
        """
        events: list[TokenEvent] = []
        flight = self._flights.popleft()
        bad = result.failed.keys() | result.not_finite
        if bad:
            self._start_over(flight, bad)
        for item, sequence, epoch, _ in flight.items:
            if epoch != sequence.epoch:
                continue
            if bad and item.request_id in bad:
                events.append(self._end_bad(sequence, result))
                continue
            if item.num_score:
                # after a preemption all is computed and scored again
                sequence.scored[item.start :] = result.scored[item.request_id]
            if item.request_id in result.pooled:
                sequence.pool(item.start, result.pooled[item.request_id])
            if item.draft_token_ids:
                events += self._append_drafted(item, sequence, result)
            elif item.samples:
                events.append(self._append(sequence, result.sampled[item.request_id]))
        return events

    def _append_drafted(self, item: StepItem, sequence: Sequence, result: StepResult) -> list[TokenEvent]:
        """Take in what a step with draft tokens chose; the KV of wrong ones is overwritten by the steps to come."""
        chosen = (result.sampled[item.request_id], *result.further.get(item.request_id, ()))
        num_draft, num_right = len(item.draft_token_ids), len(chosen) - 1
        sequence.num_computed = item.start + len(chosen)
        self._counters.charge(sequence.adapter, num_right, ANSWER_WEIGHT)
        sequence.num_charged = max(sequence.num_charged, sequence.num_computed)
        if sequence.proposed is not None:
            drafts, num_proposed = sequence.proposed
            drafts.told(num_proposed, num_right, len(sequence.token_ids))
            # what a form has cut is no fault of the draft model
            if self._right_parts is not None and sequence.form_drafts is None:
                self._right_parts.told(sequence.adapter, num_proposed, num_right)
        events: list[TokenEvent] = []
        for sampled in chosen:
            events.append(self._append(sequence, sampled))
            if events[-1].finish is not None:
                break
        first = msgspec.structs.replace(events[0], num_draft_tokens=num_draft, num_accepted_tokens=num_right)
        return [first, *events[1:]]

    def _drafts(self, adapter: AdapterKey | None, most: int) -> DraftLength:
        if self._right_parts is None:
            return Speculator(most)  # what is found in one answer tells nothing of the next
        return DraftLength(most, patience=PATIENCE, right_part=self._right_parts.begin(adapter))

    def _refusal(self, request: Submit) -> tuple[ErrorCode, str] | None:
        """Return why a request can never be computed here, None if it can."""
        num_prompt = len(request.prompt_token_ids)
        if num_prompt == 0 or request.sampling.max_tokens < 0:
            return ErrorCode.INVALID_VALUE, "a request needs at least one prompt token, and no less than none to answer"
        if num_prompt + min(request.sampling.max_tokens, 1) > self._max_model_len:
            message = f"the prompt has {num_prompt} tokens and the context {self._max_model_len}"
            return ErrorCode.CONTEXT_LENGTH_EXCEEDED, message
        vocabulary = self._vocabulary_of(request.adapter)
        unknown = first_unknown(request.prompt_token_ids, request.sampling, vocabulary)
        if unknown is not None:
            return ErrorCode.INVALID_VALUE, unknown.message
        # the last token of an answer is never computed
        num_tokens = max(num_prompt, min(num_prompt + request.sampling.max_tokens, self._max_model_len) - 1)
        if self._blocks.blocks_for(num_tokens) > self._blocks.num_blocks:
            most = self._blocks.num_blocks * self._blocks.block_tokens
            message = f"prompt and answer of {num_tokens + 1} tokens never fit the KV cache of {most} tokens"
            return ErrorCode.CONTEXT_LENGTH_EXCEEDED, message
        return None

    def _known_from(self, sequence: Sequence) -> int:
        """Return from how many tokens on the newest one ends it, or has all computed again."""
        num_prompt, max_tokens = len(sequence.request.prompt_token_ids), sequence.request.sampling.max_tokens
        num_most = min(num_prompt + max_tokens, self._max_model_len)
        rope = self._length_rope
        if rope is not None and must_restart(rope, sequence.rope_length, rope.limit + 1):
            return min(num_most, rope.limit + 1)
        return num_most

    def _start_over(self, flight: _Flight, bad: Collection[str]) -> None:
        """Take back what the `bad` requests of a step did not compute, and set back who shares it.

        What those computed in the step themselves, or in later ones that are in flight, was made from it, so it is taken back
        too. Items come in the order in which they were planned: nobody shares a block of a later one.
        """
        size = self._blocks.block_tokens
        lost: set[int] = set()
        lost_runs: set[int] = set()
        """By the identity of their lists of blocks."""
        shares: list[tuple[Sequence, int]] = []
        for each in (flight, *self._flights):
            for item, sequence, epoch, blocks in each.items:
                first, last = item.start // size, item.end // size
                if id(blocks) not in lost_runs:
                    if not lost.isdisjoint(blocks[:first]):
                        shares.append((sequence, epoch))
                    elif each is not flight or item.request_id not in bad:
                        continue
                lost_runs.add(id(blocks))
                lost.update(blocks[first:last])
        for block in lost:
            self._planner.take_back(block)
        for sequence, epoch in shares:
            if epoch == sequence.epoch:
                self._planner.start_over(sequence)

    def _append(self, sequence: Sequence, sampled: Sampled) -> TokenEvent:
        sampling = sequence.request.sampling
        if sampling.max_tokens == 0:
            wants_embedding = sequence.request.pooling is not None
            return self._end(sequence, FinishReason.STOP if wants_embedding else FinishReason.LENGTH)
        token_id = sampled.token_id
        is_end = not sampling.ignore_eos and (token_id in self._eos or token_id in sampling.eos_token_ids)
        if is_end or token_id in sampling.stop_token_ids:
            shown = sampled if sampling.show_end else None
            return self._end(sequence, FinishReason.STOP, sampled=shown, with_end=shown is not None)
        sequence.token_ids.append(token_id)
        if sequence.num_ahead:
            sequence.num_ahead -= 1
        if sequence.form is not None and not sequence.form.accept(token_id):
            problem = sequence.form.problem
            if problem is not None:
                message = f"the grammar of this request cannot be followed any more: {problem}"
                return self._end(sequence, FinishReason.ERROR, error=message, code=ErrorCode.INVALID_VALUE)
            return self._end(sequence, FinishReason.STOP, sampled=sampled)
        if sequence.num_answer >= sampling.max_tokens or len(sequence.token_ids) >= self._max_model_len:
            return self._end(sequence, FinishReason.LENGTH, sampled=sampled)
        num_tokens = len(sequence.token_ids)
        if must_restart(self._length_rope, sequence.rope_length, num_tokens):
            self._planner.restart(sequence, rope_length(self._length_rope, num_tokens))
            sequence.known_from = self._known_from(sequence)
        elif sequence.num_computed >= num_tokens:  # a step in flight computes it
            self._planner.publish(sequence, num_tokens)
        return sequence.event(sampled)

    def _end_bad(self, sequence: Sequence, result: StepResult) -> TokenEvent:
        if sequence.request_id in result.failed:
            return self._end(sequence, FinishReason.ERROR, error=result.failed[sequence.request_id])
        whose = "the base model" if sequence.adapter is None else f"the adapter {sequence.adapter.name}"
        num_tokens = len(sequence.token_ids)
        message = f"the logits of {whose} are not finite (NaN or infinity) within the first {num_tokens} tokens of this request"
        return self._end(sequence, FinishReason.ERROR, error=message, code=ErrorCode.NOT_FINITE)

    def _end(
        self,
        sequence: Sequence,
        finish: FinishReason,
        *,
        sampled: Sampled | None = None,
        error: str | None = None,
        reason: Reason | None = None,
        code: ErrorCode | None = None,
        with_end: bool = False,
    ) -> TokenEvent:
        """The one place where a request ends: what it holds is given back, its terminal event is made."""
        self._planner.leave(sequence)
        del self._sequences[sequence.request_id]
        self._num_of[sequence.adapter] -= 1
        if not self._num_of[sequence.adapter]:
            del self._num_of[sequence.adapter]
        return sequence.event(sampled, finish, error, reason, code, with_end=with_end)
