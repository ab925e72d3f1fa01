"""A gateway in this process, between a small API server and small pods."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from support.kube_api import KubeDouble, kube_double
from support.upstream_pods import REVISION, PodDouble, pod_double

from lorafleet_common.keys.guard import Guard
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.sockets import bind
from lorafleet_common.tracing import OFF, Tracing
from lorafleet_common.web_ports import Limits
from lorafleet_contract.names import LABEL_BASE, LABEL_ROLE
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.fleet.pods import Fleet
from lorafleet_gateway.front.monitoring import Monitoring
from lorafleet_gateway.front.server import FrontDoor, open_port
from lorafleet_gateway.front.state import State
from lorafleet_gateway.front.upstream import Upstream

NAMESPACE = "team"
BASE = "numerals"


async def eventually(what: str, look: Callable[[], Any], timeout_seconds: float = 60) -> None:
    """Wait until something is true."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while not look():
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not after {timeout_seconds} s"
        await asyncio.sleep(0.01)


@dataclass
class World:
    """All parts of a test."""

    kube: KubeDouble
    stack: AsyncExitStack
    pods: list[PodDouble] = field(default_factory=list)
    cluster: Cluster | None = None
    state: State | None = None
    client: httpx.AsyncClient | None = None
    metrics_url: str = ""
    door: FrontDoor | None = None

    def base(self, name: str = BASE, **body: Any) -> None:
        status = {"servedName": name, **body.pop("status", {})}
        spec = {"model": {"volume": {"claimName": "models", "path": name}}, **body.pop("spec", {})}
        self.kube.put("basemodeldeployments", NAMESPACE, name, spec=spec, status=status, **body)

    def adapter(self, name: str, *, namespace: str = NAMESPACE, base: str = BASE, **body: Any) -> None:
        status = {"servedName": name, "stableRevision": REVISION, **body.pop("status", {})}
        status = {key: value for key, value in status.items() if value is not None}
        ref = {"name": base} if namespace == NAMESPACE else {"name": base, "namespace": NAMESPACE}
        spec = {"baseModelRef": ref, "source": {"name": "models", "path": name}}
        self.kube.put("loraadapters", namespace, name, spec=spec, status=status, **body)

    async def pod(self, name: str) -> PodDouble:
        pod = await self.stack.enter_async_context(pod_double(name))
        self.pods.append(pod)
        return pod

    def endpoints(self, *pods: PodDouble, ready: bool = True, base: str = BASE) -> None:
        """One slice for each pod: on one machine pods differ by port, and a slice has one port."""
        for pod in pods:
            endpoint = {
                "addresses": ["127.0.0.1"],
                "conditions": {"ready": ready, "terminating": False},
                "targetRef": {"kind": "Pod", "name": pod.name, "uid": pod.uid},
            }
            self.kube.put(
                "endpointslices",
                NAMESPACE,
                f"{base}-pods-{pod.name}",
                labels={LABEL_BASE: base, LABEL_ROLE: "pods"},
                addressType="IPv4",
                endpoints=[endpoint],
                ports=[{"name": "http", "port": pod.port}],
            )

    async def open(
        self, *, waits: bool = True, guard: Guard | None = None, tracing: Tracing = OFF, **options: Any
    ) -> httpx.AsyncClient:
        """Open the gateway and wait until it is ready."""
        config = GatewayConfig(host="127.0.0.1", port=0, metrics_port=0, **options)
        api = KubeApi(self.kube.configuration)
        upstream = Upstream(
            connect_timeout_seconds=config.connect_timeout_seconds, idle_timeout_seconds=config.idle_timeout_seconds
        )
        self.stack.push_async_callback(api.close)
        self.stack.push_async_callback(upstream.close)
        fleet = await self.stack.enter_async_context(Fleet())
        self.cluster = Cluster(api, fleet, config.watch_namespaces)
        self.state = State(max_in_flight=config.max_in_flight, max_held_bytes=config.max_held_bytes)
        listener = self.stack.enter_context(bind(config.host, config.port, option="--port"))
        metrics_listener = self.stack.enter_context(bind(config.host, config.metrics_port, option="--metrics-port"))
        self.metrics_url = f"http://127.0.0.1:{metrics_listener.getsockname()[1]}/metrics"
        door = self.door = FrontDoor(config, self.cluster, upstream, self.state, guard, tracing=tracing)
        limits = Limits(config.max_connections, config.client_timeout_seconds)
        for handler, one in ((door.handle, listener), (Monitoring(door).handle, metrics_listener)):
            runner = await open_port(handler, one, limits)
            self.stack.push_async_callback(runner.cleanup)
        following = asyncio.create_task(self.cluster.follow())

        async def end() -> None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        self.stack.push_async_callback(end)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.client = await self.stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
        if waits:
            await eventually(
                "the gateway is ready", lambda: self.cluster is not None and not self.cluster.unready_reason()
            )
        return self.client

    async def ask(self, model: str = "french", **request: Any) -> httpx.Response:
        assert self.client is not None
        headers = request.pop("headers", {})
        return await self.client.post("/v1/chat/completions", json={"model": model, **request}, headers=headers)

    def num_reachable(self, base: str = BASE) -> int:
        assert self.cluster is not None
        return sum(pod.is_reachable for pod in self.cluster.fleet.of((NAMESPACE, base)))

    def knows(self, name: str) -> bool:
        assert self.cluster is not None
        return self.cluster.directory.model(name) is not None


@asynccontextmanager
async def new_world() -> AsyncIterator[World]:
    async with kube_double() as kube, AsyncExitStack() as stack:
        yield World(kube, stack)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A base `numerals`, an adapter `french` on it, no pods, the gateway not opened."""
    async with new_world() as made:
        made.base()
        made.adapter("french")
        yield made
