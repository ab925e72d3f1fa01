"""One pass over one base model: collect, place, diff, execute, summarise. Level-triggered: it may run at any time."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lorafleet_common.clock import WallClock, monotonic, utc_now, whole_seconds
from lorafleet_common.kube.errors import KubeError
from lorafleet_contract.admin import Residency
from lorafleet_contract.names import ANNOTATION_RETRY, FINALIZER
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import (
    AdapterCounts,
    AdapterResource,
    AdapterStatus,
    BaseCapacity,
    BaseModelResource,
    ReservedName,
)
from lorafleet_contract.rollout import RolloutEvidence
from lorafleet_operator import metrics
from lorafleet_operator.act.apply import Applier
from lorafleet_operator.act.autoscaling import Autoscaling
from lorafleet_operator.act.execute import Executor
from lorafleet_operator.act.fence import Fences
from lorafleet_operator.act.judging import Gateways, Judging, Measures
from lorafleet_operator.act.leaving import Leaving
from lorafleet_operator.act.operators import Operators
from lorafleet_operator.act.pod_events import PodEvents
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.act.resolve import Resolver
from lorafleet_operator.act.status_writer import StatusWriter
from lorafleet_operator.act.verify import Questions, Verifier
from lorafleet_operator.cluster.collect import snapshot_of
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.store import Store
from lorafleet_operator.decide.auto_placement import AutoPlacement
from lorafleet_operator.decide.autoscaling import Scaled, needs_pod
from lorafleet_operator.decide.base_ready import ApplyProblem, BaseEvidence, DeploymentFacts
from lorafleet_operator.decide.base_status import base_status, capacity_of, counts_of
from lorafleet_operator.decide.bookkeeping import LOOK_SECONDS as BOOKKEEPING_SECONDS
from lorafleet_operator.decide.bookkeeping import Bookkeeping, are_all_there
from lorafleet_operator.decide.canary import UNDER_WAY, is_step, weight_of
from lorafleet_operator.decide.conditions import READY, condition_of
from lorafleet_operator.decide.deferral import WAIT_SECONDS, Deferrals
from lorafleet_operator.decide.diff import PodChange, without
from lorafleet_operator.decide.first_catalogue import LOOK_SECONDS, FirstCatalogues
from lorafleet_operator.decide.intent import Intent
from lorafleet_operator.decide.memory import Publications, Retries, answering_of
from lorafleet_operator.decide.names import may_go_unread, reservations_of, served_unread
from lorafleet_operator.decide.objects import admin_token
from lorafleet_operator.decide.optional_objects import OPTIONAL_KINDS, Facts, OptionalFacts, OptionalKind
from lorafleet_operator.decide.outages import Outages
from lorafleet_operator.decide.outcome import Outcome
from lorafleet_operator.decide.pace import Rounds
from lorafleet_operator.decide.plan import (
    PassMemory,
    Plan,
    changes_of,
    next_leave,
    plan_of,
    questions_of,
    released,
    verifications_of,
)
from lorafleet_operator.decide.progress import next_deadline, next_step
from lorafleet_operator.decide.remembered import Remembered
from lorafleet_operator.decide.rollout import SWITCH_GRACE
from lorafleet_operator.decide.verify import VerifyKey
from lorafleet_operator.decide.views import BaseKey, BrokenResource, ObservedPod, Snapshot

logger = logging.getLogger(__name__)
MAX_PARALLEL_WRITES: Final = 16
NUM_WITHOUT_PAUSE: Final = 100
"""Statuses that are made before whatever else waits for the event loop has its turn."""
OTHERS_LOOK_SECONDS: Final = 10.0
"""Another operator's base is looked at again after this: that one may be gone."""
ROLLING_LOOK_SECONDS: Final = 2.0
"""A Deployment tells its status a little after its pods have changed."""
NEXT_STEP_SECONDS: Final = 0.05
ANSWER_SECONDS: Final = 0.05
"""How long a pass waits for a pod to say what a source is: one that has it at hand says so at once."""
ROUND_SLACK_SECONDS: Final = 0.001
"""A timer may be a little early."""
RESOLVE_PATIENCE_SECONDS: Final = 3.0
"""A pod that is not seen for longer has lost what it was asked to resolve: another one is asked."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What passes work with."""

    key: bytes
    lease: Lease
    store: Store
    applier: Applier
    leaving: Leaving
    autoscaling: Autoscaling
    watches: PodWatches
    executor: Executor
    resolver: Resolver
    verifier: Verifier
    fences: Fences
    operators: Operators
    writer: StatusWriter
    pod_events: PodEvents
    gateways: Gateways
    measures: Measures
    now: WallClock = utc_now

    async def close(self) -> None:
        """End what is under way on pods."""
        await self.resolver.close()
        await self.verifier.close()
        await self.autoscaling.close()
        await self.executor.close()
        await self.watches.close()
        await self.writer.close()


@dataclass(slots=True)
class _Pass:
    """What one pass has come to so far."""

    snapshot: Snapshot
    is_done: bool = True
    look_again_seconds: float | None = None
    failure: KubeError | None = None

    @property
    def key(self) -> BaseKey:
        return self.snapshot.key

    def look_again(self, seconds: float) -> None:
        """The next pass is due then at the latest."""
        self.look_again_seconds = min(seconds, self.look_again_seconds or seconds)

    async def attempt(self, step: Awaitable[None]) -> bool:
        """Take one step; the API server's refusal ends the step and not the pass. Returns whether it was taken."""
        try:
            await step
        except KubeError as error:
            if self.failure is None or not self.failure.retryable:
                self.failure = error
            return False
        return True

    def outcome(self) -> Outcome:
        """Return what the pass came to."""
        failure = self.failure if self.failure is not None and self.failure.retryable else None
        return Outcome(self.is_done and failure is None, self.look_again_seconds, failure)


class Reconciler:
    """Passes over base models."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._first_catalogues = FirstCatalogues()
        self._rounds = Rounds()
        self._deferrals = Deferrals()
        self._bookkeeping = Bookkeeping()
        self._remembered = Remembered()
        self._memories: dict[BaseKey, PassMemory] = {}
        self._publications = Publications()
        self._retries = Retries()
        self._outages = Outages()
        self._auto = AutoPlacement()
        self._weights = metrics.RolloutWeights()
        self._judging = Judging(tools.gateways, tools.measures)

    async def reconcile(self, key: BaseKey) -> Outcome:
        """Bring one base and its adapters closer to what their specs say.

        What goes wrong in one step is told in the outcome and stops no other step.
        """
        now = self._tools.now()
        snapshot = snapshot_of(self._tools.store, key, now)
        published_at = self._publications.of(key, snapshot.adapters, now)
        it = _Pass(replace(snapshot, published_at=published_at))
        await it.attempt(_together(self._tell_broken(it, broken) for broken in snapshot.broken))
        if snapshot.base is None:
            await self._without_base(it)
        elif await self._is_ours(it, snapshot.base):
            await self._with_base(it, snapshot.base)
        return it.outcome()

    async def _is_ours(self, it: _Pass, base: BaseModelResource) -> bool:
        """Take a base that nobody has; one that another operator has is left alone, with its pods and adapters."""
        is_ours = False

        async def take() -> None:
            nonlocal is_ours
            is_ours = await self._tools.operators.take(base)

        if await it.attempt(take()) and not is_ours:
            self._leave(it.key)
            it.look_again(OTHERS_LOOK_SECONDS)
        return is_ours

    async def _tell_broken(self, it: _Pass, broken: BrokenResource) -> None:
        if broken.meta.deletion_timestamp is None:
            await self._tools.writer.broken(broken, Reason.INVALID_SPEC)
        elif FINALIZER in broken.meta.finalizers:
            # what pods know of it has no adapter any more, and leaves them like that
            if may_go_unread(broken, it.snapshot.base, it.snapshot.claims, it.snapshot.now):
                await self._tools.writer.release(broken.meta)
            else:
                it.look_again(LOOK_SECONDS)

    def _leave(self, key: BaseKey) -> None:
        """Stop working on a base."""
        self._tools.watches.sync(key, (), "")
        self._tools.resolver.want(key, {}, "")
        self._tools.verifier.want(key, {}, "")
        self._forget(key)
        self._weights.tell(key, {})
        self._judging.forget(key)
        self._tools.autoscaling.forget(key)
        metrics.count_adapters(key, AdapterCounts())

    async def _without_base(self, it: _Pass) -> None:
        self._leave(it.key)
        if self._tools.operators.is_elsewhere(it.key):
            return
        self._tools.operators.forget(it.key)
        plan = plan_of(it.snapshot, (), {})
        statuses = await self._tell_adapters(it, plan, (), None)
        self._remembered.forget(it.key)
        await self._release(it, plan, (), None)
        metrics.count_adapters(it.key, counts_of(statuses))

    def _forget(self, key: BaseKey) -> None:
        """Free what is remembered of a base that is gone."""
        for memory in (self._tools.applier, self._tools.executor, self._tools.fences, self._retries):
            memory.forget(key)
        for waiting in (self._first_catalogues, self._rounds, self._deferrals, self._bookkeeping, self._remembered):
            waiting.forget(key)
        for watching in (self._outages, self._auto):
            watching.forget(key)
        self._memories.pop(key, None)

    async def _with_base(self, it: _Pass, base: BaseModelResource) -> None:
        token = admin_token(self._tools.key, base.metadata.uid)
        scaled = self._scale(it, base, token)
        if scaled is not None:
            base = base.with_replicas(scaled.status.desired_replicas)
            it.snapshot = replace(it.snapshot, base=base)
        snapshot = it.snapshot
        applied = await self._apply(it, base, token)
        optional = await self._optional(it, base) if applied is not None else {}
        self._tools.watches.sync(it.key, snapshot.pods, token)
        await self._tools.watches.first_look(snapshot.pods)
        pods = self._tools.watches.observe(snapshot.pods)
        auto = self._auto.of(snapshot, base, pods, now=monotonic())
        if (seconds := self._auto.next_window(it.key, now=monotonic())) is not None:
            it.look_again(seconds)
        memory = self._memories.setdefault(it.key, PassMemory())
        answers, verdicts = self._tools.resolver.answers(), self._tools.verifier.verdicts()
        plan = plan_of(snapshot, pods, answers, auto, verdicts, memory=memory)
        await asyncio.sleep(0)
        self._resolve(it, plan, pods, token)
        # status says that a rollout by steps has begun before pods are told of it
        may_go_on = not any(intent.needs_resolving and intent.rollout is not None for intent in plan.intents)
        if may_go_on and await self._tools.resolver.are_answered_within(it.key, ANSWER_SECONDS):
            # pods are told in this pass what was asked for in it
            plan = plan_of(snapshot, pods, self._tools.resolver.answers(), auto, verdicts, memory=memory)
        self._verify(it, plan, pods, token)
        unheld = await self._hold(it, plan)
        retried = self._retries.due(base, snapshot.adapters)
        may_write = await it.attempt(self._tools.fences.rise(it.key, pods, generation=self._tools.executor.generation))
        if may_write:
            fence = self._tools.fences.of(it.key)
            changes = changes_of(plan, snapshot, pods, fence=fence, retried=retried, memory=memory)
            await self._push(it, [without(change, unheld) for change in changes], token, fence)
        pods = self._tools.watches.observe(snapshot.pods)
        facts = applied[0] if applied is not None else None
        are_settled = (facts is None or facts.is_settled(base.spec.replicas)) and are_all_there(base, snapshot.pods)
        is_asleep = scaled is not None and scaled.is_asleep(it.snapshot.now)
        if scaled is not None and scaled.awake_until is not None and is_asleep:
            it.look_again((scaled.awake_until - it.snapshot.now).total_seconds() + 0.05)
        statuses = await self._tell_adapters(it, plan, pods, base, are_pods_settled=are_settled, is_asleep=is_asleep)
        self._tools.autoscaling.pending(it.key, sum(map(needs_pod, statuses)))
        self._weights.tell(it.key, _weights(plan, statuses))
        counts = counts_of(statuses)
        if applied is not None:
            known = await self._tools.pod_events.explained(snapshot.pods, it.key[0], snapshot.now)
            known = self._tools.watches.with_starts(known)
            evidence = BaseEvidence(*applied, known, snapshot.claims.get(base.served_name), is_asleep)
            reserved = reservations_of(
                base, plan.intents, snapshot.now, unread=served_unread(snapshot.broken, snapshot.claims)
            )
            await it.attempt(
                self._tell_base(
                    it,
                    base,
                    evidence,
                    capacity_of(plan, pods),
                    counts,
                    reserved=reserved,
                    optional=optional,
                    scaled=scaled,
                )
            )
        metrics.count_adapters(it.key, counts)
        await self._release(it, plan, pods, base)
        if (delay := next_leave(plan, pods, snapshot.now, memory if may_write else None)) is not None:
            it.look_again(delay + 0.05)

    def _scale(self, it: _Pass, base: BaseModelResource, token: str) -> Scaled | None:
        """Return how many pods autoscaling asks for; what a suspended base was told last stands."""
        if not base.spec.suspend:
            return self._tools.autoscaling.follow(base, it.snapshot.pods, token)
        self._tools.autoscaling.forget(it.key)
        status = base.status.autoscaling if base.spec.autoscaling is not None else None
        return Scaled(status) if status is not None else None

    async def _apply(
        self, it: _Pass, base: BaseModelResource, token: str
    ) -> tuple[DeploymentFacts | None, ApplyProblem | None] | None:
        """Apply the objects of a base; None when the API server did not answer as it should."""
        if base.spec.suspend:
            return None, None
        pods = self._tools.watches.observe([pod for pod in it.snapshot.pods if not pod.is_leaving])
        try:
            if self._tools.applier.is_lowering(base, len(pods)):
                await self._tools.leaving.rank(it.key, pods, token)
            return await self._tools.applier.ensure(base)
        except KubeError as error:
            it.failure = error
            return None

    async def _optional(self, it: _Pass, base: BaseModelResource) -> Facts:
        """Make what inference gateways read of a base what its spec, and the statuses of its adapters as they were read, say."""
        facts: dict[OptionalKind, OptionalFacts] = {}
        for kind in OPTIONAL_KINDS if not base.spec.suspend else ():
            try:
                facts[kind] = await self._tools.applier.ensure_optional(kind, base, it.snapshot.adapters)
            except KubeError as error:
                it.failure = error
        return facts

    def _resolve(self, it: _Pass, plan: Plan, pods: Sequence[ObservedPod], token: str) -> None:
        questions = questions_of(plan, pods)
        base, watches = it.snapshot.base, self._tools.watches
        assert base is not None
        patient = [
            pod for pod in pods if not pod.pod.is_leaving and watches.unseen_seconds(pod.uid) < RESOLVE_PATIENCE_SECONDS
        ]
        if questions and any(pod.state is None for pod in patient):
            it.look_again(RESOLVE_PATIENCE_SECONDS)
        boots = [("boot", pod.uid, pod.state.boot_id) for pod in pods if pod.state is not None]
        retry = base.metadata.annotations.get(ANNOTATION_RETRY, "")
        self._tools.resolver.want(
            it.key,
            {question: _ips(able) for question, able in questions.items()},
            token,
            alive=_ips(patient),
            occasions=[("generation", base.metadata.generation), ("retry", retry), *boots],
        )

    def _verify(self, it: _Pass, plan: Plan, pods: Sequence[ObservedPod], token: str) -> None:
        wanted: dict[VerifyKey, Questions] = {}
        for key, (intent, able) in verifications_of(plan, pods).items():
            assert intent.adapter.spec.verify is not None
            addresses = {pod.pod.ip: pod.pod.name for pod in able if pod.pod.ip is not None}
            wanted[key] = Questions(intent.adapter.spec.verify, addresses)
        self._tools.verifier.want(it.key, wanted, token)

    async def _hold(self, it: _Pass, plan: Plan) -> frozenset[str]:
        """Finalizers first: what a pod is told, somebody has to take back. Returns the names that have none."""
        unheld: set[str] = set()

        async def hold(intent: Intent) -> None:
            unheld.add(intent.name)
            await self._tools.writer.hold(intent.adapter.metadata)
            unheld.discard(intent.name)

        await it.attempt(
            _together(
                hold(intent)
                for intent in plan.intents
                if intent.artifacts and FINALIZER not in intent.adapter.metadata.finalizers
            )
        )
        return frozenset(unheld)

    async def _push(self, it: _Pass, changes: Sequence[PodChange], token: str, fence: int) -> None:
        is_resolving = self._tools.resolver.num_running(it.key) > 0
        changes = [change for change in changes if change.entries or change.removals or _is_behind(change.pod, fence)]
        due = self._first_catalogues.due(it.key, changes, is_resolving=is_resolving, now=monotonic())
        if len(due) < len(changes):
            it.look_again(LOOK_SECONDS)
        if not self._tools.lease.is_held:
            it.is_done = it.is_done and not due
            return
        paced = self._rounds.due(it.key, due, fence=fence, now=monotonic())
        if paced.wait_seconds is not None:
            it.look_again(paced.wait_seconds + ROUND_SLACK_SECONDS)
        metrics.MOVES.inc(_num_moves(paced.changes))
        pushed = await self._tools.executor.execute(it.key, paced.changes, token, fence=fence)
        metrics.POD_WRITES.labels(result="ok").inc(pushed.num_taken)
        metrics.POD_WRITES.labels(result="failed").inc(pushed.num_failed)
        it.is_done = it.is_done and not pushed.num_failed
        is_all = len(due) == len(changes) and paced.wait_seconds is None
        if is_all and not (pushed.num_failed or pushed.num_pending):
            self._retries.told(it.key)

    async def _tell_adapters(
        self,
        it: _Pass,
        plan: Plan,
        pods: Sequence[ObservedPod],
        base: BaseModelResource | None,
        *,
        are_pods_settled: bool = True,
        is_asleep: bool = False,
    ) -> list[AdapterStatus]:
        now = whole_seconds(self._tools.now())
        made = self._remembered.begin(it.key, pods, plan.placement, is_asleep=is_asleep)
        statuses = []
        windows = self._judge(it, plan) if base is not None else {}
        for number, lineup in enumerate(plan.lineups):
            if number % NUM_WITHOUT_PAUSE == 0:
                await asyncio.sleep(0)
            window = windows.get(lineup.intent.adapter.metadata.uid)
            statuses.append(made.of(lineup, now, window=window))
        if base is not None and it.snapshot.are_pods_hidden and not pods:
            return statuses  # nothing is known of its pods, and nothing is said
        if not self._tools.watches.have_been_asked(pod for pod in it.snapshot.pods if pod.is_ready):
            it.look_again(LOOK_SECONDS)  # of what is not seen yet nothing is said
            return statuses
        pairs = list(zip((intent.adapter for intent in plan.intents), statuses, strict=True))
        if (delay := next_deadline(pairs, now)) is not None:
            it.look_again(delay + 1.0)  # times of a status are whole seconds
        rollouts = ((intent.rollout, status.rollout) for intent, (_, status) in zip(plan.intents, pairs, strict=True))
        if (delay := next_step(rollouts, now)) is not None:
            it.look_again(delay + 1.0)
        changed = [(a, status) for a, status in pairs if status is not a.status and status != a.status]
        due = self._deferrals.due(it.key, changed, now=monotonic())
        if len(due) < len(changed):
            it.look_again(WAIT_SECONDS)
        told = self._bookkeeping.due(it.key, due, are_pods_settled=are_pods_settled, now=monotonic())
        if len(told) < len(due):
            it.look_again(BOOKKEEPING_SECONDS)
        word = self._outages.judge(it.key, pairs)

        async def write(adapter: AdapterResource, status: AdapterStatus) -> None:
            is_quiet = base is not None and adapter.metadata.uid in word.quiet
            if not await self._tools.writer.adapter(adapter, status, is_quiet=is_quiet):
                return
            self._publications.acknowledged(it.key, adapter.metadata.uid, status, self._tools.now())
            metrics.count_results(adapter.status, status)
            if answering_of(status) != answering_of(adapter.status):
                it.look_again(SWITCH_GRACE.total_seconds() + 0.05)
            if is_step(adapter.status.rollout, status.rollout) or status.traffic != adapter.status.traffic:
                it.look_again(NEXT_STEP_SECONDS)  # what follows is decided by the status as it was read

        await it.attempt(_together(write(adapter, status) for adapter, status in told))
        if base is not None and word.event is not None:
            self._tools.writer.tell(base, word.event)
        return statuses

    def _judge(self, it: _Pass, plan: Plan) -> Mapping[str, RolloutEvidence]:
        """Return what came of the windows of rollouts that are judged, by uid of the adapter."""
        judged = self._judging.look(it.key, plan.intents, self._tools.now())
        if judged.look_again_seconds is not None:
            it.look_again(judged.look_again_seconds + 0.05)
        return judged.windows

    async def _tell_base(
        self,
        it: _Pass,
        base: BaseModelResource,
        facts: BaseEvidence,
        capacity: BaseCapacity,
        counts: AdapterCounts,
        *,
        reserved: list[ReservedName],
        optional: Facts,
        scaled: Scaled | None,
    ) -> None:
        now = whole_seconds(self._tools.now())
        status = base_status(
            base,
            facts,
            capacity=capacity,
            adapters=counts,
            reserved=reserved,
            optional=optional,
            scaled=scaled,
            now=now,
        )
        ready = condition_of(status.conditions, READY)
        if ready is not None and ready.reason == Reason.ROLLING_OUT:
            it.look_again(ROLLING_LOOK_SECONDS)
        if status != base.status:
            await self._tools.writer.base(base, status)

    async def _release(
        self, it: _Pass, plan: Plan, pods: Sequence[ObservedPod], base: BaseModelResource | None
    ) -> None:
        # what is on its way to a pod may be what is to be let go; an answer that brings no news wakes nobody
        is_writing = self._tools.executor.is_writing(it.snapshot.pods)
        is_hidden = base is not None and it.snapshot.are_pods_hidden
        is_unseen = is_hidden or it.snapshot.unread_base is not None
        is_sure = not is_unseen and not is_writing and self._tools.watches.are_sure(it.snapshot.pods)
        if not is_sure and not is_unseen and any(intent.is_deleted for intent in plan.intents):
            it.look_again(LOOK_SECONDS)
        await it.attempt(
            _together(
                self._tools.writer.release(intent.adapter.metadata)
                for intent in released(plan, pods, base, it.snapshot.now, is_sure=is_sure)
                if FINALIZER in intent.adapter.metadata.finalizers
            )
        )


def _weights(plan: Plan, statuses: Sequence[AdapterStatus]) -> dict[str, int]:
    """Return what the new revisions get of rollouts by steps that are under way, by served name."""
    return {
        intent.name: weight_of(intent.rollout, status.rollout)
        for intent, status in zip(plan.intents, statuses, strict=True)
        if intent.rollout is not None and status.rollout is not None and status.rollout.phase in UNDER_WAY
    }


def _ips(pods: Iterable[ObservedPod]) -> list[str]:
    return [pod.pod.ip for pod in pods if pod.pod.ip is not None]


def _is_behind(pod: ObservedPod, fence: int) -> bool:
    """Whether a pod is to be taken over, even if there is nothing else to tell it."""
    return pod.state is not None and pod.state.fence < fence


def _num_moves(changes: Sequence[PodChange]) -> int:
    """Count entries that a pod keeps resident from now on and did not before."""
    num = 0
    for change in changes:
        before = change.pod.residents
        num += sum(e.residency is Residency.RESIDENT and e.name not in before for e in change.entries)
    return num


async def _together(calls: Iterable[Awaitable[None]]) -> None:
    """Await all, a few at a time; what fails does not stop the others.

    Raises:
        KubeError: the first failure that trying again may mend; one that it does not mend has been logged.
    """
    slots = asyncio.Semaphore(MAX_PARALLEL_WRITES)

    async def one(call: Awaitable[None]) -> KubeError | None:
        async with slots:
            try:
                await call
            except KubeError as error:
                return error
        return None

    failures = [error for error in await asyncio.gather(*(one(call) for call in calls)) if error is not None]
    retryable = [error for error in failures if error.retryable]
    if retryable:
        raise retryable[0]
