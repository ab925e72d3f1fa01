"""Decides what each step computes. Pure: no torch, no clock, no network.

`plan` chooses tokens under one budget that decode and chunked prefill share; `commit` takes the result in. A sequence is
waiting (holds nothing) or running (holds blocks). Every accepted request ends in exactly one terminal event, made by
`_end`, where its blocks are given back too.

Progress: a sequence that lacks a block takes it from another running one, never from the oldest, which is served first
and fits alone, because a request that could not is refused at the start. So the oldest one always comes to its end.
"""

from collections.abc import Collection

from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.block_manager import BlockManager, chain_seed, next_hash
from lorafleet_inference.engine.fairness import ANSWER_WEIGHT, PROMPT_WEIGHT, ServiceCounters
from lorafleet_inference.engine.messages import AdapterKey, FinishReason, Submit, TokenEvent
from lorafleet_inference.engine.plan import Sampled, StepItem, StepPlan, StepResult
from lorafleet_inference.engine.sequence import Sequence, WaitingQueues


class Scheduler:
    """Owns all sequences and their blocks."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batch_tokens: int,
        max_batch_requests: int,
        max_model_len: int,
        eos_token_ids: Collection[int],
    ) -> None:
        self._blocks = blocks
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_requests = max_batch_requests
        self._max_model_len = max_model_len
        self._eos = frozenset(eos_token_ids)
        self._counters = ServiceCounters()
        self._sequences: dict[str, Sequence] = {}
        self._running: list[Sequence] = []
        self._waiting = WaitingQueues()
        self._num_arrived = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that do not."""
        return len(self._sequences) - len(self._running)

    def running_adapters(self) -> set[AdapterKey]:
        """Adapters whose weights the running sequences need."""
        return {sequence.adapter for sequence in self._running if sequence.adapter is not None}

    def waiting_adapters(self) -> list[AdapterKey]:
        """Adapters with waiting sequences, the least served first."""
        return [adapter for adapter in sorted(self._waiting, key=self._turn) if adapter is not None]

    def has_work(self, adapter: AdapterKey) -> bool:
        """Whether a sequence of the adapter waits or runs."""
        return any(sequence.adapter == adapter for sequence in self._sequences.values())

    def service(self, adapter: AdapterKey) -> float:
        """Return the adapter's virtual counter: the higher, the more it has been served."""
        return self._counters.of(adapter)

    def submit(self, request: Submit) -> TokenEvent | None:
        """Accept a request, or return the terminal event that refuses it."""
        refusal = self._refusal(request)
        if refusal is not None:
            return TokenEvent(request.request_id, finish=FinishReason.ERROR, error=refusal)
        active = {sequence.adapter for sequence in self._sequences.values()}
        if request.adapter not in active:
            self._counters.activate(request.adapter, active)
        sequence = Sequence(request, self._num_arrived, list(request.prompt_token_ids))
        self._num_arrived += 1
        self._sequences[request.request_id] = sequence
        self._waiting.add(sequence)
        return None

    def cancel(self, request_id: str) -> TokenEvent | None:
        """End a request between two steps; None if it is unknown or has ended."""
        sequence = self._sequences.get(request_id)
        return None if sequence is None else self._end(sequence, FinishReason.CANCELLED)

    def cancel_all(self) -> list[TokenEvent]:
        """End every request."""
        return [self._end(sequence, FinishReason.CANCELLED) for sequence in list(self._sequences.values())]

    def fail(self, request_ids: Collection[str], error: str) -> list[TokenEvent]:
        """End requests with an error."""
        return [self._end(self._sequences[name], FinishReason.ERROR, error=error) for name in request_ids]

    def fail_adapter(self, adapter: AdapterKey, reason: Reason, message: str) -> list[TokenEvent]:
        """End the waiting requests of an adapter that could not be loaded."""
        return [
            self._end(sequence, FinishReason.ERROR, error=message, reason=reason)
            for sequence in self._waiting.of(adapter)
        ]

    def forget(self, adapter: AdapterKey) -> None:
        """An adapter is gone."""
        self._counters.forget(adapter)

    def plan(self, on_device: Collection[AdapterKey], held: Collection[AdapterKey] = ()) -> StepPlan:
        """Choose the next step.

        `on_device`: adapters that can be computed; requests of others wait without holding anyone back. `held`: adapters
        of which nothing new is started, so that they can make room. Decode goes first, then what is left of prompts,
        then new sequences; none are started in a step that had to preempt.
        """
        items: list[StepItem] = []
        preempted: list[str] = []
        started: list[Sequence] = []
        room = self._max_batch_tokens
        oldest = min(self._running, key=lambda one: one.arrival, default=None)
        order = sorted(self._running, key=lambda one: (one.num_pending > 1, one is not oldest, *self._place(one)))
        for sequence in order:
            if room and sequence.blocks:
                preempted += self._grow(sequence, min(sequence.num_pending, room), {item.request_id for item in items})
            if room and sequence.blocks:
                items.append(self._item(sequence, room))
                room -= len(items[-1].token_ids)
        while not preempted and room and len(self._running) < self._max_batch_requests:
            fresh = self._start(on_device, held)
            if fresh is None:
                break
            started.append(fresh)
            items.append(self._item(fresh, room))
            room -= len(items[-1].token_ids)
        first = [sequence for sequence in started if sequence.num_cached is None]
        for sequence in first:
            sequence.num_cached = sequence.num_computed
        return StepPlan(
            items=tuple(items),
            first_scheduled=tuple(sequence.request_id for sequence in first),
            preempted=tuple(preempted),
            num_queried_tokens=sum(len(sequence.token_ids) for sequence in started),
            num_hit_tokens=sum(sequence.num_computed for sequence in started),
        )

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Take in what a step computed; return the events of new tokens and of requests that ended."""
        events: list[TokenEvent] = []
        for item in plan.items:
            sequence = self._sequences[item.request_id]
            sequence.num_computed += len(item.token_ids)
            self._publish(sequence)
            if item.sample is not None:
                events.append(self._append(sequence, result.sampled[item.request_id]))
        return events

    def _refusal(self, request: Submit) -> str | None:
        if request.request_id in self._sequences:
            return "a request of this id is running"
        num_prompt = len(request.prompt_token_ids)
        if num_prompt == 0 or request.sampling.max_tokens < 1:
            return "a request needs at least one prompt token and one token to answer"
        if num_prompt >= self._max_model_len:
            return f"the prompt has {num_prompt} tokens and the context {self._max_model_len}"
        # the last token of an answer is never computed
        num_tokens = min(num_prompt + request.sampling.max_tokens, self._max_model_len) - 1
        if self._blocks.blocks_for(num_tokens) > self._blocks.num_blocks:
            most = self._blocks.num_blocks * self._blocks.block_tokens
            return f"prompt and answer of {num_tokens + 1} tokens never fit the KV cache of {most} tokens"
        return None

    def _turn(self, adapter: AdapterKey | None) -> tuple[float, int]:
        return self._place(self._waiting.first(adapter))

    def _place(self, sequence: Sequence) -> tuple[float, int]:
        return self._counters.of(sequence.adapter), sequence.arrival

    def _start(self, on_device: Collection[AdapterKey], held: Collection[AdapterKey]) -> Sequence | None:
        """Start the next sequence if its known tokens fit; nobody overtakes one that does not fit yet."""
        able = [one for one in self._waiting if one is None or (one in on_device and one not in held)]
        if not able:
            return None
        sequence = self._waiting.first(min(able, key=self._turn))
        known = self._blocks.match(chain_seed(sequence.adapter), sequence.token_ids)
        shared = [block for block, _ in known]
        num_fresh = self._blocks.blocks_for(len(sequence.token_ids)) - len(shared)
        if num_fresh > self._blocks.num_takable(shared):
            return None
        self._blocks.share(shared)
        fresh = self._blocks.take(num_fresh)
        assert fresh is not None, "counted just now"
        sequence.blocks = shared + fresh
        sequence.hashes = [block_hash for _, block_hash in known]
        sequence.num_computed = len(shared) * self._blocks.block_tokens
        self._waiting.remove(sequence)
        self._running.append(sequence)
        return sequence

    def _grow(self, sequence: Sequence, num_tokens: int, planned: set[str]) -> list[str]:
        """Give a sequence the blocks of its next tokens, preempting others, at last itself; return who was preempted."""
        preempted: list[str] = []
        while sequence.blocks:
            num_fresh = self._blocks.blocks_for(sequence.num_computed + num_tokens) - len(sequence.blocks)
            fresh = self._blocks.take(max(num_fresh, 0))
            if fresh is not None:
                sequence.blocks += fresh
                break
            victim = self._victim(sequence, planned)
            self._stop(victim)
            self._waiting.add(victim)
            preempted.append(victim.request_id)
        return preempted

    def _victim(self, sequence: Sequence, planned: set[str]) -> Sequence:
        """The latest of the most served adapter that has no place in this step yet, else the asking one itself."""
        oldest = min(self._running, key=lambda one: one.arrival)
        others = [one for one in self._running if one not in (sequence, oldest) and one.request_id not in planned]
        return max(others, key=self._place, default=sequence)

    def _stop(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._blocks.release(sequence.blocks)
        sequence.blocks, sequence.hashes, sequence.num_computed = [], [], 0

    def _item(self, sequence: Sequence, room: int) -> StepItem:
        num_tokens = min(sequence.num_pending, room)
        item = sequence.item(num_tokens, self._blocks.blocks_for(sequence.num_computed + num_tokens))
        self._counters.charge(sequence.adapter, num_tokens, ANSWER_WEIGHT if item.decode else PROMPT_WEIGHT)
        return item

    def _publish(self, sequence: Sequence) -> None:
        size = self._blocks.block_tokens
        for index in range(len(sequence.hashes), sequence.num_computed // size):
            previous = sequence.hashes[-1] if sequence.hashes else chain_seed(sequence.adapter)
            sequence.hashes.append(next_hash(previous, sequence.token_ids[index * size : (index + 1) * size]))
            self._blocks.publish(sequence.blocks[index], sequence.hashes[-1])

    def _append(self, sequence: Sequence, sampled: Sampled) -> TokenEvent:
        sampling = sequence.request.sampling
        if sampled.token_id in sampling.stop_token_ids or (not sampling.ignore_eos and sampled.token_id in self._eos):
            return self._end(sequence, FinishReason.STOP)
        sequence.token_ids.append(sampled.token_id)
        if sequence.num_answer >= sampling.max_tokens or len(sequence.token_ids) >= self._max_model_len:
            return self._end(sequence, FinishReason.LENGTH, sampled=sampled)
        return sequence.event(sampled)

    def _end(
        self,
        sequence: Sequence,
        finish: FinishReason,
        *,
        sampled: Sampled | None = None,
        error: str | None = None,
        reason: Reason | None = None,
    ) -> TokenEvent:
        """The one place where a request ends: what it holds is given back, its terminal event is made."""
        if sequence.blocks:
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)
        del self._sequences[sequence.request_id]
        return sequence.event(sampled, finish, error, reason)
