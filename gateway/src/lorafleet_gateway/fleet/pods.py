"""The pods as they describe themselves: one long poll of `/v1/routes` for each, and the requests this gateway has at each."""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final

import aiohttp
from pydantic import ValidationError

from lorafleet_common.clock import monotonic
from lorafleet_common.supervise import supervise
from lorafleet_contract.admin import MAX_ENTRIES, Tier
from lorafleet_contract.base import Observed
from lorafleet_contract.routes import Routes
from lorafleet_gateway import metrics
from lorafleet_gateway.errors import GatewayError
from lorafleet_gateway.fleet.routing import EJECT_AFTER, EJECT_SECONDS, Candidate, may_eject
from lorafleet_gateway.views import BaseKey, Endpoint

logger = logging.getLogger(__name__)
WAIT_SECONDS: Final = 2.0
"""How long a poll may wait: so old a pod's own count of requests may be."""
PAUSE_SECONDS: Final = 0.2
"""Between two polls: a pod where much changes, or that does not wait, is not asked without end."""
FIRST_RETRY_SECONDS: Final = 0.2
MAX_RETRY_SECONDS: Final = 2.0
MAX_ANSWER_BYTES: Final = 16 << 20
"""A longer answer is not read: whose image a pod runs is not ours to say. Ten thousand adapters take 2 MiB."""
AS_IT_IS: Final = {"accept-encoding": "identity"}
POLL_TIMEOUT: Final = aiohttp.ClientTimeout(total=WAIT_SECONDS + 3.0, sock_connect=2.0)


class _NotWhole(GatewayError):
    """A pod's answer lacks what is needed of it, or is longer than is read."""


class _Head(Observed):
    """A routes document without its adapters: most polls bring nothing else that is new."""

    boot_id: str
    generation: int
    ready: bool
    draining: bool
    max_model_len: int
    num_running: int = 0
    num_waiting: int = 0


@dataclass(slots=True)
class Pod:
    """One pod: where it is, what it said last, and what this gateway has there."""

    base: BaseKey
    endpoint: Endpoint
    head: _Head | None = None
    """None before its first answer."""
    tiers: dict[tuple[str, str], Tier] = field(default_factory=dict)
    """(adapter, revision) -> where it holds it."""
    passing: set[tuple[str, str]] = field(default_factory=set)
    """Of these the ones that are not stable there: canaries, and what leaves."""
    stable: dict[str, str] | None = None
    """Adapter -> its stable revision there; None until somebody asks, as few do."""
    is_reachable: bool = False
    was_asked: bool = False
    num_in_flight: int = 0
    """Requests of this gateway."""
    num_failed: int = 0
    """Failed answers in a row."""
    ejected_until: float = 0.0
    """By the monotonic clock."""
    num_others: int = 0
    """Requests of others, as of its last answer."""

    @property
    def is_ready(self) -> bool:
        """Whether Kubernetes says so and the pod does not deny it."""
        return self.endpoint.is_ready and (self.head is None or (self.head.ready and not self.head.draining))

    def stable_of(self, name: str) -> str | None:
        """Return the revision that a bare name means here; None: it lists none."""
        if self.stable is None:
            self.stable = {
                adapter: revision for adapter, revision in self.tiers if (adapter, revision) not in self.passing
            }
        return self.stable.get(name)

    def candidate(self, name: str, revision: str | None) -> Candidate:
        """Return it as it concerns one request."""
        return self._candidate(self.tiers.get((name, revision)) if revision is not None else None)

    def merge_candidate(self, parts: Iterable[tuple[str, str | None]]) -> Candidate:
        """Return it as it concerns a request for a merge of (name, revision).

        Whether it has made the merge before is not told: it is as near as the part that is farthest, and at most on the
        disk, so that the same pod makes it for all who ask.
        """
        tiers = {self.tiers.get((name, revision)) for name, revision in parts if revision is not None}
        if None in tiers:
            return self._candidate(None)
        return self._candidate(Tier.SOURCE if Tier.SOURCE in tiers else Tier.DISK)

    def _candidate(self, tier: Tier | None) -> Candidate:
        return Candidate(
            uid=self.endpoint.uid,
            is_ready=self.is_ready,
            is_reachable=self.is_reachable,
            tier=tier,
            outstanding=self.num_in_flight + self.num_others,
            is_ejected=self.is_ejected,
        )

    @property
    def is_ejected(self) -> bool:
        """Whether it gets nothing for now because it failed one request after the other."""
        return monotonic() < self.ejected_until

    def doubt(self) -> None:
        """A request failed here: ask others first, until it says again what it holds."""
        self.is_reachable = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request of this gateway as in flight here."""
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1

    def heard(self, head: _Head, raw: bytes) -> None:
        """Take in an answer.

        Raises:
            ValidationError: its adapters cannot be read.
            _NotWhole: it left out adapters that are not known here.
        """
        last = self.head
        if last is None or (last.boot_id, last.generation) != (head.boot_id, head.generation):
            routes = Routes.model_validate_json(raw)
            if routes.adapters is None:
                raise _NotWhole(f"generation {head.generation} came without adapters")
            # all pods of a base name the same adapters: one string for all of them
            told = {(sys.intern(a.name), sys.intern(a.revision)): a.tier for a in routes.adapters}
            passing = {(sys.intern(a.name), sys.intern(a.revision)) for a in routes.adapters if not a.stable}
            if routes.since is None:
                self.tiers, self.passing = told, passing
            else:
                if last is None or (last.boot_id, last.generation) != (head.boot_id, routes.since):
                    raise _NotWhole(f"generation {head.generation} came as a difference to {routes.since}")
                if len(self.tiers) + len(told) > MAX_ENTRIES:
                    raise _NotWhole(f"it tells of more than {MAX_ENTRIES} adapters in all")
                for ref in routes.removed:
                    self.tiers.pop((ref.name, ref.revision), None)
                self.tiers.update(told)
                self.passing = ((self.passing - told.keys()) | passing) & self.tiers.keys()
            self.stable = None
        self.head = head
        self.num_others = max(0, head.num_running + head.num_waiting - self.num_in_flight)
        self.is_reachable = True


class Fleet:
    """All pods of all bases; owns the polls."""

    def __init__(self) -> None:
        self._pods: dict[BaseKey, dict[str, Pod]] = {}
        self._polls: dict[tuple[BaseKey, str], asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self.on_change: list[Callable[[BaseKey], None]] = []
        """Called when a pod of a base may have become ready."""

    async def __aenter__(self) -> "Fleet":
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        # pods run images of their owners: what one sends is not unpacked, where it points is not followed, and no cookie is kept
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=POLL_TIMEOUT, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        polls = list(self._polls.values())
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        assert self._session is not None
        await self._session.close()

    def sync(self, base: BaseKey, endpoints: Iterable[Endpoint]) -> None:
        """Know exactly these pods of a base."""
        wanted = {endpoint.uid: endpoint for endpoint in endpoints}
        pods = self._pods.setdefault(base, {})
        for uid, pod in list(pods.items()):
            if uid not in wanted or wanted[uid].url != pod.endpoint.url:
                del pods[uid]
                self._polls.pop((base, uid)).cancel()
        for uid, endpoint in wanted.items():
            if uid in pods:
                pods[uid].endpoint = endpoint
            else:
                pod = pods[uid] = Pod(base, endpoint)
                name = f"the watch of pod {endpoint.pod}"
                self._polls[base, uid] = asyncio.create_task(supervise(name, partial(self._follow, pod)))
        if not pods:
            del self._pods[base]
        self._changed(base)

    def _changed(self, base: BaseKey) -> None:
        for heard in self.on_change:
            heard(base)

    def of(self, base: BaseKey) -> list[Pod]:
        """Return the pods of a base."""
        return list(self._pods.get(base, {}).values())

    def stable_of(self, base: BaseKey, name: str) -> str | None:
        """Return which revision of an adapter pods of a base call stable: the first one that says so, those first that get requests."""
        pods = sorted(self.of(base), key=lambda pod: (not pod.is_ready, not pod.is_reachable, pod.endpoint.uid))
        return next((revision for pod in pods if (revision := pod.stable_of(name)) is not None), None)

    def answered(self, pod: Pod, *, failed: bool) -> None:
        """Take note of how a pod answered; one that fails again and again is ejected for a while."""
        pod.num_failed = pod.num_failed + 1 if failed else 0
        if pod.num_failed < EJECT_AFTER or pod.is_ejected:
            return
        ready = [other for other in self.of(pod.base) if other.is_ready]
        if may_eject(num_ready=len(ready), num_ejected=sum(other.is_ejected for other in ready)):
            logger.warning("pod %s failed %d requests in a row: ejected", pod.endpoint.pod, pod.num_failed)
            metrics.EJECTIONS.of(metrics.BASES.of(pod.base[1])).inc()
            pod.ejected_until = monotonic() + EJECT_SECONDS
            pod.num_failed = 0

    def all(self) -> list[Pod]:
        """Return all pods."""
        return [pod for pods in self._pods.values() for pod in pods.values()]

    async def _follow(self, pod: Pod) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                await self._ask(pod)
            except (aiohttp.ClientError, TimeoutError, OSError, ValidationError, _NotWhole) as error:
                self._lost(pod, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_RETRY_SECONDS)
            else:
                delay = FIRST_RETRY_SECONDS
                await asyncio.sleep(PAUSE_SECONDS)
            finally:
                pod.was_asked = True

    async def _ask(self, pod: Pod) -> None:
        query = {}
        if pod.head is not None and pod.is_reachable:
            query = {
                "after": str(pod.head.generation),
                "since": str(pod.head.generation),
                "boot_id": pod.head.boot_id,
                "wait_seconds": f"{WAIT_SECONDS:g}",
            }
        raw = await self._get_routes(pod.endpoint, query)
        was_ready = pod.is_ready
        pod.heard(_Head.model_validate_json(raw), raw)
        if pod.is_ready and not was_ready:
            self._changed(pod.base)

    async def _get_routes(self, endpoint: Endpoint, query: dict[str, str]) -> bytes:
        assert self._session is not None
        async with self._session.get(
            f"{endpoint.url}/v1/routes", params=query, headers=AS_IT_IS, allow_redirects=False
        ) as response:
            response.raise_for_status()
            if response.status != HTTPStatus.OK:
                raise _NotWhole(f"it answers {response.status}")
            return await _bounded(response.content)

    def _lost(self, pod: Pod, error: Exception) -> None:
        level = logging.INFO if pod.is_reachable and pod.endpoint.is_ready else logging.DEBUG
        what = str(error) or type(error).__name__
        logger.log(level, "pod %s of %s/%s does not say what it holds: %s", pod.endpoint.pod, *pod.base, what)
        if pod.endpoint.is_ready:
            metrics.POLL_FAILURES.of(metrics.BASES.of(pod.base[1])).inc()
        pod.is_reachable = False


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    raw = bytearray()
    async for chunk in content.iter_any():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise _NotWhole(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(raw)
