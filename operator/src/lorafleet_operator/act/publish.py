"""What a pass publishes: statuses of adapters and of their base, where they changed and when they are due."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from lorafleet_common.clock import monotonic, whole_seconds
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
from lorafleet_operator.act.judging import Judging
from lorafleet_operator.act.one_pass import Pass, together
from lorafleet_operator.act.tools import Tools
from lorafleet_operator.decide.autoscaling import Scaled
from lorafleet_operator.decide.base_ready import ApplyProblem, BaseEvidence, DeploymentFacts
from lorafleet_operator.decide.base_status import base_status, capacity_of
from lorafleet_operator.decide.bookkeeping import LOOK_SECONDS as BOOKKEEPING_SECONDS
from lorafleet_operator.decide.bookkeeping import Bookkeeping
from lorafleet_operator.decide.canary import UNDER_WAY, is_step, weight_of
from lorafleet_operator.decide.conditions import READY, condition_of
from lorafleet_operator.decide.deferral import WAIT_SECONDS, Deferrals
from lorafleet_operator.decide.first_catalogue import LOOK_SECONDS
from lorafleet_operator.decide.memory import Publications, answering_of
from lorafleet_operator.decide.names import reservations_of, served_unread
from lorafleet_operator.decide.optional_objects import Facts
from lorafleet_operator.decide.outages import Outages
from lorafleet_operator.decide.plan import Plan
from lorafleet_operator.decide.progress import next_deadline, next_step
from lorafleet_operator.decide.remembered import Remembered
from lorafleet_operator.decide.rollout import SWITCH_GRACE
from lorafleet_operator.decide.views import BaseKey, ObservedPod, Snapshot

NUM_WITHOUT_PAUSE: Final = 100
"""Statuses that are made before whatever else waits for the event loop has its turn."""
ROLLING_LOOK_SECONDS: Final = 2.0
"""A Deployment tells its status a little after its pods have changed."""
NEXT_STEP_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the objects of a base."""

    facts: DeploymentFacts | None = None
    """None: nothing was applied."""
    problem: ApplyProblem | None = None
    optional: Facts = field(default_factory=dict)


class Publisher:
    """Publishes statuses, over all bases; remembers what need not be made, or written, again."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._deferrals = Deferrals()
        self._bookkeeping = Bookkeeping()
        self._remembered = Remembered()
        self._publications = Publications()
        self._outages = Outages()
        self._weights = metrics.RolloutWeights()
        self._judging = Judging(tools.gateways, tools.measures)

    def published_at(self, snapshot: Snapshot, now: datetime) -> Mapping[str, datetime]:
        """Return since when the API server is seen to say which revisions of each adapter answer, by uid."""
        return self._publications.of(snapshot.key, snapshot.adapters, now)

    def forget(self, key: BaseKey) -> None:
        """A base is gone."""
        for memory in (self._deferrals, self._bookkeeping, self._remembered, self._outages):
            memory.forget(key)

    def forget_made(self, key: BaseKey) -> None:
        """Free what statuses of a base were made of."""
        self._remembered.forget(key)

    def leave(self, key: BaseKey) -> None:
        """Nothing of a base is judged any more, or told by metrics."""
        self._weights.tell(key, {})
        self._judging.forget(key)
        metrics.count_adapters(key, AdapterCounts())

    def weights(self, key: BaseKey, plan: Plan, statuses: Sequence[AdapterStatus]) -> None:
        """Tell by metrics what the new revisions get of rollouts by steps that are under way."""
        self._weights.tell(key, _weights(plan, statuses))

    async def adapters(
        self,
        it: Pass,
        plan: Plan,
        pods: Sequence[ObservedPod],
        base: BaseModelResource | None,
        *,
        are_pods_settled: bool = True,
        is_asleep: bool = False,
    ) -> list[AdapterStatus]:
        """Make the statuses of the adapters of a base, and write those that are due. Returns all of them."""
        now = whole_seconds(self._tools.now())
        statuses = await self._made(it, plan, pods, base, now=now, is_asleep=is_asleep)
        if base is not None and it.snapshot.are_pods_hidden and not pods:
            return statuses  # nothing is known of its pods, and nothing is said
        if not self._tools.watches.have_been_asked(pod for pod in it.snapshot.pods if pod.is_ready):
            it.look_again(LOOK_SECONDS)  # of what is not seen yet nothing is said
            return statuses
        pairs = list(zip((intent.adapter for intent in plan.intents), statuses, strict=True))
        _look_again_when_due(it, plan, pairs, now)
        told = self._due(it, pairs, are_pods_settled=are_pods_settled)
        word = self._outages.judge(it.key, pairs)
        quiet = word.quiet if base is not None else frozenset[str]()
        await it.attempt(
            together(
                self._write(it, adapter, status, is_quiet=adapter.metadata.uid in quiet) for adapter, status in told
            )
        )
        if base is not None and word.event is not None:
            self._tools.writer.tell(base, word.event)
        return statuses

    async def _made(
        self,
        it: Pass,
        plan: Plan,
        pods: Sequence[ObservedPod],
        base: BaseModelResource | None,
        *,
        now: datetime,
        is_asleep: bool,
    ) -> list[AdapterStatus]:
        """Return the statuses of all adapters, in the order of the plan."""
        made = self._remembered.begin(it.key, pods, plan.placement, is_asleep=is_asleep)
        statuses = []
        windows = self._judge(it, plan) if base is not None else {}
        for number, lineup in enumerate(plan.lineups):
            if number % NUM_WITHOUT_PAUSE == 0:
                await asyncio.sleep(0)
            window = windows.get(lineup.intent.adapter.metadata.uid)
            statuses.append(made.of(lineup, now, window=window))
        return statuses

    def _due(
        self, it: Pass, pairs: Sequence[tuple[AdapterResource, AdapterStatus]], *, are_pods_settled: bool
    ) -> list[tuple[AdapterResource, AdapterStatus]]:
        """Return the statuses that changed and are to be written now."""
        changed = [(a, status) for a, status in pairs if status is not a.status and status != a.status]
        due = self._deferrals.due(it.key, changed, now=monotonic())
        if len(due) < len(changed):
            it.look_again(WAIT_SECONDS)
        told = self._bookkeeping.due(it.key, due, are_pods_settled=are_pods_settled, now=monotonic())
        if len(told) < len(due):
            it.look_again(BOOKKEEPING_SECONDS)
        return told

    async def _write(self, it: Pass, adapter: AdapterResource, status: AdapterStatus, *, is_quiet: bool) -> None:
        if not await self._tools.writer.adapter(adapter, status, is_quiet=is_quiet):
            return
        self._publications.acknowledged(it.key, adapter.metadata.uid, status, self._tools.now())
        metrics.count_results(adapter.status, status)
        if answering_of(status) != answering_of(adapter.status):
            it.look_again(SWITCH_GRACE.total_seconds() + 0.05)
        if is_step(adapter.status.rollout, status.rollout) or status.traffic != adapter.status.traffic:
            it.look_again(NEXT_STEP_SECONDS)  # what follows is decided by the status as it was read

    def _judge(self, it: Pass, plan: Plan) -> Mapping[str, RolloutEvidence]:
        """Return what came of the windows of rollouts that are judged, by uid of the adapter."""
        judged = self._judging.look(it.key, plan.intents, self._tools.now())
        if judged.look_again_seconds is not None:
            it.look_again(judged.look_again_seconds + 0.05)
        return judged.windows

    async def base(
        self,
        it: Pass,
        base: BaseModelResource,
        plan: Plan,
        pods: Sequence[ObservedPod],
        counts: AdapterCounts,
        *,
        applied: Applied,
        scaled: Scaled | None,
        is_asleep: bool,
    ) -> None:
        """Make the status of a base, and write it if it changed."""
        snapshot = it.snapshot
        known, further = await self._tools.waiting_pods.explained(base, snapshot)
        known, claim = self._tools.watches.with_starts(known), snapshot.claims.get(base.served_name)
        evidence = BaseEvidence(applied.facts, applied.problem, known, claim, is_asleep, further)
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
                optional=applied.optional,
                scaled=scaled,
            )
        )

    async def _tell_base(
        self,
        it: Pass,
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


def _look_again_when_due(
    it: Pass, plan: Plan, pairs: Sequence[tuple[AdapterResource, AdapterStatus]], now: datetime
) -> None:
    """What only the time changes in statuses has its pass."""
    if (delay := next_deadline(pairs, now)) is not None:
        it.look_again(delay + 1.0)  # times of a status are whole seconds
    rollouts = ((intent.rollout, status.rollout) for intent, (_, status) in zip(plan.intents, pairs, strict=True))
    if (delay := next_step(rollouts, now)) is not None:
        it.look_again(delay + 1.0)


def _weights(plan: Plan, statuses: Sequence[AdapterStatus]) -> dict[str, int]:
    """Return what the new revisions get of rollouts by steps that are under way, by served name."""
    return {
        intent.name: weight_of(intent.rollout, status.rollout)
        for intent, status in zip(plan.intents, statuses, strict=True)
        if intent.rollout is not None and status.rollout is not None and status.rollout.phase in UNDER_WAY
    }
