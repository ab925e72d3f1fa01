"""One pass over one base model: collect, place, diff, execute, summarise. Level-triggered: it may run at any time."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

from lorafleet_contract.admin import Residency
from lorafleet_contract.names import FINALIZER
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterStatus, BaseModelResource
from lorafleet_operator import events, metrics
from lorafleet_operator.children import Children
from lorafleet_operator.collect import snapshot_of
from lorafleet_operator.conditions import READY, condition_of
from lorafleet_operator.diff import PodChange
from lorafleet_operator.errors import KubeError
from lorafleet_operator.execute import Executor
from lorafleet_operator.intent import resolve_key
from lorafleet_operator.lease import Lease
from lorafleet_operator.objects import admin_token
from lorafleet_operator.plan import Plan, changes_of, next_leave, plan_of, released
from lorafleet_operator.queue import WorkQueue
from lorafleet_operator.resolve import Resolver
from lorafleet_operator.status import StatusWriter
from lorafleet_operator.store import Store
from lorafleet_operator.summarise import adapter_status
from lorafleet_operator.summarise_base import ApplyProblem, DeploymentFacts, base_status, capacity_of, counts_of
from lorafleet_operator.views import BaseKey, ObservedPod, Snapshot
from lorafleet_operator.watch import PodWatches

logger = logging.getLogger(__name__)
MAX_PARALLEL_WRITES: Final = 8
ROLLING_LOOK_SECONDS: Final = 2.0
"""A Deployment tells its status a little after its pods have changed."""
FIRST_CATALOGUE_SECONDS: Final = 15.0
"""How long a new pod's first catalogue waits for sources that are being resolved: it is ready only with what is in it."""
HOLD_LOOK_SECONDS: Final = 0.5


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
        children: Children,
        executor: Executor,
        resolver: Resolver,
        watches: PodWatches,
        writer: StatusWriter,
    ) -> None:
        self._key = key
        self._lease = lease
        self._store = store
        self._queue = queue
        self._children = children
        self._executor = executor
        self._resolver = resolver
        self._watches = watches
        self._writer = writer
        self._retry_due: set[BaseKey] = set()
        self._first_seen: dict[tuple[str, str], float] = {}

    def retry_failures(self, keys: Iterable[BaseKey]) -> None:
        """At the next pass over each of these bases, let pods try again what failed for a passing reason."""
        self._retry_due.update(keys)

    async def reconcile(self, key: BaseKey) -> None:
        """Bring one base and its adapters closer to what their specs say.

        Raises:
            KubeError: the API server did not answer as it should.
            NotAllDone: a pod did not take what it was told.
        """
        snapshot = snapshot_of(self._store, key, events.now())
        for broken in snapshot.broken:
            await self._writer.broken(broken, Reason.INVALID_SPEC)
        if snapshot.base is None:
            await self._without_base(snapshot)
        else:
            await self._with_base(snapshot, snapshot.base)

    async def _without_base(self, snapshot: Snapshot) -> None:
        self._watches.sync(snapshot.key, (), "")
        self._resolver.keep_only(snapshot.key, ())
        plan = plan_of(snapshot, (), {})
        await self._tell_adapters(plan, (), snapshot)
        await self._release(plan, (), None)
        for state in ("desired", "ready", "failed"):
            metrics.ADAPTERS.labels(*snapshot.key, state).set(0)

    async def _with_base(self, snapshot: Snapshot, base: BaseModelResource) -> None:
        facts, problem = (None, None) if base.spec.suspend else await self._children.ensure(base)
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
        statuses = await self._tell_adapters(plan, pods, snapshot)
        await self._tell_base(base, snapshot, plan, pods, statuses, facts, problem)
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
        wanted = [intent for intent in plan.intents if intent.needs_resolving]
        self._resolver.keep_only(snapshot.key, [resolve_key(intent.adapter) for intent in wanted])
        # the newest pod's sources are those of the spec; a ready one has its engine up
        able = [pod for pod in pods if pod.is_writable]
        able.sort(key=lambda pod: (not pod.is_serving, pod.pod.name))
        for index, intent in enumerate(wanted):
            if able:
                pod = able[index % sum(p.is_serving for p in able)] if able[0].is_serving else able[index % len(able)]
                assert pod.pod.ip is not None
                self._resolver.want(resolve_key(intent.adapter), snapshot.key, pod.pod.ip, token)

    async def _hold(self, plan: Plan) -> None:
        """Finalizers first: what a pod is told, somebody has to take back."""
        unheld = [
            intent.adapter
            for intent in plan.intents
            if intent.artifacts and FINALIZER not in intent.adapter.metadata.finalizers
        ]
        await _together(self._writer.hold(adapter) for adapter in unheld)

    async def _execute(self, key: BaseKey, changes: Sequence[PodChange], token: str) -> bool:
        loop = asyncio.get_running_loop()
        now = []
        for change in changes:
            assert change.pod.state is not None
            if change.pod.state.fence == 0 and self._resolver.num_running(key):
                boot = (change.pod.uid, change.pod.state.boot_id)
                if loop.time() - self._first_seen.setdefault(boot, loop.time()) < FIRST_CATALOGUE_SECONDS:
                    self._queue.add_after(key, HOLD_LOOK_SECONDS)
                    continue
            now.append(change)
        if not now:
            return True
        if not self._lease.is_held:
            return False
        metrics.MOVES.inc(_num_moves(now))
        done = await self._executor.execute(now, token, fence=self._lease.fence)
        metrics.POD_WRITES.labels(result="ok" if done else "failed").inc(len(now))
        for change in now:
            if change.pod.state is not None:
                self._first_seen.pop((change.pod.uid, change.pod.state.boot_id), None)
        return done

    async def _tell_adapters(self, plan: Plan, pods: Sequence[ObservedPod], snapshot: Snapshot) -> list[AdapterStatus]:
        statuses = [adapter_status(lineup, pods, plan.placement, now=snapshot.now) for lineup in plan.lineups]
        await _together(
            self._writer.adapter(lineup.intent.adapter, status)
            for lineup, status in zip(plan.lineups, statuses, strict=True)
            if status != lineup.intent.adapter.status
        )
        return statuses

    async def _tell_base(
        self,
        base: BaseModelResource,
        snapshot: Snapshot,
        plan: Plan,
        pods: Sequence[ObservedPod],
        statuses: Sequence[AdapterStatus],
        facts: DeploymentFacts | None,
        problem: ApplyProblem | None,
    ) -> None:
        counts = counts_of(statuses)
        status = base_status(
            base,
            facts,
            problem,
            snapshot.pods,
            snapshot.claims.get(base.served_name),
            capacity=capacity_of(plan.budgets, pods, plan.lineups, plan.placement),
            adapters=counts,
            now=snapshot.now,
        )
        await self._writer.base(base, status)
        for state, number in (("desired", counts.desired), ("ready", counts.ready), ("failed", counts.failed)):
            metrics.ADAPTERS.labels(*snapshot.key, state).set(number)
        ready = condition_of(status.conditions, READY)
        if facts is not None and problem is None and ready is not None and ready.reason == Reason.ROLLING_OUT:
            self._queue.add_after(snapshot.key, ROLLING_LOOK_SECONDS)

    async def _release(self, plan: Plan, pods: Sequence[ObservedPod], base: BaseModelResource | None) -> None:
        await _together(
            self._writer.release(intent.adapter)
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
    passing = [error for error in failures if error.retryable]
    if passing:
        raise passing[0]
