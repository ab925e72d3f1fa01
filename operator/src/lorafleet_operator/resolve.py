"""Resolutions in the background: a large download for one adapter holds up no other, and no pass."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from lorafleet_contract.admin import ResolveRequest
from lorafleet_contract.reasons import PASSING, Reason
from lorafleet_contract.resources import ArtifactStatus
from lorafleet_operator import metrics
from lorafleet_operator.errors import AdminError, PodRefused
from lorafleet_operator.execute import AdminClient
from lorafleet_operator.intent import ResolveFailure, ResolveKey
from lorafleet_operator.views import BaseKey

logger = logging.getLogger(__name__)
MAX_PARALLEL: Final = 8
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
FINAL_RETRY_SECONDS: Final = 300.0
"""What only a change of the source can mend is looked at again from time to time: the source may have changed."""


@dataclass(slots=True)
class _Work:
    base: BaseKey
    task: asyncio.Task[None] | None = None
    answer: ArtifactStatus | ResolveFailure | None = None
    num_failures: int = 0
    retry_at: float = 0.0
    """On the loop's clock."""


class Resolver:
    """What sources were resolved to, as long as somebody wants it."""

    def __init__(self, client: AdminClient, wake: Callable[[BaseKey, float], None]) -> None:
        self._client = client
        self._wake = wake
        self._work: dict[ResolveKey, _Work] = {}
        self._slots = asyncio.Semaphore(MAX_PARALLEL)

    def answers(self) -> dict[ResolveKey, ArtifactStatus | ResolveFailure]:
        """Return what is known now."""
        return {key: work.answer for key, work in self._work.items() if work.answer is not None}

    def num_running(self, base: BaseKey) -> int:
        """Return how many sources of a base have been asked for and not answered even once."""
        return sum(w.base == base and w.answer is None and w.task is not None for w in self._work.values())

    def want(self, key: ResolveKey, base: BaseKey, ip: str, token: str) -> None:
        """Resolve a source on a pod, unless that is under way, done, or to be tried later."""
        work = self._work.setdefault(key, _Work(base))
        is_due = asyncio.get_running_loop().time() >= work.retry_at
        if work.task is None and not isinstance(work.answer, ArtifactStatus) and is_due:
            work.task = asyncio.create_task(self._resolve(key, work, ip, token))

    def keep_only(self, base: BaseKey, wanted: Iterable[ResolveKey]) -> None:
        """Forget what nobody of a base wants any more."""
        keys = set(wanted)
        for key in [key for key, work in self._work.items() if work.base == base and key not in keys]:
            work = self._work.pop(key)
            if work.task is not None:
                work.task.cancel()

    async def close(self) -> None:
        """End what is under way."""
        tasks = [work.task for work in self._work.values() if work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(self, key: ResolveKey, work: _Work, ip: str, token: str) -> None:
        request = ResolveRequest(source=key.source, expected_digest=key.digest)
        retry_seconds: float | None = None
        try:
            async with self._slots:
                answer = await self._client.resolve(ip, token, request)
            work.answer = ArtifactStatus.of(key.source, answer.resolved)
            metrics.RESOLVES.labels(result="ok").inc()
        except (AdminError, ValidationError) as error:
            work.answer = _failure(error)
            metrics.RESOLVES.labels(result=work.answer.reason).inc()
            retry_seconds = FINAL_RETRY_SECONDS
            if work.answer.is_passing:
                retry_seconds = min(FIRST_RETRY_SECONDS * 2.0 ** min(work.num_failures, 10), MAX_RETRY_SECONDS)
            work.num_failures += 1
            logger.warning("%s/%s: a source is not resolved: %s", *work.base, error)
        finally:
            work.task = None
        if retry_seconds is not None:
            work.retry_at = asyncio.get_running_loop().time() + retry_seconds
            self._wake(work.base, retry_seconds)
        self._wake(work.base, 0)


def _failure(error: AdminError | ValidationError) -> ResolveFailure:
    if isinstance(error, PodRefused):
        # the operator has seen that the base declares the source: an older pod does not know it yet
        is_passing = error.retryable or error.reason in {*PASSING, Reason.SOURCE_NOT_ALLOWED}
        return ResolveFailure(error.reason, error.message, is_passing=is_passing)
    return ResolveFailure(Reason.SOURCE_UNAVAILABLE, f"the pod did not answer: {error}", is_passing=True)
