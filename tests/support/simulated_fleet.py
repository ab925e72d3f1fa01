"""A cluster without Kubernetes: an API server and pods in memory, all over HTTP, and the real operator between them.

Only the watch is replaced: kopf and its traps are for tests on a real cluster.
"""

import asyncio
import contextlib
import copy
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes.aio.client import Configuration
from support.fake_kube import FakeKube
from support.fake_pod import FakePod, Library

from lorafleet_common.kube.client import KubeApi
from lorafleet_contract.names import LABEL_BASE
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.cluster.handlers import EventSink
from lorafleet_operator.cluster.keys import admin_key
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.scope import Scope
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.decide.objects import admin_token
from lorafleet_operator.process.health import Health
from lorafleet_operator.process.lead import lead

Json = dict[str, Any]
SETS, OF_SETS = "leaderworkersets", "leaderworkerset.sigs.k8s.io"
"""Plural, and the prefix of the labels that its controller gives to pods."""
NAMESPACE = "team"
SYSTEM = "system"
BASE = "base"
ADMIN_PORT = 18001
CONFIG = OperatorConfig(engine_image="engine:1", namespace=SYSTEM, pod_name="operator-0", resync_seconds=600)
"""No resync within a test that does not ask for one: it would heal what a test is to notice."""
API_VERSION = "lorafleet.io/v1alpha1"
_addresses = itertools.count(os.getpid() * 4096)
"""Each pod has an address of its own on the loopback, and test runs beside each other begin at different ones."""


class Fleet:
    """One base model in one namespace, its pods, and whoever operates it."""

    pod_class = FakePod

    def __init__(self, kube: FakeKube) -> None:
        self.kube = kube
        self.library = Library()
        self.pods: dict[str, FakePod] = {}
        """By name of the pod."""
        self._num_made = 0
        self.operators: list[asyncio.Task[None]] = []
        self.lease: Lease | None = None
        self.health = Health()
        self.event_seconds = 0.03
        """How late events come; with 0 they come before the answer to the write that they are of."""
        self._drops_events = False

    def base(self, name: str = BASE, namespace: str = NAMESPACE, *, created: str | None = None, **spec: Any) -> None:
        """Apply a BaseModelDeployment."""
        sources = [
            {"name": "models", "volume": {"claimName": "models"}},
            {"name": "hub", "huggingFace": {"repos": ["acme/*"]}},
        ]
        full = {"model": {"volume": {"claimName": "models"}}, "adapterSources": sources, "replicas": 1, **spec}
        metadata = {"name": name, "namespace": namespace, **({"creationTimestamp": created} if created else {})}
        self.kube.put(
            Kind.BASE, {"apiVersion": API_VERSION, "kind": "BaseModelDeployment", "metadata": metadata, "spec": full}
        )

    def adapter(
        self,
        name: str,
        path: str | None = None,
        *,
        namespace: str = NAMESPACE,
        base: Json | None = None,
        created: str | None = None,
        **spec: Any,
    ) -> None:
        """Apply a LoraAdapter."""
        full = {"baseModelRef": base or {"name": BASE}, "source": {"name": "models", "path": path or name}, **spec}
        metadata = {"name": name, "namespace": namespace, **({"creationTimestamp": created} if created else {})}
        self.kube.put(
            Kind.ADAPTER, {"apiVersion": API_VERSION, "kind": "LoraAdapter", "metadata": metadata, "spec": full}
        )

    def delete(self, name: str, namespace: str = NAMESPACE) -> None:
        """Delete a LoraAdapter."""
        self.kube.delete(Kind.ADAPTER, namespace, name)

    def is_gone(self, name: str) -> bool:
        """Whether a LoraAdapter is no more."""
        return self.kube.find(Kind.ADAPTER, NAMESPACE, name) is None

    def status(self, name: str, namespace: str = NAMESPACE) -> Json:
        """Status of a LoraAdapter."""
        status: Json = self.kube.get(Kind.ADAPTER, namespace, name)["status"]
        return status

    def condition(self, name: str, kind: str = "Ready", namespace: str = NAMESPACE) -> tuple[str, str]:
        """Status and reason of a condition of a LoraAdapter at its current generation; ("", "") without one."""
        body = self.kube.get(Kind.ADAPTER, namespace, name)
        return _condition(body, kind)

    def base_condition(self, kind: str = "Ready", name: str = BASE) -> tuple[str, str]:
        """As `condition`, of the base."""
        return _condition(self.kube.get(Kind.BASE, NAMESPACE, name), kind)

    def event_reasons(self) -> list[str]:
        """Reasons of all Events, sorted."""
        return sorted(b["reason"] for (kind, _, _), b in self.kube.objects.items() if kind == "events")

    def is_ready(self, *names: str) -> bool:
        """Whether all these adapters are Ready."""
        return all(self.condition(name)[0] == "True" for name in names)

    async def pod(self, base: str = BASE, **options: Any) -> FakePod:
        """Start a pod of a base: scheduled, running, and ready once its first catalogue has settled."""
        uid = self.kube.get(Kind.BASE, NAMESPACE, base)["metadata"]["uid"]
        key = await admin_key(self.api, namespace=SYSTEM, name=CONFIG.key_secret)
        pod = self.pod_class(self.library, token=admin_token(key, uid), **options)
        name, number = f"{base}-{self._num_made}", next(_addresses)
        self._num_made += 1
        ip = f"127.{64 + number // 62500 % 128}.{number // 250 % 250}.{number % 250 + 1}"
        await pod.listen(ip, public_port=None, admin_port=ADMIN_PORT)
        self.pods[name] = pod
        labels = {LABEL_BASE: base, "pod-template-hash": "1"}
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{base}-1", "uid": "rs", "controller": True}
        if self.kube.find(SETS, NAMESPACE, base) is not None:  # the first of a group
            labels = {LABEL_BASE: base, f"{OF_SETS}/name": base, f"{OF_SETS}/worker-index": "0"}
            owner |= {"kind": "StatefulSet", "name": base}
        metadata = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": str(uuid.uuid4()),
            "labels": labels,
            "ownerReferences": [owner],
        }
        started = {"name": "engine", "started": True, "ready": False, "state": {"running": {}}}
        status = {
            "podIP": ip,
            "phase": "Running",
            "conditions": [_pod_condition("PodScheduled", "True"), _pod_condition("Ready", "False")],
            "containerStatuses": [started],
        }
        self.kube.put(Kind.POD, {"metadata": metadata, "status": status})
        pod.on_ready = lambda: self._set_ready(name, "True")
        self.roll_out(base)
        return pod

    def restart(self, name: str) -> None:
        """The engine of a pod starts anew: another boot, not ready until told."""
        self._set_ready(name, "False")
        self.pods[name].restart()

    async def kill(self, name: str) -> None:
        """A pod is gone, from the network and from the API server."""
        await self.pods.pop(name).close()
        self.kube.delete(Kind.POD, NAMESPACE, name)
        self.roll_out(BASE)

    def roll_out(self, base: str) -> None:
        """What the controller of the Deployment, or of the LeaderWorkerSet, would write."""
        plural = "deployments" if self.kube.find(SETS, NAMESPACE, base) is None else SETS
        made = self.kube.find(plural, NAMESPACE, base)
        if made is None:
            return
        pods = [
            b
            for (kind, _, _), b in self.kube.objects.items()
            if kind == Kind.POD and b["metadata"]["labels"].get(LABEL_BASE) == base
        ]
        spec = made["spec"]
        template = spec["template"] if plural != SETS else spec["leaderWorkerTemplate"]["leaderTemplate"]
        annotations = template["metadata"]["annotations"]
        for pod in pods:  # each counts as one of the latest template
            self.kube.put(Kind.POD, {**pod, "metadata": {**pod["metadata"], "annotations": annotations}})
        ready = sum(_condition(pod, "Ready")[0] == "True" for pod in pods)
        counts = {
            "replicas": len(pods),
            "updatedReplicas": len(pods),
            "availableReplicas": ready,
            "readyReplicas": ready,
        }
        if plural != SETS:
            counts["observedGeneration"] = made["metadata"]["generation"]
        self.kube.put(plural, {**made, "status": counts})

    def _set_ready(self, name: str, status: str) -> None:
        body = self.kube.get(Kind.POD, NAMESPACE, name)
        conditions = [_pod_condition("PodScheduled", "True"), _pod_condition("Ready", status)]
        self.kube.put(Kind.POD, {**body, "status": {**body["status"], "conditions": conditions}})
        self.roll_out(body["metadata"]["labels"][LABEL_BASE])

    @property
    def api(self) -> KubeApi:
        """A client of the API server."""
        return self._api

    async def operate(self, config: OperatorConfig = CONFIG) -> asyncio.Task[None]:
        """Start an operator; it leads when it has the Lease."""
        self.lease = Lease(self._api, namespace=SYSTEM, name=config.lease, pod_name=config.pod_name)
        await self.lease.acquire()
        task = asyncio.create_task(
            lead(
                config, self._api, self.lease, self.health, self._watching, client=lambda: AdminClient(port=ADMIN_PORT)
            )
        )
        self.operators.append(task)
        return task

    async def end(self, operator: asyncio.Task[None]) -> None:
        """End an operator as SIGTERM does."""
        operator.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await operator
        self.operators.remove(operator)
        assert self.lease is not None
        await self.lease.release()

    @contextlib.contextmanager
    def deaf(self) -> Any:
        """Inside, no operator hears of any event."""
        self._drops_events = True
        yield
        self._drops_events = False

    async def _watching(self, sink: EventSink, scope: Scope) -> None:
        def hear(event: str, plural: str, body: Json) -> None:
            if self._drops_events or plural not in tuple(Kind):
                return
            if not {None, body["metadata"].get("namespace", "")} & set(scope.watchable):
                return
            if self.event_seconds:
                asyncio.get_running_loop().call_later(self.event_seconds, sink.take, Kind(plural), event, body)
            else:
                sink.take(Kind(plural), event, body)

        self.kube.on_change.append(hear)
        for (plural, _, _), body in list(self.kube.objects.items()):
            hear("ADDED", plural, copy.deepcopy(body))
        try:
            await asyncio.Event().wait()
        finally:
            self.kube.on_change.remove(hear)

    async def open(self) -> None:
        configuration = Configuration()
        configuration.host = self.kube.url
        self._api = KubeApi(configuration)

    async def close(self) -> None:
        for operator in list(self.operators):
            operator.cancel()
            await asyncio.gather(operator, return_exceptions=True)
        for pod in self.pods.values():
            await pod.close()
        await self._api.close()


@contextlib.asynccontextmanager
async def simulated_fleet() -> AsyncIterator[Fleet]:
    """An empty cluster; nobody operates it yet. At the end no pod may have seen what should never happen."""
    kube = FakeKube()
    await kube.start()
    fleet = Fleet(kube)
    await fleet.open()
    try:
        yield fleet
    finally:
        pods = list(fleet.pods.values())
        await fleet.close()
        await kube.stop()
    assert [fault for pod in pods for fault in pod.faults] == []


async def settled(fleet: Fleet, *, quiet_seconds: float = 0.5) -> None:
    """Wait until nothing has been written for a moment, to the API server or to pods; Leases are renewed all the time.

    Raises:
        AssertionError: it did not come to rest.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 90

    def written() -> tuple[int, ...]:
        return (
            sum("/leases" not in write for write in fleet.kube.writes),
            *(len(p.writes) for p in fleet.pods.values()),
        )

    before, since = written(), loop.time()
    while loop.time() < since + quiet_seconds:
        await asyncio.sleep(0.02)
        if (now := written()) != before:
            assert loop.time() < deadline, fleet.kube.writes[-20:]
            before, since = now, loop.time()


async def until(what: str, look: Callable[[], Any], *, seconds: float = 90) -> Any:
    """Return the first truthy value of `look`. The time is that of a machine that does much else.

    Raises:
        AssertionError: there was none in time.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := look()):
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not after {seconds} s; last seen: {value!r}"
        await asyncio.sleep(0.01)
    return value


def _condition(body: Json, kind: str) -> tuple[str, str]:
    status = body.get("status", {})
    found = next((c for c in status.get("conditions", []) if c["type"] == kind), None)
    if (
        found is None
        or found.get("observedGeneration", body["metadata"]["generation"]) != body["metadata"]["generation"]
    ):
        return "", ""
    return found["status"], found.get("reason", "")


def _pod_condition(kind: str, status: str, *, age: timedelta = timedelta()) -> Json:
    since = (datetime.now(UTC) - age).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": kind, "status": status, "lastTransitionTime": since}
