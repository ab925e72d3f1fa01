"""A simulated fleet without sockets, on a virtual clock: networks that lose and delay, operators that come and go.

The operator is the real one from its API clients upwards. What must never happen is noted in `faults` when it happens.
"""

import asyncio
import contextlib
import copy
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from support.fake_pod import FakePod
from support.fake_pod import Refused as PodRefusal
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, SYSTEM, Fleet, Json
from support.virtual_gateway import STALE_SECONDS, Asked, VirtualGateway, endpoint_slice
from support.virtual_network import LATENCY_SECONDS, Network, RememberingKube, VirtualKube

from lorafleet_common.kube.errors import KubeError
from lorafleet_contract import admin
from lorafleet_contract.base import Wire
from lorafleet_contract.names import LABEL_BASE, revision_of
from lorafleet_contract.openai import ErrorCode
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.act.pod_states import PodStates
from lorafleet_operator.cluster.handlers import EventSink
from lorafleet_operator.cluster.lease import Lease
from lorafleet_operator.cluster.scope import Scope
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.decide.evidence import Hearing, RowKey, Tally
from lorafleet_operator.decide.measured import Reading
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import LeaseLost, OperatorError, PodRefused, PodUnreachable
from lorafleet_operator.process.health import Health
from lorafleet_operator.process.lead import lead

START: Final = datetime.now(UTC).replace(microsecond=0)
RESTART_SECONDS: Final = 2.0
RESYNC_SECONDS: Final = 60.0
"""Longer than a fleet whose events all arrive may take."""


class VirtualPod(FakePod):
    """A pod without ports."""

    fleet: "VirtualFleet"
    ip = ""
    is_closed = False

    async def listen(self, host: str, *, public_port: int | None, admin_port: int) -> None:
        self.ip = host

    async def close(self) -> None:
        self.is_closed = True
        for timer in self._timers:
            timer.cancel()
        self._changed.set()
        self._awake.set()

    def take(self, write: admin.CatalogueWrite) -> None:
        super().take(write)
        self.fleet.audit(self, write)

    async def answer(self, method: str, path: str, query: Mapping[str, str], body: Wire | None) -> Wire | None:
        """Answer a request; None is 304."""
        boot = self.boot_id
        await self._awake.wait()
        if method == "GET" and path.startswith("/admin/v1/adapters/"):
            return self.answer_of(path.rpartition("/")[2])
        if method == "GET" and path == "/admin/v1/load":
            return self.load()
        if method == "GET" and "after" in query:
            await self._speaks.wait()
            await self.wait_for_news(int(query["after"]), float(query["wait_seconds"]))
        elif method == "GET":
            await self._speaks.wait()
        elif method == "PUT":
            assert isinstance(body, admin.CatalogueWrite)
            self.take(body)
        elif isinstance(body, admin.AskRequest):
            return await self.ask(body)
        else:
            assert isinstance(body, admin.ResolveRequest)
            self.num_resolved += 1
            await asyncio.sleep(self.resolve_seconds)
            return admin.ResolveAnswer(resolved=self.library.resolve(body.source))
        if self.boot_id != boot or self.is_closed:
            raise ConnectionResetError
        return self.told(query) if method == "PUT" or not self.is_known(query) else None

    async def wait_for_news(self, after: int, wait_seconds: float) -> None:
        """Wait until the generation exceeds `after`, or the process ends."""
        boot, deadline = self.boot_id, asyncio.get_running_loop().time() + wait_seconds
        with contextlib.suppress(TimeoutError):
            while self.generation <= after and self.boot_id == boot and not self.is_closed:
                self._changed.clear()
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()

    async def generate(self, name: str, revision: str | None, hold_seconds: float) -> str | ErrorCode:
        """Answer a request: return the revision that answers, or why none does. What loads is waited for."""
        deadline = asyncio.get_running_loop().time() + hold_seconds
        while True:
            if not self.is_ready:
                return ErrorCode.NOT_READY
            if name == BASE:
                return name
            if name not in self.names():
                return ErrorCode.MODEL_NOT_FOUND
            stable = [r for (n, r), entry in self.entries.items() if n == name and entry.entry.stable]
            wanted = revision or (stable[0] if stable else "")
            entry = self.entries.get((name, wanted))
            if entry is None or entry.state is admin.AdapterState.DRAINING:
                return ErrorCode.REVISION_NOT_FOUND
            if entry.state is admin.AdapterState.READY:
                return wanted
            if entry.state is admin.AdapterState.FAILED:
                return ErrorCode.ADAPTER_FAILED
            if (left := deadline - asyncio.get_running_loop().time()) <= 0:
                return ErrorCode.ADAPTER_LOADING
            await self.wait_for_news(self.generation, left)


class VirtualAdmin(AdminClient):
    """Pods as one operator reaches them."""

    def __init__(self, fleet: "VirtualFleet", network: Network) -> None:
        self._fleet = fleet
        self._network = network
        self._states = PodStates()

    async def close(self) -> None:
        """Nothing is open."""

    async def _request(
        self,
        method: str,
        ip: str,
        path: str,
        token: str,
        limit_seconds: float,
        *,
        query: dict[str, str] | None = None,
        body: Wire | None = None,
    ) -> bytes:
        found = next(((name, pod) for name, pod in self._fleet.pods.items() if pod.ip == ip), None)
        await asyncio.sleep(LATENCY_SECONDS)
        if found is None:
            raise PodUnreachable("connection refused")
        name, pod = found
        assert isinstance(pod, VirtualPod)
        try:
            async with asyncio.timeout(limit_seconds):
                await self._network.passage(name)
                answer = await pod.answer(method, path, query or {}, body)
                await asyncio.sleep(LATENCY_SECONDS)
                await self._network.passage(name)
        except PodRefusal as refusal:
            error = refusal.error
            raise PodRefused(refusal.status, error.reason, error.message, retryable=error.retryable) from None
        except (TimeoutError, ConnectionResetError) as error:
            raise PodUnreachable(type(error).__name__) from error
        return answer.model_dump_json(by_alias=True, exclude_none=True).encode() if answer is not None else b""


class HeardGateways:
    """The gateway of a fleet, as one operator hears it: at once, unless it is silent."""

    def __init__(self, fleet: "VirtualFleet") -> None:
        self._fleet = fleet
        self._tally = Tally()
        self._wanting: dict[BaseKey, Set[RowKey]] = {}

    @property
    def obstacle(self) -> str | None:
        """As the real one."""
        return None if self._fleet.gateway is not None else "no pod is a gateway"

    def follow(self, base: BaseKey, revisions: Set[RowKey]) -> None:
        """As the real one."""
        if revisions:
            self._wanting[base] = revisions
        else:
            self._wanting.pop(base, None)
        self._tally.follow(frozenset().union(*self._wanting.values()))
        if not self._wanting:
            self._tally.forget("gateway")

    def hearing(self) -> Hearing:
        """As the real one."""
        gateway = self._fleet.gateway
        if gateway is None:
            return Hearing(self._tally, 0, 0)
        if self._fleet.is_gateway_silent:
            return Hearing(self._tally, 1, 1)
        if self._wanting:
            self._tally.take("gateway", gateway.ledger.read(), is_whole=True)
        return Hearing(self._tally, 1, 0)

    async def close(self) -> None:
        """Nothing is open."""


class AskedPrometheus:
    """The Prometheus of a fleet, which answers at the second look."""

    def __init__(self, fleet: "VirtualFleet") -> None:
        self._fleet = fleet
        self._asked: dict[str, datetime] = {}

    def readings(self, uid: str, since: datetime, queries: Mapping[str, str]) -> Mapping[str, Reading] | None:
        """As the real one."""
        if self._asked.get(uid) != since:
            self._asked[uid] = since
            return None
        return {name: self._fleet.prometheus(query) for name, query in queries.items()}

    def keep(self, uids: Collection[str], of: Collection[str]) -> None:
        """As the real one."""
        for uid in set(of) - set(uids):
            self._asked.pop(uid, None)


class Operator:
    """One operator, which starts again when it ends."""

    def __init__(self, fleet: "VirtualFleet", name: str, config: OperatorConfig) -> None:
        self.network, self.health = Network(), Health()
        self._fleet, self._name, self._config = fleet, name, config
        self._task = asyncio.create_task(self._live())

    @property
    def errors(self) -> list[BaseException]:
        """What ended it for good."""
        return [e] if self._task.done() and not self._task.cancelled() and (e := self._task.exception()) else []

    async def kill(self) -> None:
        """It ends without a word, and starts again."""
        await self.end()
        self._task = asyncio.create_task(self._live())

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self) -> None:
        while True:
            api = VirtualKube(self._fleet.kube, self.network)
            lease = Lease(api, namespace=SYSTEM, name=self._config.lease, pod_name=self._name)
            with contextlib.suppress(LeaseLost, OperatorError, KubeError):
                await lease.acquire()
                await lead(
                    self._config,
                    api,
                    lease,
                    self.health,
                    self._watching,
                    client=lambda: VirtualAdmin(self._fleet, self.network),
                    now=self._fleet.now,
                    gateways=HeardGateways(self._fleet),
                    measures=AskedPrometheus(self._fleet),
                )
            await asyncio.sleep(RESTART_SECONDS)

    async def _watching(self, sink: EventSink, _: Scope) -> None:
        loop, network = asyncio.get_running_loop(), self.network

        def hear(event: str, plural: str, body: Json) -> None:
            if network.is_deaf or not network.has_cluster or plural not in tuple(Kind):
                return
            for times in range(1 + network.repeats_events):
                later = copy.deepcopy(body)
                loop.call_later(network.event_seconds * (1 + times), sink.take, Kind(plural), event, later)

        self._fleet.kube.on_change.append(hear)
        try:
            await asyncio.Event().wait()
        finally:
            self._fleet.kube.on_change.remove(hear)


class VirtualFleet(Fleet):
    """One base, its pods, two operators, a gateway, and what of them is to be judged."""

    pod_class = VirtualPod

    def __init__(self) -> None:
        self.kube: RememberingKube
        super().__init__(RememberingKube())
        self._api = VirtualKube(self.kube, Network())
        self.faults: list[str] = []
        self.named: dict[str, set[str]] = {}
        """Served name -> revisions that status has ever named, since the adapter was made."""
        self.desired: dict[str, set[str]] = {}
        """The same of what spec has asked for."""
        self.timeline: dict[str, list[tuple[float, str | None]]] = {}
        """Served name -> since when status names which revision as the stable one."""
        self.shares: dict[str, list[tuple[float, frozenset[str]]]] = {}
        """Served name -> since when status gives which revisions a part of the requests."""
        self.ever: dict[str, set[str]] = {}
        """Served name -> every revision that spec or status have named, also of adapters before."""
        self.processes: list[Operator] = []
        self.gateway: VirtualGateway | None = None
        self.is_gateway_silent = False
        self.prometheus: Callable[[str], Reading] = lambda _: Reading(1.0)
        """What a query is answered with."""
        self.kube.on_change += [self._note, self._publish_endpoints]

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time())

    def start(self, name: str) -> None:
        """Start an operator."""
        self.processes.append(Operator(self, name, replace(CONFIG, resync_seconds=RESYNC_SECONDS)))

    def open_gateway(self) -> None:
        """Start a gateway."""
        self.gateway = VirtualGateway(self)

    def pod_at(self, name: str) -> VirtualPod | None:
        """Return a pod by its name."""
        pod = self.pods.get(name)
        assert pod is None or isinstance(pod, VirtualPod)
        return pod

    async def pod(self, base: str = BASE, **options: Any) -> FakePod:
        pod = await super().pod(base, **options)
        assert isinstance(pod, VirtualPod)
        pod.fleet = self
        return pod

    async def close(self) -> None:
        if self.gateway is not None:
            await self.gateway.close()
        for operator in self.processes:
            await operator.end()
        for pod in self.pods.values():
            await pod.close()

    def _note(self, event: str, plural: str, body: Json) -> None:
        if plural != Kind.ADAPTER:
            return
        name = body["metadata"]["name"]
        self._note_time(event, name, body)
        if event == "ADDED":
            self.named[name], self.desired[name] = set(), set()
        if event != "DELETED":
            self.desired[name].add(self.revision(body["spec"]["source"]["path"]))
            revision = body["status"].get("stableRevision")
            if revision and revision not in self.named[name]:
                if self.named[name]:
                    self._check_named(name, revision)
                self.named[name].add(revision)

    def _note_time(self, event: str, name: str, body: Json) -> None:
        times, ever = self.timeline.setdefault(name, []), self.ever.setdefault(name, set())
        revision = body["status"].get("stableRevision") if event != "DELETED" else None
        if not times or times[-1][1] != revision:
            times.append((asyncio.get_running_loop().time(), revision))
        self._note_shares(name, body["status"].get("traffic") if event != "DELETED" else None, revision)
        ever |= {revision or "", self.revision(body["spec"]["source"]["path"])} - {""}

    def _note_shares(self, name: str, traffic: list[Json] | None, stable: str | None) -> None:
        shares = self.shares.setdefault(name, [])
        named = frozenset(share["revision"] for share in traffic or () if share["weight"])
        if not shares or shares[-1][1] != named:
            shares.append((asyncio.get_running_loop().time(), named))
        if traffic and (sum(share["weight"] for share in traffic) != 100 or traffic[0]["revision"] != stable):
            self.faults.append(f"status.traffic of {name} is {traffic} beside {stable}")
        if len(traffic or ()) > 1:
            self._check_named(name, traffic[1]["revision"] if traffic else "")

    def _publish_endpoints(self, _: str, plural: str, body: Json) -> None:
        """What the EndpointSlice controller does when pods change."""
        if plural == Kind.POD:
            base = body["metadata"]["labels"][LABEL_BASE]
            pods = [
                one
                for (kind, _, _), one in self.kube.objects.items()
                if kind == Kind.POD and one["metadata"]["labels"][LABEL_BASE] == base
            ]
            self.kube.put("endpointslices", endpoint_slice(base, pods))

    def judge(self, asked: Asked, *, is_disturbed: bool) -> None:
        """Note an answer by a revision that status did not name while the request ran, or just before.

        Only a gateway that is cut off from something may answer with what was named before or, where it leaves the choice to
        pods, is about to be.
        """
        if asked.name == BASE:
            return
        times, since = self.timeline.get(asked.name, []), asked.began - STALE_SECONDS
        ends = [*(time for time, _ in times[1:]), float("inf")]
        allowed = {revision for (_, revision), end in zip(times, ends, strict=False) if end >= since}
        shares = self.shares.get(asked.name, [])
        ends = [*(time for time, _ in shares[1:]), float("inf")]
        allowed |= {one for (_, named), end in zip(shares, ends, strict=False) if end >= since for one in named}
        if is_disturbed:
            allowed |= self.ever.get(asked.name, set())
        if asked.revision not in allowed or (asked.was_left_to_pods and not is_disturbed):
            self.faults.append(f"{asked} was answered, and status named {times}")

    def _check_named(self, name: str, revision: str) -> None:
        """A name has switched: wherever requests arrive the new revision has to be known."""
        for pod_name, pod in self.pods.items():
            if pod.is_ready and pod.fence > 0 and (name, revision) not in pod.entries:
                self.faults.append(f"status names {name}@{revision}, which ready {pod_name} does not know")

    def revision(self, path: str) -> str:
        """What a path resolves to."""
        try:
            return revision_of(self.library.resolve(admin.SourceRef(name="models", path=path)).digest)
        except PodRefusal:
            return ""

    def audit(self, pod: VirtualPod, write: admin.CatalogueWrite) -> None:
        """Note what of a write that a pod took should never have been written."""
        stable = [entry.name for entry in write.adapters if entry.stable]
        self.faults.extend(f"two stable revisions of {name}" for name in {n for n in stable if stable.count(n) > 1})
        for ref in write.removed:
            body = self.kube.find(Kind.ADAPTER, NAMESPACE, ref.name)
            if body is None or body["metadata"].get("deletionTimestamp"):
                continue
            if ref.revision == body["status"].get("stableRevision"):
                self.faults.append(f"{ref.name}@{ref.revision} was unloaded while status names it")
            if ref.revision in self.shares.get(ref.name, [(0.0, frozenset())])[-1][1]:
                self.faults.append(f"{ref.name}@{ref.revision} was unloaded while it has a part of the requests")

    def check(self) -> None:
        """Note what no moment may show."""
        for pod in self.pods.values():
            for name in pod.names():
                stable = [r for (n, r), entry in pod.entries.items() if n == name and entry.entry.stable]
                if len(stable) > 1:
                    self.faults.append(f"{name} has two stable revisions on one pod: {stable}")
                answer = pod.stable(name)
                allowed = self.named.get(name, set()) | self.desired.get(name, set())
                if answer is not None and self.kube.find(Kind.ADAPTER, NAMESPACE, name) and answer not in allowed:
                    self.faults.append(f"{name} is answered by {answer}, which nobody asked for")
        self.faults += [fault for pod in self.pods.values() for fault in pod.faults]
        self.faults += [f"an operator ended: {error!r}" for o in self.processes for error in o.errors]
        assert self.faults == [], self.faults

    def heal(self) -> None:
        """Everything is reached by everybody again."""
        for operator in self.processes:
            operator.network.heal()
        if self.gateway is not None:
            self.gateway.heal()
        for pod in self.pods.values():
            pod.wake()
            pod.speak()
            pod.resolve_seconds = 0.0
            pod.load_seconds = 0.0

    async def delete_all(self, what: str) -> None:
        """Delete the base, all adapters or all pods; or let the operators end, of which new ones take over."""
        if what == "base":
            self.kube.delete(Kind.BASE, NAMESPACE, BASE)
        elif what == "adapters":
            for name in self.adapters():
                self.delete(name)
        elif what == "pods":
            for name in list(self.pods):
                await self.kill(name)
        else:
            for operator in self.processes:
                await operator.kill()

    def adapters(self) -> list[str]:
        """Names of all LoraAdapters."""
        return [name for plural, _, name in self.kube.objects if plural == Kind.ADAPTER]

    def is_calm(self) -> bool:
        """Whether everything is reached by everybody, and every pod is well."""
        networks = [one.network for one in (*self.processes, self.gateway) if one is not None]
        return all(network.is_well for network in networks) and all(
            pod.is_ready and pod._awake.is_set() and pod._speaks.is_set() for pod in self.pods.values()
        )

    async def unanswered(self) -> list[str]:
        """What the gateway does not answer as statuses say, now that it is quiet."""
        assert self.gateway is not None
        wrong = []
        for name in (BASE, *self.timeline):
            for _ in range(2):
                asked = await self.gateway.ask(name)
                body = self.kube.find(Kind.ADAPTER, NAMESPACE, name)
                if name == BASE:
                    expected = BASE
                else:
                    expected = body["status"].get("stableRevision") if body is not None else None
                if asked.revision != expected or (name != BASE and body is None and asked.error != "ModelNotFound"):
                    wrong.append(f"{asked}, and status says {expected}")
        return wrong

    def unconverged(self) -> list[str]:
        """What is not as the resources say."""
        wrong: list[str] = []
        live: dict[str, str] = {}
        for (plural, _, name), body in self.kube.objects.items():
            if plural != Kind.ADAPTER:
                continue
            if body["metadata"].get("deletionTimestamp"):
                wrong.append(f"{name} is not gone")
                continue
            path, ready = body["spec"]["source"]["path"], self.condition(name)
            stable = body["status"].get("stableRevision")
            is_good = not path.startswith(("missing", "bad-load"))
            expected = ("True", "Serving") if is_good else ("False", _REASONS[path.split("-")[0]])
            if self.pods and ready != expected:
                wrong.append(f"{name} ({path}) is {ready}")
            if is_good:
                live[name] = self.revision(path)
                if self.pods and stable != live[name]:
                    wrong.append(f"{name} is {stable} in status, not {live[name]}")
            elif stable is not None:
                live[name] = stable
        for pod_name, pod in self.pods.items():
            answers = {name: pod.stable(name) for name in pod.names() if pod.stable(name)}
            if answers != live:
                wrong.append(f"{pod_name} answers {answers}, not {live}")
            if not pod.is_ready:
                wrong.append(f"{pod_name} is not ready")
        return wrong


_REASONS: Final = {"missing": "ArtifactNotFound", "bad": "BaseModelMismatch"}
Look = Callable[[], bool]
