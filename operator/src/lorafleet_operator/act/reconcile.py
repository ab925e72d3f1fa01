"""One pass over one base model: collect, place, diff, execute, summarise. Level-triggered: it may run at any time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

from lorafleet_contract.admin import Residency
from lorafleet_contract.names import FINALIZER
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterCounts, AdapterStatus, BaseCapacity, BaseModelResource
from lorafleet_operator import metrics
from lorafleet_operator.act import events
from lorafleet_operator.act.apply import Applier
from lorafleet_operator.act.execute import Executor
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.act.queue import WorkQueue
from lorafleet_operator.act.resolve import Resolver
from lorafleet_operator.act.status_writer import StatusWriter
from lorafleet_operator.cluster.collect import snapshot_of
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.store import Store
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.base_status import BaseEvidence, base_status, capacity_of, counts_of
from lorafleet_operator.decide.conditions import READY, condition_of
from lorafleet_operator.decide.deferral import WAIT_SECONDS, Deferrals
from lorafleet_operator.decide.diff import PodChange
from lorafleet_operator.decide.first_catalogue import LOOK_SECONDS, FirstCatalogues
from lorafleet_operator.decide.intent import resolve_key
from lorafleet_operator.decide.objects import admin_token
from lorafleet_operator.decide.plan import Plan, changes_of, next_leave, plan_of, released, resolvers_of
from lorafleet_operator.decide.views import BaseKey, BrokenResource, ObservedPod, Snapshot
from lorafleet_operator.errors import KubeError

logger = logging.getLogger(__name__)
MAX_PARALLEL_WRITES: Final = 8
ROLLING_LOOK_SECONDS: Final = 2.0
"""A Deployment tells its status a little after its pods have changed."""


class NotAllDone(Exception):
    """A pod or the API server did not take something; the pass is to be repeated."""


class Reconciler:
    """Passes over base models."""

    def __init__(
        self,
        *,
        key: bytes,
        lease: Lease,
        store: Store,
        queue: WorkQueue[BaseKey],
        applier: Applier,
        executor: Executor,
        resolver: Resolver,
        watches: PodWatches,
        writer: StatusWriter,
    ) -> None:
        self._key = key
        self._lease = lease
        self._store = store
        self._queue = queue
        self._applier = applier
        self._executor = executor
        self._resolver = resolver
        self._watches = watches
        self._writer = writer
        self._retry_due: set[BaseKey] = set()
        self._first_catalogues = FirstCatalogues()
        self._deferrals = Deferrals()

    def retry_failures(self, keys: Iterable[BaseKey]) -> None:
        """At the next pass over each of these bases, let pods retry what failed for a retryable reason."""
        self._retry_due.update(keys)

    async def reconcile(self, key: BaseKey) -> None:
        """Bring one base and its adapters closer to what their specs say.

        Raises:
            KubeError: the API server did not answer as it should.
            NotAllDone: a pod did not take what it was told.
        """
        snapshot = snapshot_of(self._store, key, events.now())
        await _together(self._tell_broken(broken) for broken in snapshot.broken)
        if snapshot.base is None:
            await self._without_base(snapshot)
        else:
            await self._with_base(snapshot, snapshot.base)

    async def _tell_broken(self, broken: BrokenResource) -> None:
        if broken.meta.deletion_timestamp is None:
            await self._writer.broken(broken, Reason.INVALID_SPEC)
        elif FINALIZER in broken.meta.finalizers:
            # what pods know of it has no adapter any more, and leaves them like that
            await self._writer.release(broken.meta)

    async def _without_base(self, snapshot: Snapshot) -> None:
        self._watches.sync(snapshot.key, (), "")
        self._resolver.want(snapshot.key, (), (), "")
        plan = plan_of(snapshot, (), {})
        statuses = await self._tell_adapters(snapshot.key, plan, ())
        await self._release(plan, (), None)
        metrics.count_adapters(snapshot.key, counts_of(statuses))

    async def _with_base(self, snapshot: Snapshot, base: BaseModelResource) -> None:
        deployment, problem = (None, None) if base.spec.suspend else await self._applier.ensure(base)
        token = admin_token(self._key, base.metadata.uid)
        self._watches.sync(snapshot.key, snapshot.pods, token)
        pods = await self._executor.observe(snapshot.pods, token)
        await self._raise_fence(pods)
        plan = plan_of(snapshot, pods, self._resolver.answers())
        self._resolve(snapshot, plan, pods, token)
        await self._hold(plan)
        changes = changes_of(
            plan, snapshot, pods, fence=self._lease.fence, retry_failed=snapshot.key in self._retry_due
        )
        self._retry_due.discard(snapshot.key)
        done = await self._execute(snapshot.key, changes, token)
        statuses = await self._tell_adapters(snapshot.key, plan, pods)
        facts = BaseEvidence(deployment, problem, snapshot.pods, snapshot.claims.get(base.served_name))
        await self._tell_base(base, facts, capacity_of(plan, pods), counts_of(statuses))
        await self._release(plan, pods, base)
        if (delay := next_leave(plan, pods, snapshot.now)) is not None:
            self._queue.add_after(snapshot.key, delay + 0.05)
        if not done:
            raise NotAllDone

    async def _raise_fence(self, pods: Sequence[ObservedPod]) -> None:
        highest = max((pod.state.fence for pod in pods if pod.state is not None), default=0)
        if highest > self._lease.fence:
            await self._lease.raise_fence(highest)

    def _resolve(self, snapshot: Snapshot, plan: Plan, pods: Sequence[ObservedPod], token: str) -> None:
        keys = [resolve_key(intent.adapter) for intent in plan.intents if intent.needs_resolving]
        ips = [pod.pod.ip for pod in resolvers_of(pods) if pod.pod.ip is not None]
        self._resolver.want(snapshot.key, keys, ips, token)

    async def _hold(self, plan: Plan) -> None:
        """Finalizers first: what a pod is told, somebody has to take back."""
        unheld = [
            intent.adapter.metadata
            for intent in plan.intents
            if intent.artifacts and FINALIZER not in intent.adapter.metadata.finalizers
        ]
        await _together(self._writer.hold(adapter) for adapter in unheld)

    async def _execute(self, key: BaseKey, changes: Sequence[PodChange], token: str) -> bool:
        is_resolving = self._resolver.num_running(key) > 0
        due = self._first_catalogues.due(key, changes, is_resolving=is_resolving, now=time.monotonic())
        if len(due) < len(changes):
            self._queue.add_after(key, LOOK_SECONDS)
        if not due:
            return True
        if not self._lease.is_held:
            return False
        metrics.MOVES.inc(_num_moves(due))
        done = await self._executor.execute(due, token, fence=self._lease.fence)
        metrics.POD_WRITES.labels(result="ok" if done else "failed").inc(len(due))
        return done

    async def _tell_adapters(self, key: BaseKey, plan: Plan, pods: Sequence[ObservedPod]) -> list[AdapterStatus]:
        now = events.now()  # not that of the snapshot: the old revision's grace begins when the new one is named
        statuses = [adapter_status(lineup, pods, plan.placement, now=now) for lineup in plan.lineups]
        pairs = zip((intent.adapter for intent in plan.intents), statuses, strict=True)
        changed = [(adapter, status) for adapter, status in pairs if status != adapter.status]
        due = self._deferrals.due(key, changed, now=time.monotonic())
        if len(due) < len(changed):
            self._queue.add_after(key, WAIT_SECONDS)
        await _together(self._writer.adapter(adapter, status) for adapter, status in due)
        return statuses

    async def _tell_base(
        self, base: BaseModelResource, facts: BaseEvidence, capacity: BaseCapacity, counts: AdapterCounts
    ) -> None:
        status = base_status(base, facts, capacity=capacity, adapters=counts, now=events.now())
        if status != base.status:
            await self._writer.base(base, status)
        metrics.count_adapters((base.metadata.namespace, base.metadata.name), counts)
        ready = condition_of(status.conditions, READY)
        if ready is not None and ready.reason == Reason.ROLLING_OUT:
            self._queue.add_after((base.metadata.namespace, base.metadata.name), ROLLING_LOOK_SECONDS)

    async def _release(self, plan: Plan, pods: Sequence[ObservedPod], base: BaseModelResource | None) -> None:
        await _together(
            self._writer.release(intent.adapter.metadata)
            for intent in released(plan, pods, base)
            if FINALIZER in intent.adapter.metadata.finalizers
        )


def _num_moves(changes: Sequence[PodChange]) -> int:
    """Count entries that a pod keeps resident from now on and did not before."""
    num = 0
    for change in changes:
        before = {e.name for e in change.pod.entries if e.residency is Residency.RESIDENT}
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
