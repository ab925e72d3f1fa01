"""Finds out what `model` means and offers the request to pods until one takes it; how a pod is asked is the caller's."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from lorafleet_contract.lorax import AD_HOC, MERGED
from lorafleet_contract.names import HEADER_REVISION, split_model
from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.cluster.directory import Target, merge_of
from lorafleet_gateway.errors import InvalidRequest, RevisionNotFound
from lorafleet_gateway.fleet.pods import Pod
from lorafleet_gateway.fleet.routing import Candidate, Why, decide, two_at_random
from lorafleet_gateway.front.headers import checked_revision
from lorafleet_gateway.front.holding import Holding
from lorafleet_gateway.front.outcomes import NotTaken, Refusal
from lorafleet_gateway.front.retry import LACKING, Offers
from lorafleet_gateway.traffic import choose

logger = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A revision that shares the traffic and did not answer what was meant for it."""

    revision: str
    code: ErrorCode
    """Why the last pod that was offered the request refused it."""


@dataclass(slots=True)
class Route:
    """One request's way to a pod, as far as it is known by now."""

    offers: Offers
    target: Target | None = None
    revision: str | None = None
    """The one to answer with; None for a base."""
    is_pinned: bool = False
    """The client insists on a revision."""
    sticky_key: str = ""
    """What decides which of several revisions that share the traffic answers."""
    gave_up: GaveUp | None = None
    """The revision that should have answered and did not, where the stable one was offered the request instead."""
    leaves_revision_to_pods: bool = False
    """No pod knows the revision and the API server does not answer: their stable one is offered the request."""
    held_seconds: float = 0.0
    """For how long it has waited for a pod of a base that had none."""
    is_without_pod: bool = False
    """It has waited in vain, or was not let in: what it is answered says nothing of any revision."""

    @property
    def is_of_stable(self) -> bool:
        """Whether the stable revision is to answer, or the base."""
        return self.target is None or self.revision in (None, self.target.revision)

    @property
    def base(self) -> str:
        """Value of the label `base`."""
        return metrics.BASES.of(self.target.base_name) if self.target is not None else ""

    @property
    def adapter(self) -> str:
        """Value of the label `adapter`: empty for a base, and for what nobody knows; one for all merges, and one
        for all adapters that nobody declared."""
        if self.target is not None and self.target.parts:
            return MERGED
        if self.target is not None and self.target.is_ad_hoc:
            return AD_HOC
        name = self.target.adapter if self.target is not None else None
        return metrics.ADAPTER_NAMES.of(name) if name is not None else ""


class Dispatcher:
    """Chooses pods for requests."""

    def __init__(self, cluster: Cluster, holding: Holding, *, any_revision: bool) -> None:
        self._cluster = cluster
        self._holding = holding
        self._any_revision = any_revision

    async def find(self, route: Route, name: str, sticky_key: str = "") -> None:
        """Find out what a name means; where revisions share its traffic, requests with the same key mean the same one.

        Raises:
            RequestError: nothing that can be answered.
        """
        route.target = await self._cluster.target(name)
        route.sticky_key = sticky_key
        route.revision = _meant(route, route.target)

    async def find_merge(self, route: Route, models: Sequence[str]) -> None:
        """Find out what a merge of adapters means, each named as `model` would. Pods take the revisions that are stable.

        Raises:
            RequestError: one is nothing that can be answered, or they cannot be merged.
        """
        parts, is_pinned = [], False
        for model in models:
            name, revision = split_model(model)
            part = await self._cluster.target(name)
            if revision is not None:
                part = replace(
                    await self._with(part, checked_revision(revision, "what follows @ in ids")), revision=revision
                )
                is_pinned = True
            parts.append(part)
        route.target, route.is_pinned = merge_of(parts), is_pinned

    async def pin(self, route: Route, revision: str) -> None:
        """Take it that the client insists on a revision of what was found.

        Raises:
            InvalidRequest: it is a base.
            RevisionNotFound: the adapter's status shows no such revision.
        """
        assert route.target is not None
        route.target = await self._with(route.target, revision)
        route.is_pinned, route.revision = True, revision

    async def _with(self, target: Target, revision: str) -> Target:
        """Return a target as it is known to have a revision.

        Raises:
            InvalidRequest: it is a base.
            RevisionNotFound: the adapter's status shows no such revision.
        """
        if target.revision is None:
            raise InvalidRequest(f"{target.name!r} is a base model: it has no revisions", param="model")
        if not self._any_revision and revision not in target.pinnable:
            await self._cluster.lookups.look_up(target.name)  # the watch may not have told of a new one yet
            target = self._cluster.directory.target(target.name)
            if revision not in target.pinnable:
                raise RevisionNotFound(
                    f"the status of {target.name!r} shows no revision {revision}", param=HEADER_REVISION
                )
        return target

    async def offer(
        self,
        route: Route,
        ask: Callable[[Pod], Awaitable[AnswerT | Refusal]],
        *,
        elapsed_seconds: Callable[[], float],
    ) -> AnswerT | Refusal:
        """Offer the request to one pod after the other; return the answer, or the last pod's refusal.

        Args:
            route: what was found.
            ask: asks one pod; raises NotTaken where there is no answer.
            elapsed_seconds: since the request arrived.

        Raises:
            RequestError: no pod took it, and none has said why.
        """
        offers, target = route.offers, route.target
        assert target is not None
        while True:
            pods = {pod.endpoint.uid: pod for pod in self._cluster.fleet.of(target.base_key)}
            decision = decide(
                target.name,
                [_candidate(pod, target, route.revision) for pod in pods.values()],
                is_adapter=target.revision is not None or bool(target.parts) or target.is_ad_hoc,
                loads_on_demand=target.loads_on_demand,
                tried=offers.tried,
                sample=two_at_random,
            )
            if decision.uid is None:
                if _fall_back(route, target) or await self._hold(route, target, decision.why):
                    continue
                break
            if offers.last is not None:
                metrics.RETRIES.of(route.base, _word(offers.last)).inc()
            metrics.ROUTED.of(route.base, decision.why).inc()
            offers.made(decision.uid)
            outcome = await self._attempt(route, pods[decision.uid], ask)
            if not isinstance(outcome, Refusal | NotTaken):
                return outcome
            offers.failed(outcome)
            if isinstance(outcome, Refusal) and outcome.code is ErrorCode.REVISION_NOT_FOUND:
                target = await self._ask_again(route, target)
            if not offers.may_go_on(elapsed_seconds() - route.held_seconds) and not _fall_back(route, target):
                break
        error = offers.error(target.name, decision.why, is_pinned=route.is_pinned)
        if error is not None:
            raise error
        assert isinstance(offers.last, Refusal)
        return offers.last

    async def _hold(self, route: Route, target: Target, why: Why) -> bool:
        """Wait for a pod, where the base does without while nothing is asked; return whether there is one now.

        Raises:
            NoReadyPod: there was none in time.
            Draining: this gateway ends.
        """
        base = self._cluster.directory.base(target.base_key)
        if base is None or base.zero is None or not route.offers.lacks_pod(why, is_at_zero=base.is_at_zero):
            return False
        route.is_without_pod = True
        route.held_seconds += await self._holding.wait(
            target.base_key,
            base.zero,
            label=route.base,
            tried=route.offers.tried,
            seconds_before=route.held_seconds,
        )
        route.is_without_pod = False
        return True

    async def _attempt(
        self, route: Route, pod: Pod, ask: Callable[[Pod], Awaitable[AnswerT | Refusal]]
    ) -> AnswerT | Refusal | NotTaken:
        try:
            with pod.request():
                return await ask(pod)
        except NotTaken as error:
            logger.info("pod %s was %s: %s", pod.endpoint.pod, error.reason, error)
            metrics.UPSTREAM_ERRORS.of(route.base, error.reason).inc()
            pod.doubt()
            self._cluster.fleet.answered(pod, failed=True)
            return error

    async def _ask_again(self, route: Route, target: Target) -> Target:
        """A pod does not know the revision: see whether the watch is behind, and the name means another one by now."""
        if route.is_pinned or target.parts or target.is_ad_hoc:
            return target
        if not await self._cluster.lookups.look_up(target.name) and not route.leaves_revision_to_pods:
            if not route.is_of_stable:
                return target  # others may have it, and if none has, the stable one is next
            route.leaves_revision_to_pods = True
            route.offers.begin_again()
            route.revision = None
            return target
        route.target = now = self._cluster.directory.target(target.name)
        if (revision := _meant(route, now)) != route.revision:
            route.offers.tried.clear()
            route.revision = revision
        return now


def _meant(route: Route, target: Target) -> str | None:
    """Return the revision that is to answer who insists on none."""
    if route.gave_up is not None:
        return target.revision
    return choose(target.traffic, route.sticky_key) or target.revision


def _fall_back(route: Route, target: Target) -> bool:
    """Turn to the stable revision where pods refuse a request for lack of the one that it was meant for; return whether to.

    Once, and only this way: what the stable revision cannot answer is no reason to send all of it to a canary.
    """
    last, revision = route.offers.last, route.revision
    if route.is_pinned or route.is_of_stable or route.gave_up is not None or revision is None:
        return False
    if not isinstance(last, Refusal) or last.code not in LACKING:
        return False
    logger.info("no pod answers with revision %s of %s: %s; the stable one does", revision, target.name, last.code)
    metrics.FALLBACKS.of(route.base, route.adapter, last.code).inc()
    route.gave_up, route.revision = GaveUp(revision, last.code), target.revision
    route.offers.start_over()
    return True


def _candidate(pod: Pod, target: Target, revision: str | None) -> Candidate:
    if target.parts:
        return pod.merge_candidate((part.name, part.revision) for part in target.parts)
    return pod.candidate(target.name, revision)


def _word(outcome: Refusal | NotTaken) -> str:
    return outcome.code if isinstance(outcome, Refusal) else outcome.reason
