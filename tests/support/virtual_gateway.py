"""A gateway in a virtual fleet: the real directory, reflectors, polls and dispatch; only sockets are not there.

Each request is judged when it ends: it must have been answered by a revision that the adapter's status has named.
"""

import asyncio
import copy
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from multidict import CIMultiDict, CIMultiDictProxy
from support.virtual_network import LATENCY_SECONDS, Network, RememberingKube, VirtualKube

from lorafleet_common.kube.client import Event
from lorafleet_common.kube.errors import KubeExpired, KubeUnavailable
from lorafleet_contract.admin import AdapterState
from lorafleet_contract.evidence import ErrorClass
from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.routes import RouteAdapter, Routes
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.errors import RequestError
from lorafleet_gateway.fleet.pods import Fleet, Pod
from lorafleet_gateway.front.dispatch import Dispatcher, Route
from lorafleet_gateway.front.evidence import Ledger, RevisionKey
from lorafleet_gateway.front.holding import Holding
from lorafleet_gateway.front.outcomes import Broken, Refusal, Silent, Unreachable
from lorafleet_gateway.front.retry import Offers
from lorafleet_gateway.views import Endpoint

if TYPE_CHECKING:
    from support.virtual_fleet import VirtualFleet, VirtualPod

MAX_ATTEMPTS: Final = 4
RETRY_SECONDS: Final = 10.0
HOLD_SECONDS: Final = 2.0
"""How long a pod holds a request whose adapter loads."""
IDLE_SECONDS: Final = 30.0
"""A pod that says nothing for longer is given up."""
POLL_SECONDS: Final = 5.0
RECOVERY_SECONDS: Final = 10.0
STALE_SECONDS: Final = 3.0
"""So late a gateway that is cut off from nothing may know of a switch: the latest events, and a look-up's second."""


class WatchedKube(VirtualKube):
    """The API server as a gateway reaches it: also by watches, whose events come late, in order, or not at all."""

    async def watch(
        self, path: str, *, version: int, labels: str | None = None, fields: str | None = None
    ) -> AsyncIterator[Event]:
        await self._reach(3.0)
        plural, position = path.rsplit("/", 1)[-1], 0
        assert isinstance(self._kube, RememberingKube)
        if version < self._kube.oldest:
            raise KubeExpired(410, "Expired", "too old")
        while True:
            while position == len(self._kube.history):
                await self._kube.changed.wait()
            event, kind, body = self._kube.history[position]
            position += 1
            if kind == plural and int(body["metadata"]["resourceVersion"]) > version:
                await asyncio.sleep(self._network.event_seconds)
                await self._arrives()
                yield Event(event, copy.deepcopy(body))

    async def _arrives(self) -> None:
        """Wait as for a connection that says nothing, until it is given up."""
        for _ in range(25):
            if self._network.has_cluster and not self._network.is_deaf:
                return
            await asyncio.sleep(3.0)
        raise KubeUnavailable(0, "TimeoutError", "a watch that says nothing")


class VirtualPolls(Fleet):
    """Pods as the gateway asks them what they hold."""

    def __init__(self, fleet: "VirtualFleet", network: Network) -> None:
        super().__init__()
        self._fleet = fleet
        self._network = network

    async def close(self) -> None:
        polls = list(self._polls.values())
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)

    async def _get_routes(self, endpoint: Endpoint, query: dict[str, str]) -> bytes:
        async with asyncio.timeout(POLL_SECONDS):
            await asyncio.sleep(LATENCY_SECONDS)
            pod = self._fleet.pod_at(endpoint.pod)
            if pod is None:
                raise ConnectionRefusedError
            await self._network.passage(endpoint.pod)
            await pod._awake.wait()
            if query.get("boot_id") == pod.boot_id:
                await pod.wait_for_news(int(query["after"]), float(query["wait_seconds"]))
            if pod.is_closed:
                raise ConnectionResetError
            await self._network.passage(endpoint.pod)
            return routes_of(pod, query).model_dump_json(by_alias=True, exclude_none=True).encode()


def routes_of(pod: "VirtualPod", query: dict[str, str]) -> Routes:
    """What a pod publishes."""
    is_known = (query.get("boot_id"), query.get("after")) == (pod.boot_id, str(pod.generation))
    found = [entry.observed() for _, entry in sorted(pod.entries.items())]
    adapters = {
        (one.name, one.revision): RouteAdapter(name=one.name, revision=one.revision, stable=one.stable, tier=one.tier)
        for one in found
        if one.state is AdapterState.READY
    }
    difference = None if is_known else pod.since(query, pod.routed, adapters)
    since, changed, removed = difference or (None, adapters.keys(), [])
    return Routes(
        boot_id=pod.boot_id,
        generation=pod.generation,
        base="base",
        ready=pod.is_ready,
        draining=pod.is_draining,
        max_model_len=2048,
        adapters=None if is_known else [one for key, one in adapters.items() if key in changed],
        since=since,
        removed=removed,
    )


@dataclass
class Asked:
    """One request, and what came of it."""

    name: str
    began: float
    revision: str | None = None
    """Which answered."""
    error: str = ""
    """The class of the error; empty when it was answered."""
    was_left_to_pods: bool = False


@dataclass
class VirtualGateway:
    """One gateway; `ask` begins a request, and what must never come of one is noted in the fleet's faults."""

    fleet: "VirtualFleet"
    network: Network = field(default_factory=Network)
    num_answered: int = 0
    num_asked: int = 0
    fails: dict[str, ErrorClass] = field(default_factory=dict)
    """Revision -> how each of its answers goes wrong."""
    first_byte_seconds: dict[str, float] = field(default_factory=dict)
    """Revision -> how long its answers take to begin; others take a moment."""

    def __post_init__(self) -> None:
        self.polls = VirtualPolls(self.fleet, self.network)
        self.cluster = Cluster(WatchedKube(self.fleet.kube, self.network), self.polls, ())
        self.ledger = Ledger(clock=asyncio.get_running_loop().time)
        self._dispatcher = Dispatcher(
            self.cluster, Holding(self.cluster.fleet, self.ledger.advance), any_revision=False
        )
        self._following = asyncio.create_task(self.cluster.follow())
        self._requests: set[asyncio.Task[Asked]] = set()
        self._disturbed_at = float("-inf")

    async def close(self) -> None:
        for task in (*self._requests, self._following):
            task.cancel()
        await asyncio.gather(*self._requests, self._following, return_exceptions=True)
        await self.polls.close()

    @property
    def is_disturbed(self) -> bool:
        """Whether it may know less than a gateway has to."""
        network = self.network
        return not network.has_cluster or network.is_deaf or network.event_seconds > 1.0 or bool(network.unreachable)

    def begin(self, name: str) -> None:
        """Begin a request and do not wait for it."""
        task = asyncio.create_task(self.ask(name))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def ask(self, name: str) -> Asked:
        """Make a request for a model, and judge what comes of it."""
        loop = asyncio.get_running_loop()
        route, asked = Route(Offers(MAX_ATTEMPTS, RETRY_SECONDS)), Asked(name, loop.time())

        async def ask(pod: Pod) -> str | Refusal:
            return await self._ask_pod(pod, name, route.revision)

        try:
            self.num_asked += 1
            await self._dispatcher.find(route, name, f"request-{self.num_asked}")
            answer = await self._dispatcher.offer(route, ask, elapsed_seconds=lambda: loop.time() - asked.began)
        except RequestError as error:
            asked.error = type(error).__name__
            return asked
        asked.was_left_to_pods = route.leaves_revision_to_pods
        if isinstance(answer, Refusal):
            asked.error = answer.code
            return asked
        asked.revision = answer
        self._count(route, answer)
        self.num_answered += 1
        self.fleet.judge(asked, is_disturbed=self._was_disturbed(asked.began))
        return asked

    def _count(self, route: Route, revision: str) -> None:
        """Count an answer as evidence of the revision, as the proxy does."""
        target = route.target
        if target is None or target.adapter is None:
            return
        seconds = self.first_byte_seconds.get(revision, 0.05)
        key, error = RevisionKey(target.base_key, target.adapter, revision), self.fails.get(revision)
        self.ledger.add(key, error, first_byte_seconds=seconds, seconds=seconds)

    def disturbed_at(self, time: float) -> None:
        """Its network is changed."""
        self._disturbed_at = time

    def heal(self) -> None:
        """Everything arrives again."""
        if self.is_disturbed:
            self.disturbed_at(self._following.get_loop().time())
        self.network.heal()

    def _was_disturbed(self, since: float) -> bool:
        """Whether it may have known less than a gateway has to while a request ran: it takes a while to hear again."""
        return self.is_disturbed or self._disturbed_at > since - RECOVERY_SECONDS

    async def _ask_pod(self, pod: Pod, name: str, revision: str | None) -> str | Refusal:
        """Ask a pod; return the revision that it answers with."""
        await asyncio.sleep(LATENCY_SECONDS)
        found = self.fleet.pod_at(pod.endpoint.pod)
        if found is None:
            raise Unreachable("connection refused")
        boot = found.boot_id
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self.network.passage(pod.endpoint.pod)
                await found._awake.wait()
                answer = await found.generate(name, revision, HOLD_SECONDS)
                await asyncio.sleep(LATENCY_SECONDS)
                await self.network.passage(pod.endpoint.pod)
        except TimeoutError:
            raise Silent("nothing came") from None
        if found.is_closed or found.boot_id != boot:
            raise Broken("the pod was lost")
        self.cluster.fleet.answered(pod, failed=False)
        if isinstance(answer, ErrorCode):
            return Refusal(answer, 503, CIMultiDictProxy(CIMultiDict()), b"{}")
        return answer


def endpoint_slice(base: str, pods: list[dict[str, Any]]) -> dict[str, Any]:
    """What the EndpointSlice controller writes of the pods of a base."""
    endpoints = []
    for pod in pods:
        meta, status = pod["metadata"], pod["status"]
        is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])
        is_leaving = "deletionTimestamp" in meta
        endpoints.append(
            {
                "addresses": [status["podIP"]],
                "conditions": {"ready": is_ready and not is_leaving, "terminating": is_leaving},
                "targetRef": {"kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
            }
        )
    return {
        "metadata": {
            "name": f"{base}-pods",
            "namespace": "team",
            "labels": {"lorafleet.io/base": base, "lorafleet.io/role": "pods"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8000}],
    }
