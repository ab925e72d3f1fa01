"""Asks pods, in the background, what new revisions answer. One question at a time a pod; a pod that is silent is no verdict."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.supervise import end
from lorafleet_contract.admin import AskRequest
from lorafleet_contract.verify import VerifySpec
from lorafleet_operator import metrics
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.decide.verify import Verdict, VerifyKey, problem_of
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import AdminError, PodRefused

logger = logging.getLogger(__name__)
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
MAX_MESSAGE: Final = 512
NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class Questions:
    """What a revision is asked, and who has it."""

    verify: VerifySpec
    pods: Mapping[str, str]
    """Address -> name, of the pods that can answer with it; none while it is being loaded."""


@dataclass(slots=True)
class _Work:
    base: BaseKey
    task: asyncio.Task[None] | None = None
    ip: str = ""
    """Of the pod that was asked last."""
    verdict: Verdict | None = None
    num_failures: int = 0
    retry_at: float = 0.0
    """On the loop's clock."""


class Verifier:
    """Verdicts on revisions, as long as somebody wants them."""

    def __init__(self, client: AdminClient, wake: Callable[[BaseKey, float], None]) -> None:
        self._client = client
        self._wake = wake
        self._work: dict[VerifyKey, _Work] = {}
        self._turns: dict[BaseKey, dict[str, asyncio.Lock]] = {}
        """One for each pod: it takes one question at a time."""

    def verdicts(self) -> dict[VerifyKey, Verdict]:
        """Return what is known now."""
        return {key: work.verdict for key, work in self._work.items() if work.verdict is not None}

    def want(self, base: BaseKey, wanted: Mapping[VerifyKey, Questions], token: str) -> None:
        """Want exactly these verdicts for a base; `token` is of its pods' admin API."""
        self._keep_only(base, wanted)
        if not wanted:
            self._turns.pop(base, None)
            return
        now = monotonic()
        for index, (key, questions) in enumerate(wanted.items()):
            work = self._work.setdefault(key, _Work(base))
            ips = list(questions.pods)
            if work.task is not None and work.ip not in questions.pods:
                work.task.cancel()
                work.task = None
            is_final = work.verdict is not None and work.verdict.is_passed is not None
            if work.task is not None or is_final or not ips:
                continue
            if now < work.retry_at and work.ip in questions.pods:
                self._wake(base, work.retry_at - now)
                continue
            work.ip = ips[(index + work.num_failures) % len(ips)]
            work.task = asyncio.create_task(self._verify(key, work, questions, token))

    async def close(self) -> None:
        """End what is under way."""
        tasks = [work.task for work in self._work.values() if work.task is not None]
        self._work.clear()
        await end(tasks)

    def _keep_only(self, base: BaseKey, wanted: Iterable[VerifyKey]) -> None:
        keys = set(wanted)
        for key in [key for key, work in self._work.items() if work.base == base and key not in keys]:
            work = self._work.pop(key)
            if work.task is not None:
                work.task.cancel()

    async def _verify(self, key: VerifyKey, work: _Work, questions: Questions, token: str) -> None:
        pod = questions.pods[work.ip]
        try:
            async with self._turns.setdefault(work.base, {}).setdefault(work.ip, asyncio.Lock()):
                verdict = await self._asked(key, work.ip, questions.verify, token)
        except (AdminError, TimeoutError) as error:
            verdict = Verdict(message=_why(pod, questions.verify, error)[:MAX_MESSAGE])
        except Exception as error:
            verdict = Verdict(message=f"{pod}: {type(error).__name__}")
            logger.exception("%s/%s: %s@%s is not verified", *work.base, key.name, key.revision)
        work.task, work.verdict = None, verdict
        result = {True: "passed", False: "failed", None: "unanswered"}[verdict.is_passed]
        metrics.VERIFICATIONS.labels(result=result).inc()
        why = verdict.check or verdict.message  # answers are in status, where their owner looks, and in no log
        logger.info("%s/%s: %s@%s: %s %s", *work.base, key.name, key.revision, result, why)
        if verdict.is_passed is None:
            work.retry_at = monotonic() + min(
                FIRST_RETRY_SECONDS * 2.0 ** min(work.num_failures, 10), MAX_RETRY_SECONDS
            )
            work.num_failures += 1
        self._wake(work.base, 0)

    async def _asked(self, key: VerifyKey, ip: str, verify: VerifySpec, token: str) -> Verdict:
        async with asyncio.timeout(verify.timeout_seconds):
            for prompt in verify.prompts:
                request = AskRequest(
                    name=key.name,
                    revision=key.revision,
                    prompt=prompt.prompt,
                    messages=prompt.messages,
                    max_tokens=prompt.max_tokens,
                )
                try:
                    answer = await self._client.ask(ip, token, request, limit_seconds=verify.timeout_seconds)
                except PodRefused as refusal:
                    if refusal.retryable or refusal.status == NOT_FOUND:
                        raise
                    return Verdict(False, prompt.name, f"it cannot be asked: {refusal.message}"[:MAX_MESSAGE])
                if (problem := problem_of(prompt, answer.text)) is not None:
                    return Verdict(False, prompt.name, problem[:MAX_MESSAGE])
        return Verdict(True)


def _why(pod: str, verify: VerifySpec, error: AdminError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return f"{pod} has not answered {len(verify.prompts)} questions within {verify.timeout_seconds} s"
    if isinstance(error, PodRefused) and error.status == NOT_FOUND:
        return f"{pod} cannot be asked: its version has no /admin/v1/ask"
    return f"{pod} did not answer: {error}"
