"""One pass over one base model: collect, place, diff, execute, summarise. Level-triggered: it may run at any time."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.errors import KubeError
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator import metrics
from lorafleet_operator.act.ask import resolve, verify
from lorafleet_operator.act.finalizers import release, tell_broken
from lorafleet_operator.act.one_pass import Pass, together
from lorafleet_operator.act.publish import Applied, Publisher
from lorafleet_operator.act.push import Pusher
from lorafleet_operator.act.tools import Tools
from lorafleet_operator.cluster.collect import snapshot_of
from lorafleet_operator.decide.auto_placement import AutoPlacement
from lorafleet_operator.decide.autoscaling import Scaled, needs_pod
from lorafleet_operator.decide.base_status import counts_of
from lorafleet_operator.decide.bookkeeping import are_all_there
from lorafleet_operator.decide.objects import admin_token
from lorafleet_operator.decide.optional_objects import OPTIONAL_KINDS, Facts, OptionalFacts, OptionalKind
from lorafleet_operator.decide.outcome import Outcome
from lorafleet_operator.decide.plan import PassMemory, Plan, next_leave, plan_of
from lorafleet_operator.decide.views import BaseKey, ObservedPod

logger = logging.getLogger(__name__)
OTHERS_LOOK_SECONDS: Final = 10.0
"""Another operator's base is looked at again after this: that one may be gone."""
ANSWER_SECONDS: Final = 0.05
"""How long a pass waits for a pod to say what a source is: one that has it at hand says so at once."""


class Reconciler:
    """Passes over base models."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._memories: dict[BaseKey, PassMemory] = {}
        self._auto = AutoPlacement()
        self._pusher = Pusher(tools)
        self._publisher = Publisher(tools)

    async def reconcile(self, key: BaseKey) -> Outcome:
        """Bring one base and its adapters closer to what their specs say.

        What goes wrong in one step is told in the outcome and stops no other step.
        """
        now = self._tools.now()
        snapshot = snapshot_of(self._tools.store, key, now)
        it = Pass(replace(snapshot, published_at=self._publisher.published_at(snapshot, now)))
        await it.attempt(together(tell_broken(self._tools, it, broken) for broken in snapshot.broken))
        if snapshot.base is None:
            await self._without_base(it)
        elif await self._is_ours(it, snapshot.base):
            await self._with_base(it, snapshot.base)
        return it.outcome()

    async def _is_ours(self, it: Pass, base: BaseModelResource) -> bool:
        """Take a base that nobody has; one that another operator has is left alone, with its pods and adapters."""
        is_ours = False

        async def take() -> None:
            nonlocal is_ours
            is_ours = await self._tools.operators.take(base)

        if await it.attempt(take()) and not is_ours:
            self._leave(it.key)
            it.look_again(OTHERS_LOOK_SECONDS)
        return is_ours

    def _leave(self, key: BaseKey) -> None:
        """Stop working on a base."""
        self._tools.watches.sync(key, (), "")
        self._tools.resolver.want(key, {}, "")
        self._tools.verifier.want(key, {}, "")
        self._forget(key)
        self._publisher.leave(key)
        self._tools.autoscaling.forget(key)

    async def _without_base(self, it: Pass) -> None:
        self._leave(it.key)
        if self._tools.operators.is_elsewhere(it.key):
            return
        self._tools.operators.forget(it.key)
        plan = plan_of(it.snapshot, (), {})
        statuses = await self._publisher.adapters(it, plan, (), None)
        self._publisher.forget_made(it.key)
        await release(self._tools, it, plan, (), None)
        metrics.count_adapters(it.key, counts_of(statuses))

    def _forget(self, key: BaseKey) -> None:
        """Free what is remembered of a base that is gone."""
        tools = self._tools
        for memory in (tools.applier, tools.executor, tools.fences, tools.waiting_pods, self._pusher, self._publisher):
            memory.forget(key)
        self._auto.forget(key)
        self._memories.pop(key, None)

    async def _with_base(self, it: Pass, base: BaseModelResource) -> None:
        token = admin_token(self._tools.key, base.metadata.uid)
        scaled = self._scale(it, base, token)
        if scaled is not None:
            base = base.with_replicas(scaled.status.desired_replicas)
            it.snapshot = replace(it.snapshot, base=base)
        snapshot = it.snapshot
        applied = await self._apply(it, base, token)
        self._tools.watches.sync(it.key, snapshot.pods, token)
        await self._tools.watches.first_look(snapshot.pods)
        pods = self._tools.watches.observe(snapshot.pods)
        memory = self._memories.setdefault(it.key, PassMemory())
        plan = await self._plan(it, base, pods, token=token, memory=memory)
        may_write = await self._pusher.push(it, base, plan, pods, token=token, memory=memory)
        pods = self._tools.watches.observe(snapshot.pods)
        await self._publish(it, base, plan, pods, applied=applied, scaled=scaled)
        await release(self._tools, it, plan, pods, base)
        if (delay := next_leave(plan, pods, snapshot.now, memory if may_write else None)) is not None:
            it.look_again(delay + 0.05)

    async def _plan(
        self, it: Pass, base: BaseModelResource, pods: Sequence[ObservedPod], *, token: str, memory: PassMemory
    ) -> Plan:
        """Decide what each pod should hold, and ask pods what is not known for that."""
        snapshot, resolver = it.snapshot, self._tools.resolver
        auto = self._auto.of(snapshot, base, pods, now=monotonic())
        if (seconds := self._auto.next_window(it.key, now=monotonic())) is not None:
            it.look_again(seconds)
        answers, verdicts = resolver.answers(), self._tools.verifier.verdicts()
        plan = plan_of(snapshot, pods, answers, auto, verdicts, memory=memory)
        await asyncio.sleep(0)
        resolve(self._tools, it, plan, pods, token)
        # status says that a rollout by steps has begun before pods are told of it
        may_go_on = not any(intent.needs_resolving and intent.rollout is not None for intent in plan.intents)
        if may_go_on and await resolver.are_answered_within(it.key, ANSWER_SECONDS):
            # pods are told in this pass what was asked for in it
            plan = plan_of(snapshot, pods, resolver.answers(), auto, verdicts, memory=memory)
        verify(self._tools, it, plan, pods, token)
        return plan

    async def _publish(
        self,
        it: Pass,
        base: BaseModelResource,
        plan: Plan,
        pods: Sequence[ObservedPod],
        *,
        applied: Applied | None,
        scaled: Scaled | None,
    ) -> None:
        """Say in status what came of it, of the adapters and of their base."""
        facts = applied.facts if applied is not None else None
        are_settled = (facts is None or facts.is_settled(base.spec.replicas)) and are_all_there(base, it.snapshot.pods)
        is_asleep = scaled is not None and scaled.is_asleep(it.snapshot.now)
        if scaled is not None and scaled.awake_until is not None and is_asleep:
            it.look_again((scaled.awake_until - it.snapshot.now).total_seconds() + 0.05)
        statuses = await self._publisher.adapters(
            it, plan, pods, base, are_pods_settled=are_settled, is_asleep=is_asleep
        )
        self._tools.autoscaling.pending(it.key, sum(map(needs_pod, statuses)))
        self._publisher.weights(it.key, plan, statuses)
        counts = counts_of(statuses)
        if applied is not None:
            await self._publisher.base(
                it, base, plan, pods, counts, applied=applied, scaled=scaled, is_asleep=is_asleep
            )
        metrics.count_adapters(it.key, counts)

    def _scale(self, it: Pass, base: BaseModelResource, token: str) -> Scaled | None:
        """Return how many pods autoscaling asks for; what a suspended base was told last stands."""
        if not base.spec.suspend:
            return self._tools.autoscaling.follow(base, it.snapshot.pods, token)
        self._tools.autoscaling.forget(it.key)
        status = base.status.autoscaling if base.spec.autoscaling is not None else None
        return Scaled(status) if status is not None else None

    async def _apply(self, it: Pass, base: BaseModelResource, token: str) -> Applied | None:
        """Apply the objects of a base; None when the API server did not answer as it should."""
        if base.spec.suspend:
            return Applied()
        pods = self._tools.watches.observe([pod for pod in it.snapshot.pods if not pod.is_leaving])
        try:
            if self._tools.applier.is_lowering(base, len(pods)):
                await self._tools.leaving.rank(it.key, pods, token)
            facts, problem = await self._tools.applier.ensure(base)
        except KubeError as error:
            it.failure = error
            return None
        return Applied(facts, problem, await self._optional(it, base))

    async def _optional(self, it: Pass, base: BaseModelResource) -> Facts:
        """Make what inference gateways read of a base what its spec, and the statuses of its adapters as they were read, say."""
        facts: dict[OptionalKind, OptionalFacts] = {}
        for kind in OPTIONAL_KINDS:
            try:
                facts[kind] = await self._tools.applier.ensure_optional(kind, base, it.snapshot.adapters)
            except KubeError as error:
                it.failure = error
        return facts
