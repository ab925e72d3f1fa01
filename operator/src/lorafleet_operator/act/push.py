"""What pods are told in a pass: who may be told now, in which round, by whose fence."""

from collections.abc import Sequence
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_contract.admin import Residency
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator import metrics
from lorafleet_operator.act.finalizers import hold
from lorafleet_operator.act.one_pass import Pass
from lorafleet_operator.act.tools import Tools
from lorafleet_operator.decide.diff import PodChange, without
from lorafleet_operator.decide.first_catalogue import LOOK_SECONDS, FirstCatalogues
from lorafleet_operator.decide.memory import Retries
from lorafleet_operator.decide.pace import Rounds
from lorafleet_operator.decide.plan import PassMemory, Plan, changes_of
from lorafleet_operator.decide.views import BaseKey, ObservedPod

ROUND_SLACK_SECONDS: Final = 0.001
"""A timer may be a little early."""


class Pusher:
    """Pushes to pods what a plan says, over all bases."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._first_catalogues = FirstCatalogues()
        self._rounds = Rounds()
        self._retries = Retries()

    async def push(
        self,
        it: Pass,
        base: BaseModelResource,
        plan: Plan,
        pods: Sequence[ObservedPod],
        *,
        token: str,
        memory: PassMemory,
    ) -> bool:
        """Tell pods what they do not know yet. Returns whether they may be told anything."""
        unheld = await hold(self._tools, it, plan)
        retried = self._retries.due(base, it.snapshot.adapters)
        may_write = await it.attempt(self._tools.fences.rise(it.key, pods, generation=self._tools.executor.generation))
        if may_write:
            fence = self._tools.fences.of(it.key)
            changes = changes_of(plan, it.snapshot, pods, fence=fence, retried=retried, memory=memory)
            await self._push(it, [without(change, unheld) for change in changes], token, fence)
        return may_write

    def forget(self, key: BaseKey) -> None:
        """A base is gone."""
        for memory in (self._first_catalogues, self._rounds, self._retries):
            memory.forget(key)

    async def _push(self, it: Pass, changes: Sequence[PodChange], token: str, fence: int) -> None:
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
