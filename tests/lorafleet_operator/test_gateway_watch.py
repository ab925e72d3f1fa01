"""Gateways are heard while a rollout is judged by them: those that are silent, slow, gone or mad are told apart from good ones."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from kubernetes.aio.client import Configuration
from support.fake_kube import FakeKube
from support.simulated_fleet import until

from lorafleet_common.kube.client import KubeApi
from lorafleet_contract.evidence import Evidence, Latency, RevisionEvidence
from lorafleet_operator import metrics
from lorafleet_operator.act import gateway_client, gateway_watch
from lorafleet_operator.act.gateway_client import GatewayClient
from lorafleet_operator.act.gateway_watch import GatewayWatch
from lorafleet_operator.decide.evidence import RowKey
from lorafleet_operator.errors import GatewaySilent

OURS = "lorafleet-system"
LABELS = {"app.kubernetes.io/name": "lorafleet", "app.kubernetes.io/component": "gateway"}
SELECTOR = ",".join(f"{name}={value}" for name, value in LABELS.items())
BASE = ("team", "base")
KEY = RowKey("team", "base", "french", "bbbbbbbbbbbb")
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def document(requests: int, *, boot: str, sequence: int, num_rows: int = 1) -> dict[str, Any]:
    latency = Latency(sum_seconds=1.0, buckets=[requests, 0])
    row = RevisionEvidence(
        namespace=KEY.namespace,
        base=KEY.base,
        adapter=KEY.adapter,
        revision=KEY.revision,
        began=1,
        num_requests=requests,
        first_byte=latency,
        whole=latency,
    )
    told = Evidence(boot_id=boot, sequence=sequence, bounds_seconds=[0.5], revisions=[row] * num_rows)
    return told.model_dump(mode="json", by_alias=True)


class Gateway:
    """A gateway's metrics port at an address of the loopback."""

    def __init__(self, ip: str) -> None:
        self.ip, self.boot, self.requests = ip, "boot-1", 0
        self.queries: list[dict[str, str]] = []
        self.answer: Answer | None = None
        """What it does instead."""
        self.news = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> int:
        app = web.Application()
        app.router.add_get("/v1/evidence", self._evidence)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.ip, port).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def count(self, number: int) -> None:
        self.requests += number
        self.news.set()

    async def _evidence(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        if self.answer is not None:
            return await self.answer(request)
        is_known = request.query.get("boot_id") == self.boot
        if is_known and request.query["after"] == str(self.requests):
            self.news.clear()
            try:
                async with asyncio.timeout(float(request.query["wait_seconds"])):
                    await self.news.wait()
            except TimeoutError:
                pass
        num_rows = 0 if is_known and request.query["after"] == str(self.requests) else 1
        told = document(self.requests, boot=self.boot, sequence=self.requests, num_rows=num_rows)
        return web.json_response(told)


class World:
    """Gateways, the API server that knows their pods, and who watches them."""

    def __init__(self, kube: FakeKube, api: KubeApi) -> None:
        self.kube, self.api, self.port = kube, api, 0
        self.gateways: list[Gateway] = []
        self.watches: list[GatewayWatch] = []

    async def gateway(self, *, ready: bool = True) -> Gateway:
        number = len(self.gateways) + 1
        made = Gateway(f"127.84.0.{number}")
        self.gateways.append(made)
        self.port = await made.start(self.port)
        self.pod(made, ready=ready)
        return made

    def pod(self, gateway: Gateway, *, ready: bool = True, **more: Any) -> None:
        name = f"gateway-{gateway.ip}"
        metadata = {"name": name, "namespace": OURS, "uid": f"uid-{gateway.ip}", "labels": LABELS, **more}
        conditions = [{"type": "Ready", "status": str(ready)}]
        status = {"phase": "Running", "podIP": gateway.ip, "conditions": conditions}
        self.kube.put("pods", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status})

    def watch(self, selector: str = SELECTOR) -> GatewayWatch:
        made = GatewayWatch(self.api, namespace=OURS, selector=selector, port=self.port)
        self.watches.append(made)
        return made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths of them."""
    monkeypatch.setattr(gateway_watch, "LIST_SECONDS", 0.05)
    monkeypatch.setattr(gateway_watch, "NEWS_SECONDS", 0.01)
    monkeypatch.setattr(gateway_watch, "SILENT_SECONDS", 1.5)
    monkeypatch.setattr(gateway_client, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(gateway_client, "ANSWER_SECONDS", 0.5)


@pytest_asyncio.fixture
async def world(quick: None) -> AsyncIterator[World]:
    kube = FakeKube()
    await kube.start()
    api = KubeApi(Configuration(host=kube.url))
    made = World(kube, api)
    yield made
    for watch in made.watches:
        await watch.close()
    for gateway in made.gateways:
        await gateway.stop()
    await api.close()
    await kube.stop()


def numbers(watch: GatewayWatch) -> tuple[int, int]:
    hearing = watch.hearing()
    return hearing.num_gateways, hearing.num_silent


def counted(watch: GatewayWatch) -> int:
    return watch.hearing().tally.total(KEY).requests


def measured(state: str) -> float:
    value = metrics.REGISTRY.get_sample_value("lorafleet_operator_gateways", {"state": state})
    assert value is not None
    return value


async def test_gateways_are_asked_while_a_rollout_is_judged_and_no_longer(world: World) -> None:
    one, two = await world.gateway(), await world.gateway()
    one.count(1000)
    stranger = {"metadata": {"name": "x", "namespace": OURS, "labels": {"app.kubernetes.io/name": "lorafleet"}}}
    world.kube.put("pods", {**stranger, "status": {"podIP": "127.84.9.9", "phase": "Running"}})
    watch = world.watch()
    watch.follow(("team", "other"), set())
    assert watch.obstacle == "gateways are not listed yet"
    await asyncio.sleep(0.2)
    assert not one.queries
    watch.follow(BASE, {KEY})
    await until("heard", lambda: numbers(watch) == (2, 0))
    assert watch.obstacle is None
    assert counted(watch) == 0, "what was counted before is where counting begins"
    assert "after" not in one.queries[0]
    one.count(3)
    two.count(4)
    await until("counted", lambda: counted(watch) == 7)
    assert (one.queries[-1]["boot_id"], one.queries[-1]["wait_seconds"]) == ("boot-1", "1")
    await until("measured", lambda: (measured("heard"), measured("silent")) == (2, 0))
    watch.follow(BASE, set())
    assert numbers(watch) == (0, 0)
    num_queries = len(one.queries) + len(two.queries)
    one.count(500)
    await asyncio.sleep(0.3)
    assert len(one.queries) + len(two.queries) == num_queries
    assert measured("heard") == 0
    assert watch.hearing().tally.num_kept == 0
    watch.follow(BASE, {KEY})
    await until("heard", lambda: numbers(watch) == (2, 0))
    assert counted(watch) == 0, "nobody has judged meanwhile: counting begins anew"


async def test_a_revision_that_is_judged_later_is_counted_from_a_whole_answer(world: World) -> None:
    """The long poll leaves out what has not changed; where counting begins has to be asked for."""
    it = await world.gateway()
    it.count(1000)
    watch = world.watch()
    other = RowKey("team", "other", "german", "aaaaaaaaaaaa")
    watch.follow(("team", "other"), {other})
    await until("heard", lambda: numbers(watch) == (1, 0))
    await until("asked for news", lambda: "after" in it.queries[-1])
    watch.follow(BASE, {KEY})
    it.count(1)
    await until("asked for all once more", lambda: sum("after" not in query for query in it.queries) == 2)
    await until("asked for news", lambda: "after" in it.queries[-1])
    it.count(5)
    await until("counted", lambda: counted(watch) == 5)
    watch.follow(("team", "other"), set())
    watch.follow(BASE, {KEY})
    it.count(2)
    await until("counted", lambda: counted(watch) == 7)
    assert sum("after" not in query for query in it.queries) == 2, "nothing else is asked for whole"


async def test_one_that_hangs_is_silent_and_delays_no_other(world: World) -> None:
    good, hanging = await world.gateway(), await world.gateway()

    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    hanging.answer = hang
    watch = world.watch()
    watch.follow(BASE, {KEY})
    await until("heard", lambda: numbers(watch) == (2, 1))
    for number in range(1, 4):
        good.count(1)
        await until("counted", lambda number=number: counted(watch) == number, seconds=10)  # type: ignore[misc]
    await until("measured", lambda: measured("silent") == 1)
    hanging.answer = None
    await until("heard at last", lambda: numbers(watch) == (2, 0))


async def test_one_that_falls_silent_and_comes_back_loses_nothing(world: World) -> None:
    it = await world.gateway()
    watch = world.watch()
    watch.follow(BASE, {KEY})
    await until("heard", lambda: numbers(watch) == (1, 0))
    await it.stop()
    it.count(5)
    await until("silent", lambda: numbers(watch) == (1, 1))
    age = metrics.REGISTRY.get_sample_value("lorafleet_operator_gateway_evidence_age_seconds")
    assert age is not None
    assert age > 1
    world.pod(it, ready=False)
    await asyncio.sleep(0.2)
    assert numbers(watch) == (1, 1), "the kubelet says so too: it has answered before, and exists"
    await it.start(world.port)
    await until("heard again", lambda: numbers(watch) == (1, 0))
    assert counted(watch) == 5
    assert watch.hearing().tally.num_restarts == 0


async def test_one_that_restarts_in_its_pod_is_told_of(world: World) -> None:
    it = await world.gateway()
    it.count(100)
    watch = world.watch()
    watch.follow(BASE, {KEY})
    await until("heard", lambda: numbers(watch) == (1, 0))
    await it.stop()
    it.boot, it.requests = "boot-2", 4
    await it.start(world.port)
    await until("counted", lambda: counted(watch) == 4)
    assert watch.hearing().tally.num_restarts == 1


async def test_which_gateways_are_to_be_heard(world: World) -> None:
    """A pod that starts has answered nobody; one that is deleted is read until it ends, and then only what it said counts."""
    it, starting = await world.gateway(), await world.gateway(ready=False)
    await starting.stop()
    watch = world.watch()
    watch.follow(BASE, {KEY})
    await until("heard", lambda: numbers(watch) == (1, 0))
    await starting.start(world.port)
    await until("both heard", lambda: numbers(watch) == (2, 0))
    world.pod(it, deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["x/y"])
    await until("not counted", lambda: numbers(watch) == (1, 0))
    it.count(6)
    await until("read all the same", lambda: counted(watch) == 6)
    world.kube.objects.pop(("pods", OURS, f"gateway-{it.ip}"))
    await asyncio.sleep(0.3)
    num_queries = len(it.queries)
    it.count(7)
    await asyncio.sleep(0.2)
    assert (len(it.queries), counted(watch)) == (num_queries, 6)
    status = {"phase": "Failed", "podIP": it.ip, "conditions": [{"type": "Ready", "status": "True"}]}
    evicted = {"metadata": {"name": "evicted", "namespace": OURS, "labels": LABELS}, "status": status}
    world.kube.put("pods", evicted)
    await asyncio.sleep(0.2)
    assert numbers(watch) == (1, 0)


async def test_without_a_list_all_are_silent_in_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.gateway()
    watch = world.watch()
    world.kube.forbid(OURS, "pods")
    watch.follow(BASE, {KEY})
    await until("refused", lambda: "cannot be listed" in (watch.obstacle or ""))
    assert numbers(watch) == (0, 0)
    world.kube.permit(OURS)
    await until("heard", lambda: numbers(watch) == (1, 0))
    world.kube.is_away = True
    await asyncio.sleep(0.3)
    assert numbers(watch) == (1, 0), "not at once"
    monkeypatch.setattr(gateway_watch, "MAX_LIST_AGE_SECONDS", 0.1)
    await until("silent", lambda: numbers(watch) == (1, 1))
    world.kube.is_away = False
    monkeypatch.setattr(gateway_watch, "MAX_LIST_AGE_SECONDS", 15.0)
    await until("heard", lambda: numbers(watch) == (1, 0))


async def test_nobody_is_asked_without_a_selector_and_none_may_match(world: World) -> None:
    it = await world.gateway()
    blind = world.watch(selector="")
    blind.follow(BASE, {KEY})
    assert blind.obstacle == "no gateway is asked: the operator has no --gateway-selector"
    other = world.watch(selector="app.kubernetes.io/component=door")
    other.follow(BASE, {KEY})
    await until("listed", lambda: "has the gateways' labels" in (other.obstacle or ""))
    assert numbers(blind) == numbers(other) == (0, 0)
    assert not it.queries


async def test_more_gateways_than_are_asked_are_silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_watch, "MAX_GATEWAYS", 2)
    made = [await world.gateway() for _ in range(3)]
    watch = world.watch()
    watch.follow(BASE, {KEY})
    await until("heard", lambda: numbers(watch) == (3, 1))
    assert [bool(it.queries) for it in made] == [True, True, False]
    world.kube.objects.pop(("pods", OURS, f"gateway-{made[0].ip}"))
    await until("the third instead", lambda: numbers(watch) == (2, 0))


@contextmanager
def raises_silent(match: str) -> Iterator[None]:
    with pytest.raises(GatewaySilent, match=match):
        yield


async def _endless(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse()
    await stream.prepare(request)
    try:
        while True:
            await stream.write(b"[" * 2**20)
    except ConnectionError:
        return stream


async def _drips(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse()
    await stream.prepare(request)
    try:
        while True:
            await stream.write(b" ")
            await asyncio.sleep(0.05)
    except ConnectionError:
        return stream


async def _packed(_: web.Request) -> web.StreamResponse:
    body = gzip.compress(json.dumps(document(1, boot="b", sequence=1)).encode())
    return web.Response(body=body, headers={"content-encoding": "gzip", "content-type": "application/json"})


def _said(**change: Any) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({**document(1, boot="b", sequence=1), **change})

    return answer


def _row_said(**change: Any) -> Answer:
    row = document(1, boot="b", sequence=1)["revisions"][0]
    return _said(revisions=[{**row, **change}])


async def _redirects(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        pytest.param(_endless, "longer than", id="endless"),
        pytest.param(_drips, "TimeoutError", id="drips"),
        pytest.param(_packed, "no evidence", id="packed"),
        pytest.param(_redirects, "answers 302", id="redirects"),
        pytest.param(_said(sequence="many"), "no evidence: sequence", id="other type"),
        pytest.param(_said(revisions=document(1, boot="b", sequence=1)["revisions"] * 5000), "5000 rows", id="rows"),
        pytest.param(_said(boundsSeconds=[2.0, 1.0]), "boundsSeconds", id="bounds that fall"),
        pytest.param(_row_said(firstByte={"sumSeconds": 1, "buckets": [1, 2, 3]}), "buckets", id="buckets"),
        pytest.param(_row_said(numRequests=-1), "do not fit", id="negative"),
        pytest.param(_row_said(firstByte={"sumSeconds": -1, "buckets": [1, 0]}), "do not fit", id="negative sum"),
        pytest.param(_row_said(firstByte={"sumSeconds": 1e300, "buckets": [1, 0]}), "do not fit", id="sum"),
        pytest.param(_row_said(errors={"server_error": 9}), "do not fit", id="more errors than requests"),
    ],
)
async def test_answers_that_make_no_sense_are_none(world: World, answer: Answer, match: str) -> None:
    it = await world.gateway()
    it.answer = answer
    client = GatewayClient(port=world.port)
    with raises_silent(match):
        await client.evidence(it.ip)
    it.answer = None
    assert (await client.evidence(it.ip)).boot_id == "boot-1"
    await client.close()


async def test_an_address_where_nobody_answers(world: World) -> None:
    it = await world.gateway()
    await it.stop()
    client = GatewayClient(port=world.port)
    with raises_silent("Connect"):
        await client.evidence(it.ip, ("boot-1", 1))
    await client.close()
