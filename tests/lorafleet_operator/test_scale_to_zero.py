"""A base goes without pods while nothing is asked, and comes back for a request that a gateway holds."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from support.fake_pod import FakePod
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, SYSTEM, Fleet, settled, simulated_fleet, until

from lorafleet_contract.evidence import Evidence, HeldRequests
from lorafleet_contract.reasons import Reason
from lorafleet_operator.act import autoscaling, gateway_client, gateway_watch
from lorafleet_operator.cluster.store import Kind

LABEL = {"app": "gateway"}
_addresses = itertools.count(1)


class Gateway:
    """A gateway's metrics port: it counts nothing and holds what a test says."""

    def __init__(self, fleet: Fleet, *, holds: bool = True) -> None:
        self.ip, self.name = f"127.85.0.{next(_addresses)}", "gateway-0"
        self.num_held = self.num_arrived = self.num_asked = self.sequence = 0
        self._fleet, self._holds = fleet, holds
        self._news = asyncio.Event()
        self._runner: web.AppRunner | None = None

    def hold(self, number: int) -> None:
        """So many requests have found no pod, and wait."""
        self.num_held += number
        self.num_arrived += number
        self.told()

    def let_go(self) -> None:
        """They were answered."""
        self.num_held = 0
        self.told()

    def told(self) -> None:
        self.sequence += 1
        self._news.set()

    async def start(self, port: int = 0) -> int:
        app = web.Application()
        app.router.add_get("/v1/evidence", self._evidence)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.ip, port).start()
        metadata = {"name": self.name, "namespace": SYSTEM, "uid": f"uid-{self.ip}", "labels": LABEL}
        status = {"phase": "Running", "podIP": self.ip, "conditions": [{"type": "Ready", "status": "True"}]}
        self._fleet.kube.put("pods", {"metadata": metadata, "status": status})
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _evidence(self, request: web.Request) -> web.Response:
        self.num_asked += 1
        if request.query.get("after") == str(self.sequence):
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), float(request.query["wait_seconds"]))
        row = HeldRequests(namespace=NAMESPACE, base=BASE, num_held=self.num_held, num_arrived=self.num_arrived)
        held = ([row] if self.num_arrived else []) if self._holds else None
        told = Evidence(boot_id="boot", sequence=self.sequence, bounds_seconds=[1.0], revisions=[], held=held)
        return web.json_response(told.model_dump(mode="json", by_alias=True, exclude_none=not self._holds))


class World:
    """A fleet, its gateway, and pods that come and go as the Deployment says."""

    def __init__(self, fleet: Fleet, gateway: Gateway, port: int) -> None:
        self.fleet, self.gateway = fleet, gateway
        self._config = replace(CONFIG, gateway_selector="app=gateway", gateway_port=port)

    async def operate(self, **options: Any) -> asyncio.Task[None]:
        return await self.fleet.operate(replace(self._config, **options))

    def base(self, **more: Any) -> None:
        zero = {"idleSeconds": 1, **more.pop("zero", {})}
        spec = {"minReplicas": 0, "maxReplicas": 2, "targetSequences": 10, "scaleDownAfterSeconds": 1, **more}
        self.fleet.base(autoscaling={**spec, "scaleToZero": zero})

    @property
    def scaled(self) -> tuple[int, str]:
        """How many pods the Deployment has, and why."""
        found = self.fleet.kube.find("deployments", NAMESPACE, BASE)
        status = self.fleet.kube.get(Kind.BASE, NAMESPACE, BASE).get("status", {}).get("autoscaling", {})
        number = -1 if found is None else found["spec"]["replicas"]
        return number, status.get("reason", "") if status.get("desiredReplicas") == number else ""

    async def go_to_zero(self) -> None:
        """Wait until no pod is asked for, and end the one that there is."""
        await until("no pod is asked for", lambda: self.scaled == (0, Reason.SCALED_TO_ZERO))
        for name in list(self.fleet.pods):
            await self.fleet.kill(name)
        await until("asleep", lambda: self.fleet.base_condition() == ("True", Reason.SCALED_TO_ZERO))

    async def wake(self) -> FakePod:
        await until("a pod is asked for", lambda: self.scaled == (1, Reason.WOKEN))
        return await self.fleet.pod()


@pytest_asyncio.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Looks are many times as frequent."""
    monkeypatch.setattr(autoscaling, "SAMPLE_SECONDS", 0.05)
    monkeypatch.setattr(gateway_watch, "NEWS_SECONDS", 0.02)
    monkeypatch.setattr(gateway_watch, "LIST_SECONDS", 0.2)
    monkeypatch.setattr(gateway_client, "WAIT_SECONDS", 1.0)
    async with simulated_fleet() as fleet:
        gateway = Gateway(fleet)
        port = await gateway.start()
        try:
            yield World(fleet, gateway, port)
        finally:
            await gateway.stop()


async def test_to_zero_and_back_for_a_request(world: World) -> None:
    """Nobody is told that anything is wrong, and the adapter answers as before."""
    fleet = world.fleet
    world.base()
    fleet.adapter("french")
    await world.operate()
    first = await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french"))
    revision = first.stable("french")
    await world.go_to_zero()
    await until("the adapter sleeps", lambda: fleet.condition("french") == ("True", Reason.SCALED_TO_ZERO))
    assert fleet.condition("french", "Available") == ("True", Reason.SCALED_TO_ZERO)
    assert fleet.condition("french", "Resident") == ("False", Reason.SCALED_TO_ZERO)
    assert fleet.base_condition("Available") == ("True", Reason.SCALED_TO_ZERO)
    assert fleet.status("french")["stableRevision"] == revision, "gateways go on knowing it"
    await settled(fleet)
    world.gateway.hold(2)
    await until("a pod is asked for", lambda: world.scaled == (1, Reason.WOKEN))
    status = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)["status"]["autoscaling"]
    assert status["message"] == "from 0 to 1: 2 requests held"
    await settled(fleet)
    assert fleet.condition("french") == ("True", Reason.SCALED_TO_ZERO), "it is on its way"
    second = await fleet.pod()
    await until("serves", lambda: fleet.condition("french") == ("True", Reason.SERVING))
    world.gateway.let_go()
    assert second.stable("french") == revision
    warnings = [
        body["reason"]
        for (kind, _, _), body in fleet.kube.objects.items()
        if kind == "events" and body["type"] != "Normal"
    ]
    assert warnings == []
    assert {"ScaledToZero", "Woken"} <= set(fleet.event_reasons())


async def test_what_is_asked_keeps_the_last_pod_however_short_it_takes(world: World) -> None:
    """Requests that begin and end between two looks are counted by the pod."""
    world.base(zero={"idleSeconds": 600})
    await world.operate()
    pod = await world.fleet.pod()
    await until("ready", lambda: world.fleet.base_condition() == ("True", Reason.PODS_READY))
    loop = asyncio.get_running_loop()
    end = loop.time() + 5
    while loop.time() < end:
        pod.num_requests += 1
        num_asked = pod.num_load_asked
        await until("looked at", lambda num_asked=num_asked: pod.num_load_asked > num_asked + 1)
        world.base(zero={"idleSeconds": 3})
    assert world.scaled[0] == 1
    await world.go_to_zero()


async def test_a_new_adapter_wakes_its_base_until_it_is_ready(world: World) -> None:
    """Without a pod its source could not be resolved, and no request would ever reach it."""
    fleet = world.fleet
    world.base()
    await world.operate()
    await fleet.pod()
    await world.go_to_zero()
    fleet.adapter("german")
    pod = await world.wake()
    await until("ready", lambda: fleet.condition("german") == ("True", Reason.SERVING))
    assert pod.names() == {"german"}
    await world.go_to_zero()
    fleet.adapter("german", "german-v2")
    await world.wake()
    await until("the new revision", lambda: fleet.condition("german") == ("True", Reason.SERVING))
    await world.go_to_zero()
    fleet.delete("german")
    await until("gone", lambda: fleet.is_gone("german"))
    assert world.scaled == (0, Reason.SCALED_TO_ZERO), "to forget it takes no pod"


async def test_what_cannot_be_loaded_does_not_keep_a_pod(world: World) -> None:
    fleet = world.fleet
    world.base()
    fleet.adapter("missing")
    await world.operate()
    await fleet.pod()
    await until(
        "refused", lambda: fleet.condition("missing")[0] == "False" and fleet.condition("missing", "Stalled")[1]
    )
    await world.go_to_zero()
    await settled(fleet)
    assert world.scaled == (0, Reason.SCALED_TO_ZERO)


async def test_the_next_operator_leaves_it_asleep_and_hears_who_waits(world: World) -> None:
    fleet = world.fleet
    world.base()
    operator = await world.operate()
    await fleet.pod()
    await world.go_to_zero()
    await fleet.end(operator)
    operator = await world.operate()
    await settled(fleet)
    assert world.scaled == (0, Reason.SCALED_TO_ZERO)
    await fleet.end(operator)
    world.gateway.hold(1)
    await world.operate()
    await world.wake()


async def test_a_pod_that_does_not_come_is_said(world: World) -> None:
    """For as long as requests are held it is on its way; then something is wrong."""
    fleet = world.fleet
    world.base(zero={"holdSeconds": 2})
    fleet.adapter("french")
    await world.operate()
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french"))
    await world.go_to_zero()
    world.gateway.hold(1)
    await until("a pod is asked for", lambda: world.scaled == (1, Reason.WOKEN))
    await until("late", lambda: fleet.condition("french") == ("False", Reason.NO_READY_PODS))


@pytest.mark.parametrize("why", ["old", "silent", "none"])
async def test_the_last_pod_stays_where_a_request_could_come_unnoticed(world: World, why: str) -> None:
    fleet = world.fleet
    if why == "old":
        world.gateway._holds = False
    if why == "silent":
        await world.gateway.stop()
    if why == "none":
        fleet.kube.delete("pods", SYSTEM, world.gateway.name)
    world.base()
    await world.operate()
    await fleet.pod()
    await until("it is said", lambda: fleet.base_condition("ScalingLimited") == ("True", Reason.GATEWAYS_SILENT))
    assert world.scaled[0] == 1


async def test_without_a_lower_bound_of_zero_no_gateway_is_asked(world: World) -> None:
    world.fleet.base(autoscaling={"minReplicas": 1, "maxReplicas": 2, "targetSequences": 10})
    await world.operate()
    pod = await world.fleet.pod()
    await until("looked at", lambda: pod.num_load_asked > 5)
    assert world.gateway.num_asked == 0
