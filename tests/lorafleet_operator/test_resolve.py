"""What becomes of a resolution that goes wrong in a way that nobody foresaw."""

import pytest
from support import operator_views as v
from support.simulated_fleet import until

from lorafleet_contract.admin import ResolveAnswer, ResolveRequest
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import ArtifactStatus
from lorafleet_contract.sources import SourceRef
from lorafleet_operator.act.resolve import FIRST_RETRY_SECONDS, Resolver
from lorafleet_operator.decide.intent import ResolveFailure, ResolveKey
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
