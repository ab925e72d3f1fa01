"""What gateways count of the revisions that share traffic, and which requests they hold for want of a pod; heard while some
rollout is judged by it, or some base may go without pods.

One long poll a gateway is the only sensor; a gateway that hangs delays no other one, and no pass.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.paths import Json, collection
from lorafleet_common.supervise import end, supervise
from lorafleet_contract.evidence import Evidence, HeldRequests
from lorafleet_operator import metrics
from lorafleet_operator.act.autoscaling import Holds
from lorafleet_operator.act.gateway_client import GatewayClient
from lorafleet_operator.decide.evidence import Hearing, RowKey, Tally
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import GatewaySilent

logger = logging.getLogger(__name__)
LIST_SECONDS: Final = 3.0
"""How often it is looked which gateways there are."""
LIST_TIMEOUT_SECONDS: Final = 5.0
MAX_LIST_AGE_SECONDS: Final = 15.0
"""Without a list for longer, there may be gateways that nobody hears."""
SILENT_SECONDS: Final = 10.0
"""A gateway without an answer for longer is silent; one that counts nothing answers every few seconds."""
NEWS_SECONDS: Final = 0.2
"""After an answer: a gateway that does not wait must not be asked without a pause."""
FIRST_RETRY_SECONDS: Final = 0.2
MAX_RETRY_SECONDS: Final = 2.0
MAX_GATEWAYS: Final = 100
"""Gateways that are asked. Those beyond are silent: nothing is judged good by a part of the requests."""


@dataclass(frozen=True, slots=True)
class GatewayPod:
    """A gateway as the API server has it."""

    uid: str
    name: str
    ip: str | None
    is_ready: bool
    is_leaving: bool
    """It is being deleted: it counts what it still answers, and takes nothing new."""

    @classmethod
    def of(cls, body: Json) -> "GatewayPod | None":
        """Read a pod; None of one that has ended."""
        metadata: Mapping[str, Any] = body["metadata"]
        status: Mapping[str, Any] = body.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            return None
        conditions = status.get("conditions") or []
        is_ready = any(it.get("type") == "Ready" and it.get("status") == "True" for it in conditions)
        is_leaving = metadata.get("deletionTimestamp") is not None
        return cls(metadata["uid"], metadata["name"], status.get("podIP") or None, is_ready, is_leaving)


@dataclass(slots=True)
class _Heard:
    pod: GatewayPod
    task: asyncio.Task[None] | None = None
    """None: beyond the number that is asked, or without an address."""
    known: tuple[str, int] | None = None
    """Boot id and sequence of its last answer."""
    held: dict[BaseKey, HeldRequests] = field(default_factory=dict)
    """What it said last of requests that found no pod."""
    holds: bool = True
    """False: its version holds none."""
    heard_at: float | None = None
    """On the loop's clock, when it answered last; None: never."""
    why_silent: str = field(default="it has not answered yet")

    def is_silent(self, now: float) -> bool:
        return self.heard_at is None or now - self.heard_at > SILENT_SECONDS

    @property
    def is_to_be_heard(self) -> bool:
        """Whether requests may be answered by way of it that nobody else counts."""
        return not self.pod.is_leaving and (self.pod.is_ready or self.heard_at is not None)


class GatewayWatch:
    """The gateways of this installation, as far as they are heard."""

    def __init__(self, api: KubeApi, *, namespace: str, selector: str, port: int) -> None:
        """Hear nobody yet.

        Args:
            api: lists pods.
            namespace: of the gateways' pods.
            selector: their labels; empty: no gateway is asked.
            port: where they answer.
        """
        self._api = api
        self._namespace = namespace
        self._selector = selector
        self._client = GatewayClient(port=port)
        self._tally = Tally()
        self._wanted: dict[BaseKey, Set[RowKey]] = {}
        self._told: dict[BaseKey, Callable[[], None]] = {}
        """Bases that may go without pods -> whom to call when a request was held."""
        self._arrived: Counter[BaseKey] = Counter()
        """Requests that found no pod while gateways were heard."""
        self._gateways: dict[str, _Heard] = {}
        self._listing: asyncio.Task[None] | None = None
        self._listed_at: float | None = None
        """On the loop's clock; None: not since somebody wants it."""
        self._refusal: str | None = None
        self._is_beyond = False
        """Whether there are more gateways than are asked."""

    def follow(self, base: BaseKey, revisions: Set[RowKey]) -> None:
        """Say which revisions of a base are judged now, or compared with. While none of any base is, nobody is asked."""
        if revisions:
            self._wanted[base] = revisions
        else:
            self._wanted.pop(base, None)
        self._tally.follow(frozenset().union(*self._wanted.values()))
        self._begin_or_stop()

    def follow_holds(self, base: BaseKey, told: Callable[[], None] | None) -> None:
        """Say whether a base may go without pods; then `told` is called when a gateway holds a request for it."""
        if told is not None:
            self._told[base] = told
        else:
            self._told.pop(base, None)
            self._arrived.pop(base, None)
        self._begin_or_stop()

    def _begin_or_stop(self) -> None:
        is_wanted = bool(self._wanted or self._told)
        if is_wanted and self._selector and self._listing is None:
            self._listing = asyncio.create_task(supervise("the watch of gateways", self._keep_listed))
        elif not is_wanted and self._listing is not None:
            self._stop()

    def holds(self, base: BaseKey) -> Holds:
        """Return what gateways said of requests that found no pod of a base."""
        rows = [row for heard in self._gateways.values() if (row := heard.held.get(base)) is not None]
        return Holds(sum(row.num_held for row in rows), self._arrived[base], self.obstacle or self._deaf_to())

    def _deaf_to(self) -> str:
        """Return which gateway may hold requests that it does not tell of; empty where none may."""
        now = monotonic()
        if self._listed_at is None or now - self._listed_at > MAX_LIST_AGE_SECONDS:
            return "gateways are not listed"
        for heard in self._gateways.values():
            if heard.is_to_be_heard and heard.is_silent(now):
                return f"gateway {heard.pod.name} does not answer: {heard.why_silent}"
            if heard.is_to_be_heard and not heard.holds:
                return f"gateway {heard.pod.name} is of a version that holds no requests"
        return ""

    def hearing(self) -> Hearing:
        """Return what gateways said, and how many of those that are to be heard do not answer now."""
        now = monotonic()
        to_hear = [heard for heard in self._gateways.values() if heard.is_to_be_heard]
        is_old = self._listed_at is None or now - self._listed_at > MAX_LIST_AGE_SECONDS
        num_silent = len(to_hear) if is_old else sum(heard.is_silent(now) for heard in to_hear)
        return Hearing(self._tally, len(to_hear), num_silent)

    @property
    def obstacle(self) -> str | None:
        """Why no gateway is known; None where one is to be heard."""
        if not self._selector:
            return "no gateway is asked: the operator has no --gateway-selector"
        if any(heard.is_to_be_heard for heard in self._gateways.values()):
            return None
        if self._refusal is not None:
            return f"gateways cannot be listed: {self._refusal}"
        if self._listed_at is None:
            return "gateways are not listed yet"
        return f"no ready pod of namespace {self._namespace} has the gateways' labels {self._selector}"

    async def close(self) -> None:
        """End all polls."""
        self._wanted.clear()
        self._told.clear()
        tasks = self._stop()
        await end(tasks)
        await self._client.close()

    def _stop(self) -> list[asyncio.Task[None]]:
        """Ask nobody any more: whoever is asked again later begins with what it has counted then."""
        tasks = [heard.task for heard in self._gateways.values() if heard.task is not None]
        if self._listing is not None:
            tasks.append(self._listing)
        for task in tasks:
            task.cancel()
        for uid in self._gateways:
            self._tally.forget(uid)
        self._gateways.clear()
        self._listing, self._listed_at, self._refusal = None, None, None
        self._measure()
        return tasks

    async def _keep_listed(self) -> None:
        while True:
            path = collection("v1", "pods", self._namespace)
            try:
                listed = await self._api.list(path, labels=self._selector, timeout_seconds=LIST_TIMEOUT_SECONDS)
            except KubeError as error:
                if self._refusal is None:
                    logger.warning("gateways cannot be listed: %s", error)
                self._refusal = str(error)
            else:
                self._listed_at, self._refusal = monotonic(), None
                self._sync([pod for body in listed.items if (pod := GatewayPod.of(body)) is not None])
            self._measure()
            await asyncio.sleep(LIST_SECONDS)

    def _sync(self, pods: list[GatewayPod]) -> None:
        """Hear exactly these pods."""
        wanted = {pod.uid: pod for pod in pods}
        for uid in self._gateways.keys() - wanted.keys():
            self._leave(uid)
        for uid, pod in wanted.items():
            heard = self._gateways.setdefault(uid, _Heard(pod))
            has_moved, heard.pod = heard.pod.ip != pod.ip, pod
            if has_moved and heard.task is not None:
                heard.task.cancel()
                heard.task = None
        for heard in sorted(self._gateways.values(), key=lambda heard: (heard.task is None, heard.pod.name)):
            if heard.task is None and heard.pod.ip is not None and self._num_asked < MAX_GATEWAYS:
                self._ask(heard, heard.pod.ip)
        is_beyond = len(wanted) > MAX_GATEWAYS
        if is_beyond and not self._is_beyond:
            logger.warning("%d gateways: only %d are asked, so that none is judged good", len(wanted), MAX_GATEWAYS)
        self._is_beyond = is_beyond

    @property
    def _num_asked(self) -> int:
        return sum(heard.task is not None for heard in self._gateways.values())

    def _ask(self, heard: _Heard, ip: str) -> None:
        heard.task = asyncio.create_task(
            supervise(f"the watch of gateway {heard.pod.name}", lambda: self._hear(heard, ip))
        )

    def _leave(self, uid: str) -> None:
        heard = self._gateways.pop(uid)
        if heard.task is not None:
            heard.task.cancel()
        self._tally.forget(uid)

    async def _hear(self, heard: _Heard, ip: str) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                known = None if self._tally.needs_whole(heard.pod.uid) else heard.known
                document = await self._client.evidence(ip, known)
            except GatewaySilent as error:
                self._missed(heard, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_RETRY_SECONDS)
                continue
            delay = FIRST_RETRY_SECONDS
            if heard.why_silent and heard.known is not None:
                logger.info("gateway %s is heard again", heard.pod.name)
            self._tally.take(heard.pod.uid, document, is_whole=known is None)
            self._take_held(heard, document)
            heard.known = document.boot_id, document.sequence
            heard.heard_at, heard.why_silent = monotonic(), ""
            await asyncio.sleep(NEWS_SECONDS)

    def _take_held(self, heard: _Heard, document: Evidence) -> None:
        """Take in which requests a gateway holds, and call whoever waits for one."""
        before = heard.held if heard.known is None or heard.known[0] == document.boot_id else {}
        rows = {(row.namespace, row.base): row for row in document.held or ()}
        heard.holds, heard.held = document.held is not None, rows
        for base, told in list(self._told.items()):
            if (row := rows.get(base)) is None:
                continue
            last = before.get(base)
            # what came before this gateway was heard at all may have been answered long ago
            num_new = 0 if heard.known is None else row.num_arrived - (last.num_arrived if last is not None else 0)
            self._arrived[base] += max(0, num_new)
            if num_new > 0 or (row.num_held and (last is None or not last.num_held)):
                told()

    def _missed(self, heard: _Heard, error: GatewaySilent) -> None:
        if heard.pod.is_ready and not heard.pod.is_leaving and not heard.why_silent:
            logger.warning("gateway %s does not say what it counted: %s", heard.pod.name, error)
        heard.why_silent = str(error)

    def _measure(self) -> None:
        """Tell metrics."""
        hearing, now = self.hearing(), monotonic()
        metrics.GATEWAYS.labels(state="heard").set(hearing.num_gateways - hearing.num_silent)
        metrics.GATEWAYS.labels(state="silent").set(hearing.num_silent)
        heard_at = [it.heard_at for it in self._gateways.values() if it.is_to_be_heard and it.heard_at is not None]
        metrics.EVIDENCE_AGE.set(now - min(heard_at) if heard_at else 0)
