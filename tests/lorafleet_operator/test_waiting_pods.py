"""What keeps a group's first pod may be another pod of it, which is asked for while the first is not ready."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from kubernetes.aio.client import Configuration
from support import operator_views as v
from support.fake_kube import FakeKube

from lorafleet_common.kube.client import KubeApi
from lorafleet_operator.act.waiting_pods import WaitingPods
from lorafleet_operator.decide.views import Pod, Snapshot

GROUPED = v.base(engine={"tensorParallelSize": 2, "hosts": 2})
FIRST = v.pod("base-0", ready=False)


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


def snapshot(*pods: Pod) -> Snapshot:
    return replace(v.snapshot(base=GROUPED), pods=pods)


def put(kube: FakeKube, name: str, *, index: str = "1", reason: str = "ImagePullBackOff", **labels: str) -> None:
    own = {"lorafleet.io/ranks-of": "base", "leaderworkerset.sigs.k8s.io/name": "base"}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-{name}",
        "creationTimestamp": "2025-12-31T00:00:00Z",
        "labels": {**own, "leaderworkerset.sigs.k8s.io/worker-index": index, **labels},
        "ownerReferences": [{"kind": "StatefulSet", "name": "base-0", "uid": "u", "controller": True}],
    }
    engine = {"name": "engine", "state": {"waiting": {"reason": reason}}}
    kube.put("pods", {"metadata": metadata, "status": {"phase": "Pending", "containerStatuses": [engine]}})


async def test_they_are_told_by_name_with_what_keeps_them(kube: FakeKube, api: KubeApi) -> None:
    put(kube, "base-0-2", index="2")
    put(kube, "base-0-1")
    put(kube, "base-0", index="0", **{"lorafleet.io/base": "base"})
    put(kube, "stranger", **{"leaderworkerset.sigs.k8s.io/name": "another"})
    firsts, further = await WaitingPods(api).explained(GROUPED, snapshot(FIRST))
    assert firsts == (FIRST,)
    assert [(pod.name, pod.problem) for pod in further] == [
        ("base-0-1", "ImagePullBackOff"),
        ("base-0-2", "ImagePullBackOff"),
    ]


async def test_events_say_what_keeps_one_that_is_being_created(kube: FakeKube, api: KubeApi) -> None:
    put(kube, "base-0-1", reason="ContainerCreating")
    event = {"metadata": {"name": "about", "namespace": "team"}, "type": "Warning", "reason": "FailedMount"}
    kube.put("events", {**event, "message": "no such claim", "involvedObject": {"uid": "uid-base-0-1"}})
    _, (found,) = await WaitingPods(api).explained(GROUPED, snapshot(FIRST))
    assert found.problem == "FailedMount: no such claim"


@pytest.mark.parametrize(
    ("base", "pods"),
    [
        pytest.param(v.base(), (FIRST,), id="replicas are of one pod"),
        pytest.param(GROUPED, (v.pod("base-0"),), id="all are ready"),
        pytest.param(GROUPED, (), id="there is none"),
    ],
)
async def test_nothing_is_asked_where_nothing_waits(
    kube: FakeKube, api: KubeApi, base: Any, pods: tuple[Pod, ...]
) -> None:
    put(kube, "base-0-1")
    assert await WaitingPods(api).explained(base, snapshot(*pods)) == (pods, ())


async def test_an_answer_is_good_for_a_while_and_until_all_are_ready(kube: FakeKube, api: KubeApi) -> None:
    waiting = WaitingPods(api, keep_seconds=1000)
    put(kube, "base-0-1")
    assert len((await waiting.explained(GROUPED, snapshot(FIRST)))[1]) == 1
    put(kube, "base-0-2", index="2")
    assert len((await waiting.explained(GROUPED, snapshot(FIRST)))[1]) == 1
    await waiting.explained(GROUPED, snapshot(v.pod("base-0")))
    assert len((await waiting.explained(GROUPED, snapshot(FIRST)))[1]) == 2


async def test_api_server_that_does_not_tell_costs_nothing_else(kube: FakeKube, api: KubeApi) -> None:
    put(kube, "base-0-1")
    kube.is_away = True
    assert await WaitingPods(api).explained(GROUPED, snapshot(FIRST)) == ((FIRST,), ())
