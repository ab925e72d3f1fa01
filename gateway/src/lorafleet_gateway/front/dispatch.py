"""Finds out what `model` means and offers the request to pods until one takes it; how a pod is asked is the caller's."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from lorafleet_contract.names import HEADER_REVISION
from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.cluster.directory import Target
from lorafleet_gateway.errors import InvalidRequest, RevisionNotFound
from lorafleet_gateway.fleet.pods import Pod
from lorafleet_gateway.fleet.routing import decide, two_at_random
from lorafleet_gateway.front.outcomes import NotTaken, Refusal
from lorafleet_gateway.front.retry import Offers

logger = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT")


@dataclass(slots=True)
class Route:
    """One request's way to a pod, as far as it is known by now."""

    offers: Offers
    target: Target | None = None
    revision: str | None = None
    """The one to answer with; None for a base."""
    is_pinned: bool = False
    """The client insists on a revision."""
    leaves_revision_to_pods: bool = False
    """No pod knows the revision and the API server does not answer: their stable one is offered the request."""

    @property
    def base(self) -> str:
        """Value of the label `base`."""
        return metrics.BASES.of(self.target.base_name) if self.target is not None else ""

    @property
    def adapter(self) -> str:
        """Value of the label `adapter`: empty for a base, and for what nobody knows."""
        name = self.target.adapter if self.target is not None else None
        return metrics.ADAPTER_NAMES.of(name) if name is not None else ""


class Dispatcher:
    """Chooses pods for requests."""

    def __init__(self, cluster: Cluster, *, any_revision: bool) -> None:
        self._cluster = cluster
        self._any_revision = any_revision

    async def find(self, route: Route, name: str) -> None:
        """Find out what a name means.

        Raises:
            RequestError: nothing that can be answered.
        """
        route.target = await self._cluster.target(name)
        route.revision = route.target.revision

    async def pin(self, route: Route, revision: str) -> None:
        """Take it that the client insists on a revision of what was found.

        Raises:
            InvalidRequest: it is a base.
            RevisionNotFound: the adapter's status shows no such revision.
        """
        target = route.target
        assert target is not None
        if target.revision is None:
            raise InvalidRequest(f"{target.name!r} is a base model: it has no revisions", param="model")
        if not self._any_revision and revision not in target.pinnable:
            await self._cluster.lookups.look_up(target.name)  # the watch may not have told of a new one yet
            route.target = target = self._cluster.directory.target(target.name)
            if revision not in target.pinnable:
                raise RevisionNotFound(
                    f"the status of {target.name!r} shows no revision {revision}", param=HEADER_REVISION
                )
        route.is_pinned, route.revision = True, revision

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
                [pod.candidate(target.name, route.revision) for pod in pods.values()],
                is_adapter=target.revision is not None,
                loads_on_demand=target.loads_on_demand,
                tried=offers.tried,
                sample=two_at_random,
            )
            if decision.uid is None:
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
            if not offers.may_go_on(elapsed_seconds()):
                break
        error = offers.error(target.name, decision.why, is_pinned=route.is_pinned)
        if error is not None:
            raise error
        assert isinstance(offers.last, Refusal)
        return offers.last

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
        if route.is_pinned:
            return target
        if not await self._cluster.lookups.look_up(target.name) and not route.leaves_revision_to_pods:
            route.leaves_revision_to_pods = True
            route.offers.begin_again()
            route.revision = None
            return target
        route.target = now = self._cluster.directory.target(target.name)
        if now.revision != route.revision:
            route.offers.tried.clear()
            route.revision = now.revision
        return now


def _word(outcome: Refusal | NotTaken) -> str:
    return outcome.code if isinstance(outcome, Refusal) else outcome.reason
