"""Pods that do not come up, with what only the API server says of them: their Events, and the other pods of their groups."""

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.paths import collection
from lorafleet_contract.admin import StartProgress
from lorafleet_contract.names import LABEL_BASE, LABEL_RANKS_OF
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.act.pod_events import PodEvents
from lorafleet_operator.cluster.collect import further_pod_of
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.start import is_worth_telling
from lorafleet_operator.decide.views import BaseKey, Pod, Snapshot

logger = logging.getLogger(__name__)
KEEP_SECONDS: Final = 5.0
"""How long an answer is good for."""
TIMEOUT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Told:
    """What a base says of how far one of its pods is."""

    start: StartProgress
    at: float
    """By the monotonic clock."""


class WaitingPods:
    """Pods of a base, explained.

    Where a replica is of several pods, those beside the first are not watched: placement, counts and tokens are of first pods alone.
    They are asked for while a first pod is not ready, since what keeps them keeps it, and those that run are asked how far their
    download is.
    """

    def __init__(self, api: KubeApi, client: AdminClient, *, keep_seconds: float = KEEP_SECONDS) -> None:
        self._api = api
        self._client = client
        self._told: dict[BaseKey, dict[str, _Told]] = {}
        self._events = PodEvents(api)
        self._keep_seconds = keep_seconds
        self._known: dict[BaseKey, tuple[float, tuple[Pod, ...]]] = {}

    async def explained(self, base: BaseModelResource, snapshot: Snapshot) -> tuple[tuple[Pod, ...], tuple[Pod, ...]]:
        """Return the pods of a base, and those of its groups beside the first, by name; none of these where all is ready, or the
        API server does not tell."""
        further = await self._further(base, snapshot)
        num = len(snapshot.pods)
        pods = await self._events.explained((*snapshot.pods, *further), snapshot.key[0], snapshot.now)
        return pods[:num], pods[num:]

    def forget(self, key: BaseKey) -> None:
        """A base is gone, or all of it is ready."""
        self._known.pop(key, None)
        self._told.pop(key, None)

    async def _further(self, base: BaseModelResource, snapshot: Snapshot) -> tuple[Pod, ...]:
        key = snapshot.key
        if base.spec.engine.hosts == 1 or all(pod.is_ready for pod in snapshot.pods):
            self.forget(key)
            return ()
        known = self._known.get(key)
        if known is None or monotonic() - known[0] >= self._keep_seconds:
            known = self._known[key] = (monotonic(), await self._ask(snapshot))
        return known[1]

    async def _ask(self, snapshot: Snapshot) -> tuple[Pod, ...]:
        namespace, name = snapshot.key
        path, labels = collection("v1", Kind.POD, namespace), f"{LABEL_RANKS_OF}={name},!{LABEL_BASE}"
        try:
            listed = await self._api.list(path, labels=labels, timeout_seconds=TIMEOUT_SECONDS)
        except KubeError as error:
            logger.debug("further pods of %s/%s are not to be had: %s", namespace, name, error)
            return ()
        pods = (further_pod_of(body, name, snapshot.now) for body in listed.items)
        found = sorted((pod for pod in pods if pod is not None), key=lambda pod: pod.name)
        told = self._told.get(snapshot.key, {})
        starts = await asyncio.gather(*(self._start_of(pod, told.get(pod.uid)) for pod in found))
        self._told[snapshot.key] = {pod.uid: one for pod, one in zip(found, starts, strict=True) if one is not None}
        return tuple(
            pod if one is None else replace(pod, stage=one.start.words) for pod, one in zip(found, starts, strict=True)
        )

    async def _start_of(self, pod: Pod, told: _Told | None) -> _Told | None:
        """Return how far a pod is, as its base should say it; None where it does not say, or something else is to be told."""
        if pod.ip is None or pod.is_ready or pod.is_leaving or pod.problem or pod.stage:
            return None
        start, now = await self._client.host_start(pod.ip), monotonic()
        if start is None:
            return None
        if told is not None and not is_worth_telling(told.start, start, now - told.at):
            return told
        return _Told(start, now)
