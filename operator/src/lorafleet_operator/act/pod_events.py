"""Why pods are not created: only Events say which Secret, volume or sandbox the kubelet waits for."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.paths import Json, collection
from lorafleet_operator.decide.pod_words import problem_in
from lorafleet_operator.decide.views import Pod

logger = logging.getLogger(__name__)
PATIENCE: Final = timedelta(seconds=5)
"""A pod that is created in less is no problem."""
KEEP_SECONDS: Final = 10.0
"""How long an answer is good for."""
TIMEOUT_SECONDS: Final = 2.0
MAX_ASKED: Final = 8
"""Pods that one pass asks about, all at once: it is not to wait for one answer after the other."""


class PodEvents:
    """The last warning about each pod that is being created."""

    def __init__(self, api: KubeApi, *, keep_seconds: float = KEEP_SECONDS) -> None:
        self._api = api
        self._keep_seconds = keep_seconds
        self._known: dict[str, tuple[float, str]] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def explained(self, pods: Sequence[Pod], namespace: str, now: datetime) -> tuple[Pod, ...]:
        """Return the pods; those that are being created for long have as their problem what Events say of them.

        Of many pods some are asked about now, and others when this is called again.
        """
        slow = [pod for pod in pods if pod.is_being_created and not pod.is_leaving and now - pod.created_at >= PATIENCE]
        others = {pod.uid for pod in pods} - {pod.uid for pod in slow}
        self._known = {uid: one for uid, one in self._known.items() if uid not in others and self._is_good(one)}
        asked = [pod for pod in slow if pod.uid not in self._known][:MAX_ASKED]
        problems = await asyncio.gather(*(self._ask(pod, namespace) for pod in asked))
        for pod, problem in zip(asked, problems, strict=True):
            self._known[pod.uid] = (monotonic(), problem)
        told = {pod.uid: self._known[pod.uid][1] for pod in slow if pod.uid in self._known}
        return tuple(replace(pod, problem=told[pod.uid]) if pod.uid in told else pod for pod in pods)

    def _is_good(self, known: tuple[float, str]) -> bool:
        return monotonic() - known[0] < self._keep_seconds

    async def _ask(self, pod: Pod, namespace: str) -> str:
        query = {"fieldSelector": f"involvedObject.uid={pod.uid},type=Warning", "limit": "50"}
        path = collection("v1", "events", namespace)
        try:
            _, answer = await self._api.request("GET", path, query=query, timeout_seconds=TIMEOUT_SECONDS)
        except KubeError as error:
            logger.debug("Events about pod %s are not to be had: %s", pod.name, error)
            return ""
        events: list[Json] = answer.get("items") or []
        return problem_in([event for event in events if event.get("involvedObject", {}).get("uid") == pod.uid])
