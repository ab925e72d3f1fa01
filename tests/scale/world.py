"""What of a cluster the operator and the gateway meet: objects written by the harness where controllers and a kubelet would write them."""

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.paths import collection
from lorafleet_contract.names import GROUP, LABEL_BASE, LABEL_ROLE, PUBLIC_PORT, ROLE_PODS, VERSION, revision_of

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE, SYSTEM, BASE = "team", "lorafleet-system", "base"
API_VERSION = f"{GROUP}/{VERSION}"
ADAPTERS = collection(API_VERSION, "loraadapters", NAMESPACE)
BASES = collection(API_VERSION, "basemodeldeployments", NAMESPACE)
PODS = collection("v1", "pods", NAMESPACE)
DEPLOYMENT = f"{collection('apps/v1', 'deployments', NAMESPACE)}/{BASE}"
SLICES = collection("discovery.k8s.io/v1", "endpointslices", NAMESPACE)
MERGE = "application/merge-patch+json"
KUBELET_SECONDS = 0.1
PARALLEL = 16
Json = dict[str, Any]


class World:
    """Pods, their Deployment and their EndpointSlice, as controllers and kubelets would have them."""

    def __init__(self, api: KubeApi, control: str, session: aiohttp.ClientSession, *, slots: int) -> None:
        self.api = api
        self._control = control
        self._session = session
        self._slots = slots
        self._names: dict[str, str] = {}
        """Address -> name of the Pod."""
        self._ready: set[str] = set()
        self._uids: dict[str, str] = {}
        self._number = 0

    @property
    def num_pods(self) -> int:
        """Pods that are there."""
        return len(self._names)

    @property
    def num_ready(self) -> int:
        """Pods that the API server calls ready."""
        return len(self._ready)

    async def install(self) -> None:
        """Install the custom resources and the namespaces."""
        for file in sorted((ROOT / "crds").glob("*.yaml")):
            path = collection("apiextensions.k8s.io/v1", "customresourcedefinitions", None)
            await self.api.create(path, yaml.safe_load(file.read_text()))
        for name in (NAMESPACE, SYSTEM):
            await self.api.create(collection("v1", "namespaces", None), {"metadata": {"name": name}})
        await _until(self._are_served, "the custom resources are served")

    async def _are_served(self) -> bool:
        try:
            return bool([await self.api.list(path) for path in (BASES, ADAPTERS)])
        except KubeError:
            return False

    async def create_base(self, num_pods: int) -> None:
        """Create the base; the operator makes its Deployment."""
        spec = {
            "model": {"huggingFace": {"repo": "acme/none"}},
            "adapterSources": [{"name": "models", "s3": {"bucket": "models"}}],
            "lora": {"maxResidentAdapters": self._slots},
            "replicas": num_pods,
        }
        await self.api.create(BASES, _resource("BaseModelDeployment", BASE, spec))

    async def start_pods(self, num: int) -> list[str]:
        """Start pods of the Deployment's template; return their addresses."""
        await _until(self._has_deployment, "the operator applied the Deployment")
        deployment = await self.api.get(DEPLOYMENT)
        template = deployment["spec"]["template"]
        arguments = next(c for c in template["spec"]["containers"] if c["name"] == "engine")["args"]
        token = next(a for a in arguments if a.startswith("--admin-token-sha256=")).partition("=")[2]
        addresses = []
        for _ in range(num):
            self._number += 1
            addresses.append(f"198.51.100.{self._number}")
        body = {"addresses": addresses, "token_sha256": token, "slots": self._slots}
        async with self._session.post(f"{self._control}/pods", json=body) as answer:
            answer.raise_for_status()
        await together(self._create_pod(address, template) for address in addresses)
        return addresses

    async def _has_deployment(self) -> bool:
        try:
            return bool(await self.api.get(DEPLOYMENT))
        except KubeError:
            return False

    async def _create_pod(self, address: str, template: Json) -> None:
        version = template["metadata"]["annotations"]["lorafleet.io/template"]
        digest = hashlib.sha256(version.encode()).hexdigest()[:8]
        name = f"{BASE}-{digest}-{address.rpartition('.')[2]}"
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{BASE}-{digest}", "uid": digest}
        body = {
            "metadata": {
                "name": name,
                "labels": {**template["metadata"]["labels"], "pod-template-hash": digest},
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [{**owner, "controller": True}],
            },
            # of the template only what a pod object needs
            "spec": {"nodeName": f"node-{name}", "containers": [{"name": "engine", "image": "none"}]},
        }
        made = await self.api.create(PODS, body)
        self._names[address], self._uids[address] = name, made["metadata"]["uid"]
        await self._tell(address, is_ready=False)

    async def _tell(self, address: str, *, is_ready: bool) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        engine = {"name": "engine", "image": "none", "imageID": "none", "restartCount": 0, "started": True}
        conditions = {"PodScheduled": "True", "Initialized": "True", "Ready": "True" if is_ready else "False"}
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": t, "status": s, "lastTransitionTime": now} for t, s in conditions.items()],
            "containerStatuses": [{**engine, "ready": is_ready, "state": {"running": {"startedAt": now}}}],
        }
        await self.patch(f"{PODS}/{self._names[address]}/status", {"status": status})

    async def stop_pod(self, address: str) -> None:
        """Delete a pod as a ReplicaSet does, and end it."""
        name = self._names.pop(address)
        self._ready.discard(address)
        await self.api.request("DELETE", f"{PODS}/{name}", body={"gracePeriodSeconds": 0})
        async with self._session.delete(f"{self._control}/pods/{address}") as answer:
            answer.raise_for_status()
        await self._tell_controllers()

    async def run_kubelet(self) -> None:
        """Call pods ready when they are, until cancelled."""
        while True:
            found = await self.pods()
            new = [a for a, pod in found.items() if pod["ready"] and a not in self._ready and a in self._names]
            if new:
                await together(self._tell(address, is_ready=True) for address in new)
                self._ready.update(new)
                await self._tell_controllers()
            await asyncio.sleep(KUBELET_SECONDS)

    async def _tell_controllers(self) -> None:
        """Write what the controllers of Deployments and EndpointSlices would."""
        endpoints = [
            {
                "addresses": [address],
                "conditions": {"ready": address in self._ready, "serving": address in self._ready},
                "targetRef": {"kind": "Pod", "name": name, "namespace": NAMESPACE, "uid": self._uids[address]},
            }
            for address, name in list(self._names.items())
        ]
        labels = {LABEL_BASE: BASE, LABEL_ROLE: ROLE_PODS, "kubernetes.io/service-name": f"{BASE}-pods"}
        content = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{BASE}-pods-1", "namespace": NAMESPACE, "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": PUBLIC_PORT, "protocol": "TCP"}],
            "endpoints": endpoints,
        }
        await self.api.apply(f"{SLICES}/{BASE}-pods-1", content, manager="scale")
        await self.tell_deployment()

    async def tell_deployment(self) -> None:
        """Write the status of the Deployment."""
        deployment = await self.api.get(DEPLOYMENT)
        version = deployment["spec"]["template"]["metadata"]["annotations"]["lorafleet.io/template"]
        digest = hashlib.sha256(version.encode()).hexdigest()[:8]
        num_updated = sum(name.startswith(f"{BASE}-{digest}-") for name in self._names.values())
        numbers = {"replicas": self.num_pods, "updatedReplicas": num_updated}
        ready = {"readyReplicas": self.num_ready, "availableReplicas": self.num_ready}
        status = {"observedGeneration": deployment["metadata"]["generation"], **numbers, **ready}
        await self.patch(f"{DEPLOYMENT}/status", {"status": status})

    async def pods(self) -> dict[str, Json]:
        """Return what each pod's process says of it, by address."""
        async with self._session.get(f"{self._control}/pods") as answer:
            found: dict[str, Json] = await answer.json()
            return found

    async def taken(self, start: int = 0) -> list[tuple[float, str, str, str, str]]:
        """Return what pods were told when: monotonic seconds, address, name, revision, residency."""
        async with self._session.get(f"{self._control}/taken", params={"from": str(start)}) as answer:
            return [tuple(one) for one in await answer.json()]

    async def patch(self, path: str, body: Json) -> Json:
        """Merge into an object."""
        return (await self.api.request("PATCH", path, body=body, content_type=MERGE))[1]

    async def create_adapter(self, name: str, **spec: Any) -> None:
        """Create an adapter whose content is its name's."""
        full = {"baseModelRef": {"name": BASE}, "source": {"name": "models", "path": name}, **spec}
        await self.api.create(ADAPTERS, _resource("LoraAdapter", name, full))

    async def change_adapter(self, name: str, **spec: Any) -> None:
        """Change the spec of an adapter."""
        await self.patch(f"{ADAPTERS}/{name}", {"spec": spec})

    async def delete_adapter(self, name: str) -> None:
        """Delete an adapter."""
        await self.api.request("DELETE", f"{ADAPTERS}/{name}")


def content_revision(path: str) -> str:
    """Return the revision that pods make of a path."""
    return revision_of(f"sha256:{hashlib.sha256(path.encode()).hexdigest()}")


def _resource(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


async def together(calls: Iterable[Any], parallel: int = PARALLEL) -> None:
    """Await all, some at a time."""
    slots = asyncio.Semaphore(parallel)

    async def one(call: Any) -> None:
        async with slots:
            await call

    await asyncio.gather(*(one(call) for call in calls))


async def _until(holds: Any, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.05)


class Watched:
    """The LoraAdapters as a watch of the harness's own tells of them."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self.bodies: dict[str, Json] = {}
        self.switched: dict[tuple[str, str], float] = {}
        """Name and stable revision -> monotonic seconds when the watch told of it."""
        self.ready: dict[tuple[str, int], float] = {}
        """Name and generation -> monotonic seconds when the watch told that it is Ready."""
        self.num_events = 0
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Follow until cancelled."""
        while True:
            listed = await self._api.list(ADAPTERS)
            for body in listed.items:
                self._take(body)
            try:
                async for event in self._api.watch(ADAPTERS, version=listed.version):
                    if event.type == "DELETED":
                        self.bodies.pop(event.body["metadata"]["name"], None)
                        self._wake()
                    elif event.type != "BOOKMARK":
                        self._take(event.body)
                        self.num_events += 1
            except KubeError:
                continue

    def _take(self, body: Json) -> None:
        now, name = time.monotonic(), body["metadata"]["name"]
        self.bodies[name] = body
        revision = (body.get("status") or {}).get("stableRevision")
        if revision is not None:
            self.switched.setdefault((name, revision), now)
        if is_ready(body):
            self.ready.setdefault((name, body["metadata"]["generation"]), now)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, holds: Any, what: str, seconds: float) -> float:
        """Wait until what is known of the adapters fulfils `holds`; return when, in monotonic seconds."""
        deadline = time.monotonic() + seconds
        while not holds():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {seconds:g} s: {what}"
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                continue
        return time.monotonic()


def is_ready(body: Json) -> bool:
    """Whether Ready is True at the latest generation."""
    conditions = {c["type"]: c for c in (body.get("status") or {}).get("conditions") or []}
    ready = conditions.get("Ready", {})
    return ready.get("status") == "True" and ready.get("observedGeneration") == body["metadata"]["generation"]


METRIC = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


def series(text: str, name: str) -> dict[str, float]:
    """Return the values of a metric by their labels as they are written."""
    return {labels or "": float(value) for found, labels, value in METRIC.findall(text) if found == name}
