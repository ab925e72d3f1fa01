"""Asks pods what they have and tells them what to know: bounded, idempotent, and what goes wrong with one pod stays with it."""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Final

from lorafleet_contract.admin import CatalogueWrite
from lorafleet_operator.act.admin_client import STATE_SECONDS, AdminClient
from lorafleet_operator.decide.diff import PodChange, Removal
from lorafleet_operator.decide.views import ObservedPod, Pod
from lorafleet_operator.errors import AdminError

logger = logging.getLogger(__name__)
MAX_PARALLEL: Final = 16
SILENT_SECONDS: Final = 1.0
"""A pod that did not answer the last time is waited for no longer than this, so that it does not hold up its base."""
NOTHING: Final = Removal(60.0, ())


class Executor:
    """The two things that are done to pods in a pass."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._generations = itertools.count(1)
        self._slots = asyncio.Semaphore(MAX_PARALLEL)
        self._silent: set[str] = set()

    async def observe(self, pods: Sequence[Pod], token: str) -> tuple[ObservedPod, ...]:
        """Return every pod with what it says of itself; one that does not answer has no state."""
        return tuple(await asyncio.gather(*(self._observe(pod, token) for pod in pods)))

    async def _observe(self, pod: Pod, token: str) -> ObservedPod:
        if pod.ip is None or pod.is_leaving:
            self._silent.discard(pod.uid)
            return ObservedPod(pod, None)
        limit = SILENT_SECONDS if pod.uid in self._silent else STATE_SECONDS
        async with self._slots:
            try:
                state = await self._client.state(pod.ip, token, limit_seconds=limit)
            except AdminError as error:
                is_news = pod.is_ready and pod.uid not in self._silent
                self._silent.add(pod.uid)
                level = logging.WARNING if is_news else logging.DEBUG
                logger.log(level, "pod %s does not say what it has: %s", pod.name, error)
                return ObservedPod(pod, None)
        if pod.uid in self._silent and pod.is_ready:
            logger.info("pod %s answers again", pod.name)
        self._silent.discard(pod.uid)
        return ObservedPod(pod, state)

    async def execute(self, changes: Sequence[PodChange], token: str, *, fence: int) -> bool:
        """Tell each pod its change; return whether all took it."""
        return all(await asyncio.gather(*(self._tell(change, token, fence) for change in changes)))

    async def _tell(self, change: PodChange, token: str, fence: int) -> bool:
        pod = change.pod.pod
        assert pod.ip is not None
        logger.info("pod %s: %s", pod.name, change.why)
        async with self._slots:
            for index, removal in enumerate(change.removals or (NOTHING,)):
                write = CatalogueWrite(
                    fence=fence,
                    generation=next(self._generations),
                    adapters=list(change.entries) if index == 0 else [],
                    removed=list(removal.revisions),
                    drain_timeout_seconds=removal.drain_timeout_seconds,
                )
                try:
                    await self._client.write(pod.ip, token, write)
                except AdminError as error:
                    logger.warning("pod %s did not take its catalogue: %s", pod.name, error)
                    return False
        return True
