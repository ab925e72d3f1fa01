"""What keeps a group's first pod may be another pod of it, which is asked for while the first is not ready."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from kubernetes.aio.client import Configuration
from support import operator_views as v
from support.fake_kube import FakeKube

from lorafleet_common.kube.client import KubeApi
from lorafleet_operator.act.admin_client import AdminClient
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


class Host:
    """The port of a further pod."""

    def __init__(self) -> None:
        self.body = ""
        self.asked: list[dict[str, str]] = []

    async def ready(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.headers))
        return web.Response(text=self.body, status=503, content_type="application/json")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    made, app = Host(), web.Application()
    app.router.add_get("/ready", made.ready)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined,union-attr]
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture
async def client(host: Host) -> AsyncIterator[AdminClient]:
    made = AdminClient(hosts_port=host.port)  # type: ignore[attr-defined]
    yield made
    await made.close()


def snapshot(*pods: Pod) -> Snapshot:
    return replace(v.snapshot(base=GROUPED), pods=pods)


def put(
    kube: FakeKube,
    name: str,
    *,
    index: str = "1",
    reason: str = "ImagePullBackOff",
    status: dict[str, Any] | None = None,
    **labels: str,
) -> None:
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
    kube.put("pods", {"metadata": metadata, "status": status or {"phase": "Pending", "containerStatuses": [engine]}})


async def test_they_are_told_by_name_with_what_keeps_them(kube: FakeKube, api: KubeApi, client: AdminClient) -> None:
    put(kube, "base-0-2", index="2")
    put(kube, "base-0-1")
    put(kube, "base-0", index="0", **{"lorafleet.io/base": "base"})
    put(kube, "stranger", **{"leaderworkerset.sigs.k8s.io/name": "another"})
    firsts, further = await WaitingPods(api, client).explained(GROUPED, snapshot(FIRST))
    assert firsts == (FIRST,)
    assert [(pod.name, pod.problem) for pod in further] == [
        ("base-0-1", "ImagePullBackOff"),
        ("base-0-2", "ImagePullBackOff"),
    ]


async def test_events_say_what_keeps_one_that_is_being_created(
    kube: FakeKube, api: KubeApi, client: AdminClient
) -> None:
    put(kube, "base-0-1", reason="ContainerCreating")
    event = {"metadata": {"name": "about", "namespace": "team"}, "type": "Warning", "reason": "FailedMount"}
    kube.put("events", {**event, "message": "no such claim", "involvedObject": {"uid": "uid-base-0-1"}})
    _, (found,) = await WaitingPods(api, client).explained(GROUPED, snapshot(FIRST))
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
    kube: FakeKube, api: KubeApi, client: AdminClient, base: Any, pods: tuple[Pod, ...]
) -> None:
    put(kube, "base-0-1")
    assert await WaitingPods(api, client).explained(base, snapshot(*pods)) == (pods, ())


async def test_an_answer_is_good_for_a_while_and_until_all_are_ready(
    kube: FakeKube, api: KubeApi, client: AdminClient
) -> None:
    waiting = WaitingPods(api, client, keep_seconds=1000)
    put(kube, "base-0-1")
    assert len((await waiting.explained(GROUPED, snapshot(FIRST)))[1]) == 1
    put(kube, "base-0-2", index="2")
    assert len((await waiting.explained(GROUPED, snapshot(FIRST)))[1]) == 1
    await waiting.explained(GROUPED, snapshot(v.pod("base-0")))
    assert len((await waiting.explained(GROUPED, snapshot(FIRST)))[1]) == 2


async def test_api_server_that_does_not_tell_costs_nothing_else(
    kube: FakeKube, api: KubeApi, client: AdminClient
) -> None:
    put(kube, "base-0-1")
    kube.is_away = True
    assert await WaitingPods(api, client).explained(GROUPED, snapshot(FIRST)) == ((FIRST,), ())


def running(kube: FakeKube, name: str = "base-0-1") -> None:
    """A further pod whose engine runs and is not ready."""
    scheduled = {"type": "PodScheduled", "status": "True"}
    engine = {"name": "engine", "state": {"running": {}}, "started": True}
    status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [scheduled], "containerStatuses": [engine]}
    put(kube, name, status=status)


async def test_how_far_a_further_pod_is_it_says_itself(
    kube: FakeKube, api: KubeApi, client: AdminClient, host: Host
) -> None:
    running(kube)
    waiting = WaitingPods(api, client, keep_seconds=0)

    async def stage(body: str) -> str:
        host.body = body
        (found,) = (await waiting.explained(GROUPED, snapshot(FIRST)))[1]
        return found.stage

    assert (
        await stage('{"status": "Downloading 12 %", "start": {"step": "Downloading", "percent": 12}}')
        == "Downloading 12 %"
    )
    assert await stage('{"status": "x", "start": {"step": "Downloading", "percent": 90}}') == "Downloading 12 %", (
        "not yet"
    )
    assert await stage('{"status": "waiting"}') == ""
    assert (
        await stage('{"status": "Downloading 20 %", "start": {"step": "Downloading", "percent": 20}}')
        == "Downloading 20 %"
    )
    assert await stage('{"status": "x", "start": {"step": "<b>", "percent": 12}}') == "", (
        "its owner's image says what it likes"
    )
    assert await stage("x" * (1 << 17)) == ""
    assert "authorization" not in {name.lower() for asked in host.asked for name in asked}


async def test_one_that_is_kept_by_something_is_not_asked(
    kube: FakeKube, api: KubeApi, client: AdminClient, host: Host
) -> None:
    put(kube, "base-0-1")
    await WaitingPods(api, client).explained(GROUPED, snapshot(FIRST))
    assert not host.asked
