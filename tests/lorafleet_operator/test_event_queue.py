"""Events are posted beside the passes, in their order; what cannot be posted is dropped and stops none."""

import asyncio
from typing import Any

import pytest
from support import operator_views as v
from support.simulated_fleet import until

from lorafleet_common.kube.errors import KubeUnavailable
from lorafleet_operator.act.events import EventQueue

META = v.adapter("french").metadata


class Api:
    """Takes what is posted, when it may."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.refused: set[str] = set()
        self.may = asyncio.Event()
        self.may.set()

    async def create(self, path: str, body: dict[str, Any]) -> None:
        assert (path, body["involvedObject"]["name"]) == ("/api/v1/namespaces/team/events", "french")
        await self.may.wait()
        if body["reason"] in self.refused:
            raise KubeUnavailable(503, "Busy", "later")
        self.posted.append(body["reason"])


def event(reason: str) -> tuple[str, str, str]:
    return "Normal", reason, "said"


async def test_nobody_waits_for_them_and_they_keep_their_order() -> None:
    api = Api()
    api.may.clear()
    api.refused.add("B")
    queue = EventQueue(api, reporter="operator-1")  # type: ignore[arg-type]
    for reason in "ABC":
        queue.add("LoraAdapter", META, event(reason))
    await asyncio.sleep(0)
    assert api.posted == []
    api.may.set()
    await until("posted", lambda: api.posted == ["A", "C"])
    queue.add("LoraAdapter", META, event("D"))
    await until("posted", lambda: api.posted == ["A", "C", "D"])
    await queue.close()


async def test_what_waits_at_the_end_is_posted_if_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    queue = EventQueue(api, reporter="operator-1")  # type: ignore[arg-type]
    queue.add("LoraAdapter", META, event("A"))
    await queue.close()
    assert api.posted == ["A"]
    api.may.clear()
    monkeypatch.setattr("lorafleet_operator.act.events.LAST_SECONDS", 0.05)
    queue.add("LoraAdapter", META, event("B"))
    await queue.close()
    assert api.posted == ["A"]
    assert len(asyncio.all_tasks()) == 1


async def test_there_are_not_more_than_so_many(caplog: pytest.LogCaptureFixture) -> None:
    api = Api()
    queue = EventQueue(api, reporter="operator-1", max_waiting=2)  # type: ignore[arg-type]
    for reason in "ABC":
        queue.add("LoraAdapter", META, event(reason))
    assert "too many Events wait: none is posted about team/french: C" in caplog.text
    await queue.close()
    assert api.posted == ["A", "B"]
