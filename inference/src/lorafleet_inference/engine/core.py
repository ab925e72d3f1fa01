"""The engine: one thread that drains messages, plans a step, submits it, collects the one before and publishes what came."""

import logging
import queue
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.adapter_loads import AdapterLoads
from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.drafting import Drafter, DraftRunner
from lorafleet_inference.engine.grammars import Grammars, GrammarTokenizer
from lorafleet_inference.engine.load_outcome import Outcome
from lorafleet_inference.engine.load_thread import AdapterDevice
from lorafleet_inference.engine.messages import (
    AdapterStatus,
    Backend,
    Cancel,
    EngineBudgets,
    EngineReady,
    EngineStats,
    FromEngine,
    ModelFacts,
    Ping,
    Pong,
    RegisterAdapter,
    ReleaseAdapter,
    Shutdown,
    Submit,
    ToEngine,
    Tokens,
)
from lorafleet_inference.engine.pace import StepBound
from lorafleet_inference.engine.plan import Drafted, SamplingState, StepPlan, TokenMask
from lorafleet_inference.engine.request_clocks import RequestClocks
from lorafleet_inference.engine.residency import Residency
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.step_counts import StepCounts
from lorafleet_inference.engine.step_times import StepTimes
from lorafleet_inference.engine.steps import Executor, StepFailed, Steps
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent
from lorafleet_inference.engine.vocabulary import vocabulary_of

logger = logging.getLogger(__name__)
STATS_SECONDS = 0.5
Posted = Callable[[], Outcome]
Inbox = queue.SimpleQueue[ToEngine | Posted]
"""Messages of the API process, and finished jobs of the loader thread."""


class Runner(AdapterDevice[Any], Executor, Protocol):
    """What computes: the model runner, seen from here."""

    facts: ModelFacts
    budgets: EngineBudgets

    @property
    def backend(self) -> Backend:
        """How steps are computed."""

    @property
    def num_replayed_steps(self) -> int:
        """Steps so far that were computed by a graph."""


class _Choices(SamplingState):
    """What choosing the tokens of each request needs."""

    def __init__(self, grammars: Grammars) -> None:
        self.grammars = grammars

    def end(self, request_id: str) -> None:
        self.grammars.forget(request_id)

    def begin(self, drafts: Mapping[str, Drafted]) -> None:
        self.grammars.begin_step(drafts)

    def mask(self, request_id: str, num_drafted: int = 0) -> TokenMask | None:
        return self.grammars.mask(request_id, num_drafted)


class Engine:
    """Owns scheduler, residency and counters; `runner` computes, `send` hands messages to the API process."""

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        inspect: Callable[[Path], AdapterPlan],
        send: Callable[[FromEngine], None],
        inbox: Inbox,
        *,
        grammar_tokenizer: GrammarTokenizer | None = None,
        draft_runner: DraftRunner | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `grammar_tokenizer`, requests with a grammar are refused. `draft_runner`: of the model that proposes draft tokens;
        without, they are looked up. `now`: seconds of any clock."""
        self._now = now
        budgets, facts = runner.budgets, runner.facts
        self._inbox = inbox
        self._runner = runner
        self._send = send
        self._blocks = BlockManager(
            budgets.num_kv_blocks, budgets.kv_block_tokens, prefix_caching=config.prefix_caching
        )
        self._residency = Residency(
            num_pages=budgets.total_rank_pages,
            max_resident=budgets.max_resident_adapters,
            host_bytes=budgets.host_cache_bytes,
        )
        self._loads = AdapterLoads(self._residency, runner, inspect, self._inbox.put, max_merged_rank=budgets.max_rank)
        self._scheduler = Scheduler(
            self._blocks,
            max_batch_tokens=config.max_batch_tokens,
            max_batch_requests=config.max_batch_requests,
            max_model_len=facts.max_model_len,
            eos_token_ids=facts.eos_token_ids,
            length_rope=facts.length_rope,
            vocabulary_of=lambda key: vocabulary_of(facts) if key is None else self._loads.vocabulary(key),
            invocation_of=self._loads.invocation,
            max_draft_tokens=config.speculative_tokens,
            has_draft_model=draft_runner is not None,
        )
        self._drafter: Drafter | None = None
        if draft_runner is not None:
            self._drafter = Drafter(
                draft_runner,
                vocabulary=vocabulary_of(facts),
                max_requests=config.max_batch_requests,
                prefix_caching=config.prefix_caching,
                now=now,
            )
        self._events: list[TokenEvent] = []
        self._statuses: list[AdapterStatus] = []
        self._clocks = RequestClocks(now)
        self._choices = _Choices(Grammars(grammar_tokenizer, self._post))
        self._steps = Steps(runner, self._blocks, self._choices)
        self._counts = StepCounts()
        self._times = StepTimes(1e-3 * config.target_step_ms, now)
        self._last_stats: EngineStats | None = None
        self._last_stats_time = 0.0
        self._ended = False

    def run(self) -> None:
        """Serve until Shutdown.

        Raises:
            StepFailed: the engine cannot go on; the requests of the step were ended with errors.
        """
        self._send(EngineReady(self._runner.facts, self._runner.budgets, self._runner.backend))
        is_idle = True
        while not self._ended:
            self.drain(wait=is_idle)
            collects = self._steps.num_in_flight > 0
            is_idle = not self.step().items and not collects
            self.publish()
        self._loads.close()
        self._choices.grammars.close()

    def step(self) -> StepPlan:
        """Plan and submit a step, and take in the results that are due; an empty plan means that there is nothing to compute now.

        On a device the step stays in flight: the next one is planned and submitted while it is computed. What is drafted follows
        from what the last step chose, so where there are drafts nothing stays in flight.
        """
        bound = self._times.bound(self._scheduler.num_requests)
        drafted = self._drafts(bound)
        plan = self._scheduler.plan(self._residency.on_device, self._loads.held, bound, drafted)
        for request_id in plan.first_scheduled:
            self._clocks.scheduled(request_id)
        self._counts.add(plan)
        if plan.items:
            self._submit_step(plan)
        self._collect(but=1 if plan.items else 0)
        if plan.items:
            with self._ending_where_it_cannot_go_on():
                self._steps.choose()
            if plan.has_drafts or not self._steps.may_go_on:
                self._collect()
        return plan

    def _drafts(self, bound: StepBound) -> dict[str, Drafted]:
        """Take in all results where the next step may have draft tokens, and have the draft model propose them."""
        drafter = self._drafter
        round_seconds = 0.0 if drafter is None else drafter.round_seconds
        if self._steps.num_in_flight and self._scheduler.may_draft(bound, round_seconds):
            self._collect()
        if drafter is None or self._steps.num_in_flight:
            return {}
        with self._ending_where_it_cannot_go_on():
            return drafter.propose(self._scheduler.drafts_wanted(bound, round_seconds))

    def drain(self, *, wait: bool) -> None:
        """Take in all that has come, waiting for the first if asked to, and start what loads are wanted."""
        try:
            one = self._inbox.get(block=wait, timeout=self._until_stats() if wait else None)
            while True:
                self._take(one)
                one = self._inbox.get_nowait()
        except queue.Empty:
            pass
        self._start_loads()
        self._settle(self._loads.free_released(self._scheduler.has_work))

    def _start_loads(self) -> None:
        """Start what loads are wanted; where adapters have to make way for one, it is looked for room again."""
        scheduler, preempt = self._scheduler, True
        while preempt:
            outcome = self._loads.start_loads(
                scheduler.waiting_adapters(),
                scheduler.running_adapters(),
                scheduler.service,
                computing=scheduler.computing_adapters(),
                now=self._now(),
            )
            self._settle(outcome)
            self._counts.preempted += sum(map(scheduler.set_back, outcome.preempt))
            preempt = bool(outcome.preempt)

    def publish(self) -> None:
        """Send what has happened: adapters first, so that a request never hears of one that is not told yet."""
        for status in self._statuses:
            self._send(status)
        if self._events:
            for event in self._events:
                if event.finish is not None:
                    self._choices.end(event.request_id)
                    if self._drafter is not None:
                        self._drafter.end(event.request_id)
            self._send(Tokens(tuple(self._clocks.stamp(event) for event in self._events)))
        self._statuses, self._events = [], []
        if self._now() - self._last_stats_time >= STATS_SECONDS:
            stats = self._stats()
            if stats != self._last_stats:
                self._send(stats)
                self._last_stats = stats
            self._last_stats_time = self._now()

    def _until_stats(self) -> float | None:
        """Seconds until the last change has to be told; None when it was."""
        if self._last_stats is not None and self._stats() == self._last_stats:
            return None
        return max(0.0, self._last_stats_time + STATS_SECONDS - self._now())

    def _take(self, message: ToEngine | Posted) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Cancel(request_id):
                self._cancel(request_id)
            case RegisterAdapter():
                self._settle(self._loads.register(message))
            case ReleaseAdapter(key):
                self._settle(self._loads.release(key))
            case Ping():
                self._send(Pong())
            case Shutdown():
                self._events += self._scheduler.cancel_all()
                waiting = self._choices.grammars.cancel_all()
                self._events += [TokenEvent(name, finish=FinishReason.CANCELLED) for name in waiting]
                self._ended = True
            case _:
                self._settle(message())

    def _post(self, job: Callable[[], None]) -> None:
        """Have a job done between two steps; for other threads."""

        def run() -> Outcome:
            job()
            return Outcome()

        self._inbox.put(run)

    def _cancel(self, request_id: str) -> None:
        if self._choices.grammars.cancel(request_id):
            self._events.append(TokenEvent(request_id, finish=FinishReason.CANCELLED))
        elif (event := self._scheduler.cancel(request_id)) is not None:
            self._events.append(event)

    def _submit(self, request: Submit) -> None:
        self._clocks.submitted(request.request_id)
        grammar = request.sampling.grammar
        if grammar is None:
            self._schedule(request)
            return

        def go_on(problem: str | None) -> None:
            if problem is None:
                self._schedule(request)
                return
            message = f"the form of the answer cannot be enforced: {problem}"
            code = ErrorCode.INVALID_VALUE
            self._events.append(TokenEvent(request.request_id, finish=FinishReason.ERROR, error=message, code=code))

        ends = () if request.sampling.ignore_eos else request.sampling.eos_token_ids
        ends = (*self._runner.facts.eos_token_ids, *ends)
        self._choices.grammars.compile(request.request_id, grammar, go_on, ends)

    def _schedule(self, request: Submit) -> None:
        if request.adapter is not None and not self._loads.accepts(request.adapter):
            self._events.append(
                TokenEvent(
                    request.request_id,
                    finish=FinishReason.ERROR,
                    error=f"adapter {request.adapter.name} is not known to the engine",
                    reason=Reason.NOT_FOUND,
                )
            )
            return
        if request.sampling.seed is None:
            sampling = msgspec.structs.replace(request.sampling, seed=secrets.randbits(64))
            request = msgspec.structs.replace(request, sampling=sampling)
        refused = self._scheduler.submit(request, self._choices.grammars.constraint(request.request_id))
        if refused is not None:
            self._events.append(refused)

    def _settle(self, outcome: Outcome) -> None:
        self._statuses += outcome.statuses
        for refused in outcome.refused:
            self._events += self._scheduler.fail_adapter(refused.key, refused.reason, refused.message)
        for status in outcome.statuses:
            if status.tier is None:
                self._scheduler.forget(status.key)

    def _submit_step(self, plan: StepPlan) -> None:
        for adapter in plan.adapters:
            self._residency.use(adapter)
        self._times.submitted(plan)
        self._scheduler.advance(plan)
        with self._ending_where_it_cannot_go_on():
            self._steps.submit(plan)

    def _collect(self, but: int = 0) -> None:
        """Take in the results of all steps in flight `but` the last ones."""
        while self._steps.num_in_flight > but:
            with self._ending_where_it_cannot_go_on():
                result = self._steps.collect()
            self._events += self._scheduler.resolve(result)
            self._times.collected()

    @contextmanager
    def _ending_where_it_cannot_go_on(self) -> Iterator[None]:
        try:
            yield
        except StepFailed as error:
            self._events += self._scheduler.fail_flights(str(error))
            self.publish()
            raise

    def _stats(self) -> EngineStats:
        counts = self._counts
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + self._choices.grammars.num_waiting,
            num_kv_blocks_used=self._blocks.num_used,
            num_preemptions=counts.preempted,
            num_steps=counts.steps,
            num_late_steps=self._times.num_late,
            max_step_tokens=self._times.max_tokens,
            num_prefill_tokens=counts.prefill,
            num_decode_tokens=counts.decode,
            num_prefix_queried_tokens=counts.queried,
            num_prefix_hit_tokens=counts.hit,
            num_adapter_evictions=self._residency.num_evictions,
            used_rank_pages=self._residency.num_used_pages,
            host_used_bytes=self._residency.host_used_bytes,
            step_seconds=self._times.total_seconds,
            num_replayed_steps=self._runner.num_replayed_steps,
            num_failed_steps=self._steps.num_failed,
            num_grammars=self._choices.grammars.num_compiled,
            grammar_seconds=self._choices.grammars.compile_seconds,
            running_adapters=tuple(sorted({one.name for one in self._scheduler.running_adapters()})),
            waiting_adapters=tuple(sorted({one.name for one in self._scheduler.waiting_adapters()})),
        )
