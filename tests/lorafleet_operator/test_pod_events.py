"""A pod that stays in ContainerCreating is named with what the kubelet's Events say of it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest_asyncio
from kubernetes.aio.client import Configuration
from support import operator_views as v
from support.fake_kube import FakeKube

from lorafleet_common.kube.client import KubeApi
from lorafleet_operator.act.pod_events import MAX_ASKED, PodEvents
from lorafleet_operator.decide.views import Pod


@pytest_asyncio.fixture
async def kube() -> AsyncIterator[FakeKube]:
    made = FakeKube()
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def api(kube: FakeKube) -> AsyncIterator[KubeApi]:
    made = KubeApi(Configuration(host=kube.url))
    yield made
    await made.close()


def creating(name: str, *, age_seconds: float = 60, **more: Any) -> Pod:
    return v.pod(name, ready=False, running=False, is_being_created=True, age_seconds=age_seconds, **more)


def warn(kube: FakeKube, name: str, message: str) -> None:
    event = {
        "metadata": {"name": f"about-{name}", "namespace": "team"},
        "type": "Warning",
        "reason": "FailedMount",
        "message": message,
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "involvedObject": {"uid": f"uid-{name}"},
    }
    kube.put("events", event)


async def test_pod_that_is_not_created_says_what_its_events_say(kube: FakeKube, api: KubeApi) -> None:
    warn(kube, "p0", 'MountVolume.SetUp failed: secret "hub-token" not found')
    warn(kube, "p9", "of another pod")
    pods = (creating("p0"), creating("p1"), creating("young", age_seconds=1), v.pod("fine"))
    found = await PodEvents(api).explained(pods, "team", v.NOW)
    assert [pod.problem for pod in found] == [
        'FailedMount: MountVolume.SetUp failed: secret "hub-token" not found',
        "",
        "",
        "",
    ]


async def test_answer_is_kept_for_a_while_and_forgotten_when_the_pod_runs(kube: FakeKube, api: KubeApi) -> None:
    events = PodEvents(api)
    warn(kube, "p0", "first")
    for _ in range(3):
        (found,) = await events.explained((creating("p0"),), "team", v.NOW)
        assert found.problem == "FailedMount: first"
        warn(kube, "p0", "second")
    await events.explained((v.pod("p0"),), "team", v.NOW)
    (found,) = await events.explained((creating("p0"),), "team", v.NOW + timedelta(seconds=1))
    assert found.problem == "FailedMount: second"


async def test_pod_that_goes_while_it_is_created_is_not_remembered(api: KubeApi) -> None:
    """Nobody asks for it again, so nothing but its age tells that its answer has no use."""
    events = PodEvents(api, keep_seconds=0.05)
    await events.explained((creating("p0"), creating("p1")), "team", v.NOW)
    assert len(events) == 2
    await asyncio.sleep(0.1)
    await events.explained((creating("p2"),), "team", v.NOW)
    assert len(events) == 1


class Slow:
    """An API server that takes a moment to answer, and has nothing to tell."""

    num_asked = num_waiting = most_waiting = 0

    async def request(self, *_: object, **__: object) -> tuple[None, dict[str, Any]]:
        self.num_asked += 1
        self.num_waiting += 1
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        await asyncio.sleep(0.02)
        self.num_waiting -= 1
        return None, {"items": []}


async def test_many_pods_are_asked_about_together_and_some_at_a_time() -> None:
    """A pass waits for one answer at most, however many pods are being created and however slow the API server is."""
    api = Slow()
    events, pods = PodEvents(api), tuple(creating(f"p{number:02}") for number in range(2 * MAX_ASKED + 3))
    for num_asked in (MAX_ASKED, 2 * MAX_ASKED, len(pods), len(pods)):
        assert await events.explained(pods, "team", v.NOW) == pods
        assert api.num_asked == num_asked
    assert api.most_waiting == MAX_ASKED


async def test_api_server_that_does_not_tell_costs_nothing_else(kube: FakeKube, api: KubeApi) -> None:
    kube.is_away = True
    (found,) = await PodEvents(api).explained((creating("p0"),), "team", v.NOW)
    assert found == creating("p0")
