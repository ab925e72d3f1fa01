"""What becomes of a resolution that goes wrong in a way that nobody foresaw."""

import asyncio

import pytest
from support import operator_views as v
from support.simulated_fleet import until

from lorafleet_contract.admin import ResolveAnswer, ResolveRequest
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import ArtifactStatus
from lorafleet_contract.sources import SourceRef
from lorafleet_operator.act.resolve import FIRST_RETRY_SECONDS, MAX_PARALLEL, Resolver
from lorafleet_operator.decide.intent import Question, ResolveFailure, ResolveKey
from lorafleet_operator.decide.views import BaseKey


class Pod:
    """An admin client whose first answer ends in a fault of ours."""

    num_asked = 0

    async def resolve(self, ip: str, token: str, request: ResolveRequest) -> ResolveAnswer:
        self.num_asked += 1
        if self.num_asked == 1:
            raise AssertionError("a fault of a library")
        return ResolveAnswer(resolved=v.artifact("french").resolved)


async def test_fault_of_ours_ends_no_resolution(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, counts as a failure that may pass, and the base is woken to ask again."""
    pod, woken = Pod(), list[tuple[BaseKey, float]]()
    resolver = Resolver(pod, lambda base, seconds: woken.append((base, seconds)), lambda *_: None)
    key = ResolveKey("uid-french", SourceRef(name="models", path="french"), None)

    def ask() -> ResolveFailure | ArtifactStatus | None:
        resolver.want(v.KEY, {key: ["127.0.0.1"]}, "token")
        return resolver.answers().get(key)

    await until("failed", ask)
    assert ask() == ResolveFailure(Reason.SOURCE_UNAVAILABLE, "AssertionError", retryable=True)
    assert "a fault of a library" in caplog.text
    assert woken[0] == (v.KEY, 0)
    assert any(0 < seconds <= FIRST_RETRY_SECONDS for _, seconds in woken)
    await until("asked again", lambda: isinstance(ask(), ArtifactStatus))
    assert pod.num_asked == 2
    await resolver.close()


class SlowPod:
    """An admin client that takes its time."""

    seconds = 0.0

    async def resolve(self, ip: str, token: str, request: ResolveRequest) -> ResolveAnswer:
        await asyncio.sleep(self.seconds)
        return ResolveAnswer(resolved=v.artifact(str(request.source.path)).resolved)


async def test_what_is_answered_at_once_is_waited_for_once_and_nothing_else() -> None:
    pod = SlowPod()
    resolver = Resolver(pod, lambda *_: None, lambda *_: None)

    def keys(*paths: str) -> dict[Question, list[str]]:
        return {ResolveKey(path, SourceRef(name="models", path=path), None): ["127.0.0.1"] for path in paths}

    async def is_answered(*paths: str, seconds: float = 5.0) -> bool:
        resolver.want(v.KEY, keys(*paths), "token")
        return await resolver.are_answered_within(v.KEY, seconds)

    assert not await is_answered()
    assert await is_answered("one", "two")
    assert set(resolver.answers()) == set(keys("one", "two"))
    assert not await is_answered("one", "two"), "nothing was asked"
    assert await is_answered("one", "three")
    pod.seconds = 60.0
    assert not await is_answered("one", "four", seconds=0.01)
    assert not await is_answered("one", "four"), "it was asked before: nobody waits a minute"
    assert not await is_answered("one", *(f"many-{number}" for number in range(MAX_PARALLEL + 1)))
    await resolver.close()
