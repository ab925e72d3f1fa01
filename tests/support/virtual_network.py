"""Networks of a virtual fleet: they lose and delay; and an API server that remembers what has happened."""

import asyncio
import copy
import json
from collections.abc import Mapping
from typing import Final

from support.fake_kube import FakeKube, Json, Refused

from lorafleet_common.kube.client import APPLY, KubeApi, error_of
from lorafleet_common.kube.errors import KubeUnavailable

LATENCY_SECONDS: Final = 0.002
DEAD_PEER_SECONDS: Final = 11.0
RETRANSMISSION_SECONDS: Final = 0.3


class RememberingKube(FakeKube):
    """Its watches begin at any version that is not too old."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[str, str, Json]] = []
        """(event type, plural, body)."""
        self.oldest = 0
        """A watch from an older version is refused."""
        self.changed = asyncio.Event()
        self.on_change.append(self._remember)

    def compact(self) -> None:
        """What has happened so far is too old to be watched from."""
        self.oldest = self._version

    def _remember(self, event: str, plural: str, body: Json) -> None:
        self.history.append((event, plural, body))
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Network:
    """What one operator reaches, and how."""

    def __init__(self) -> None:
        self.has_cluster = True
        self.loses_answers = False
        """Writes arrive, their answers do not."""
        self.is_deaf = False
        """Events do not arrive."""
        self.event_seconds = 0.01
        self.repeats_events = False
        self.unreachable: set[str] = set()
        """Names of pods."""

    @property
    def is_well(self) -> bool:
        """Whether everything arrives, and soon."""
        is_whole = self.has_cluster and not (self.loses_answers or self.is_deaf or self.unreachable)
        return is_whole and self.event_seconds <= 2.0

    async def passage(self, pod: str) -> None:
        """Wait until packets pass, as TCP does: what was sent comes late, unless the connection is given up before."""
        async with asyncio.timeout(DEAD_PEER_SECONDS):
            while pod in self.unreachable:  # noqa: ASYNC110  a retransmission is a timer
                await asyncio.sleep(RETRANSMISSION_SECONDS)

    def heal(self) -> None:
        self.__init__()  # type: ignore[misc]


class VirtualKube(KubeApi):
    """The API server as one operator reaches it."""

    def __init__(self, kube: FakeKube, network: Network) -> None:
        self._kube = kube
        self._network = network

    async def close(self) -> None:
        """Nothing is open."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        timeout_seconds: float = 30.0,
    ) -> tuple[int, Json]:
        await self._reach(timeout_seconds)
        try:
            status, answer = self._kube._answer(method, path, dict(query or {}), json.dumps(body) if body else "")
        except Refused as refusal:
            raw = json.dumps({"reason": str(refusal), "message": f"{method} {path}"}).encode()
            raise error_of(refusal.status, raw, is_apply=content_type == APPLY) from None
        answer = copy.deepcopy(answer)
        await asyncio.sleep(LATENCY_SECONDS)
        if method != "GET" and self._network.loses_answers and "leases" not in path:
            raise KubeUnavailable(0, "TimeoutError", "the answer is lost")
        return status, answer

    async def _reach(self, timeout_seconds: float) -> None:
        await asyncio.sleep(LATENCY_SECONDS)
        if not self._network.has_cluster:
            await asyncio.sleep(min(timeout_seconds, 3.0))
            raise KubeUnavailable(0, "TimeoutError", "cut off")
