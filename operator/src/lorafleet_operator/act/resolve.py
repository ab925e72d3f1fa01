"""What pods are asked in the background: what a reference is, and what a revision that they have is made of.

A large download for one adapter holds up no other, and no pass.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_contract.admin import ResolveRequest
from lorafleet_contract.names import revision_of
from lorafleet_contract.reasons import RETRYABLE, Reason
from lorafleet_contract.resources import ArtifactStatus
from lorafleet_contract.sources import ResolvedSource
from lorafleet_operator import metrics
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.decide.intent import Question, ResolveFailure, ResolveKey, RevisionKey
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import AdminError, PodRefused, PodUnreachable

logger = logging.getLogger(__name__)
MAX_PARALLEL: Final = 8
"""Resolutions at the same time for one base."""
SLOW_SECONDS: Final = 2.0
"""A pod that takes longer may download, or hang: it is looked at."""
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
FINAL_RETRY_SECONDS: Final = 300.0
"""What only a change of the source can mend is looked at again from time to time: the source may have changed."""


@dataclass(slots=True)
class _Work:
    base: BaseKey
    task: asyncio.Task[None] | None = None
    ip: str = ""
    """Of the pod that was asked last."""
    answer: ArtifactStatus | ResolveFailure | None = None
    num_failures: int = 0
    retry_at: float = 0.0
    """On the loop's clock."""


class Resolver:
    """What sources were resolved to, as long as somebody wants it."""

    def __init__(
        self, client: AdminClient, wake: Callable[[BaseKey, float], None], doubt: Callable[[BaseKey, str], None]
    ) -> None:
        self._client = client
        self._wake = wake
        self._doubt = doubt
        self._work: dict[Question, _Work] = {}
        self._slots: dict[BaseKey, asyncio.Semaphore] = {}
        self._occasions: dict[BaseKey, frozenset[Hashable]] = {}
        self._begun: dict[BaseKey, list[asyncio.Task[None]]] = {}
        """By the last `want`."""

    def answers(self) -> dict[Question, ArtifactStatus | ResolveFailure]:
        """Return what is known now."""
        return {key: work.answer for key, work in self._work.items() if work.answer is not None}

    def num_running(self, base: BaseKey) -> int:
        """Return how many sources of a base have been asked for and not answered even once."""
        return sum(w.base == base and w.answer is None and w.task is not None for w in self._work.values())

    def want(
        self,
        base: BaseKey,
        questions: Mapping[Question, Sequence[str]],
        token: str,
        *,
        alive: Collection[str] = (),
        occasions: Collection[Hashable] = (),
    ) -> None:
        """Want exactly these answers for a base.

        Args:
            base: whose pods are asked.
            questions: what to ask, with the addresses of the pods that can answer it, any of them.
            token: of their admin API.
            alive: addresses of the pods that may still be at what they were asked for; on others it is begun anew.
            occasions: what an answer depends on beside its question. With a new one, what has failed is tried at once.
        """
        self._keep_only(base, questions)
        begun = self._begun[base] = []
        if not questions:
            del self._begun[base]
            self._occasions.pop(base, None)
            self._slots.pop(base, None)
            return
        is_occasion = not frozenset(occasions) <= self._occasions.get(base, frozenset())
        self._occasions[base] = frozenset(occasions)
        now = monotonic()
        for index, (key, ips) in enumerate(questions.items()):
            work = self._work.setdefault(key, _Work(base))
            if is_occasion:
                work.retry_at = min(work.retry_at, now)
            if work.task is not None and work.ip in {*ips, *alive}:
                continue
            if work.task is not None:
                work.task.cancel()
                work.task = None
            if isinstance(work.answer, ArtifactStatus) or not ips:
                continue
            if now < work.retry_at:
                self._wake(base, work.retry_at - now)
                continue
            # another pod the next time, another pod for the next one
            work.ip = ips[(index + work.num_failures) % len(ips)]
            work.task = asyncio.create_task(self._resolve(key, work, token))
            begun.append(work.task)

    async def are_answered_within(self, base: BaseKey, seconds: float) -> bool:
        """Wait for what the last `want` began to ask; return whether that was something, and all of it was answered.

        Many questions are not waited for: they take their turns.
        """
        begun = self._begun.pop(base, [])
        if not 0 < len(begun) <= MAX_PARALLEL:
            return False
        _, pending = await asyncio.wait(begun, timeout=seconds)
        return not pending

    def _keep_only(self, base: BaseKey, wanted: Iterable[Question]) -> None:
        keys = set(wanted)
        for key in [key for key, work in self._work.items() if work.base == base and key not in keys]:
            work = self._work.pop(key)
            if work.task is not None:
                work.task.cancel()

    async def close(self) -> None:
        """End what is under way."""
        tasks = [work.task for work in self._work.values() if work.task is not None]
        self._work.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(self, key: Question, work: _Work, token: str) -> None:
        try:
            async with self._slots.setdefault(work.base, asyncio.Semaphore(MAX_PARALLEL)):
                resolved = await self._ask(work, key, token)
                work.answer = ArtifactStatus.of(key.source if isinstance(key, ResolveKey) else resolved.ref, resolved)
        except AdminError as error:
            self._failed(work, _failure(error))
            logger.warning("%s/%s: %s is not resolved: %s", *work.base, _words(key), error)
        except Exception as error:
            self._failed(work, ResolveFailure(Reason.SOURCE_UNAVAILABLE, type(error).__name__, retryable=True))
            logger.exception("%s/%s: %s is not resolved", *work.base, _words(key))
        work.task = None
        metrics.RESOLVES.labels(result=work.answer.reason if isinstance(work.answer, ResolveFailure) else "ok").inc()
        self._wake(work.base, 0)

    async def _ask(self, work: _Work, key: Question, token: str) -> ResolvedSource:
        call = asyncio.ensure_future(self._answer(work.ip, key, token))
        try:
            await asyncio.wait((call,), timeout=SLOW_SECONDS)
            if not call.done():
                self._doubt(work.base, work.ip)
            return await call
        finally:
            call.cancel()

    async def _answer(self, ip: str, key: Question, token: str) -> ResolvedSource:
        if isinstance(key, ResolveKey):
            request = ResolveRequest(source=key.source, expected_digest=key.digest)
            return (await self._client.resolve(ip, token, request)).resolved
        answer = await self._client.adapter(ip, token, key.name)
        found = next((source for source in answer.sources if revision_of(source.digest) == key.revision), None)
        if found is None:
            raise PodUnreachable(f"it does not say what {key.name}@{key.revision} is made of")
        return found

    def _failed(self, work: _Work, failure: ResolveFailure) -> None:
        work.answer = failure
        work.retry_at = monotonic() + _retry_seconds(failure, work.num_failures)
        work.num_failures += 1


def _failure(error: AdminError) -> ResolveFailure:
    if isinstance(error, PodRefused):
        # the operator has seen that the base declares the source: an older pod does not know it yet
        retryable = error.retryable or error.reason in {*RETRYABLE, Reason.SOURCE_NOT_ALLOWED}
        return ResolveFailure(error.reason, error.message, retryable=retryable)
    return ResolveFailure(Reason.SOURCE_UNAVAILABLE, f"the pod did not answer: {error}", retryable=True)


def _retry_seconds(failure: ResolveFailure, num_failures: int) -> float:
    if not failure.retryable:
        return FINAL_RETRY_SECONDS
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(num_failures, 10), MAX_RETRY_SECONDS)


def _words(key: Question) -> str:
    if isinstance(key, RevisionKey):
        return f"{key.name}@{key.revision}"
    at = f"@{key.source.revision}" if key.source.revision else ""
    return f"{key.source.name}:{key.source.repo or key.source.path}{at}"
