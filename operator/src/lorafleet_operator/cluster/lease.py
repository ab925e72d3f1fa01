"""One operator leads: a Lease of our own, because the client's leader election does not survive a broken connection.

`leaseTransitions` is the fence: it grows with every taking of the Lease, also by a restarted process of the same pod,
and pods refuse writes with a lower one.
"""

import asyncio
import contextlib
import logging
import uuid
from datetime import UTC, datetime
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeConflict, KubeError, KubeNotFound
from lorafleet_common.paths import Json, collection
from lorafleet_contract.resources import ObjectMeta
from lorafleet_operator.errors import LeaseLost

logger = logging.getLogger(__name__)
DURATION_SECONDS: Final = 30
"""A follower takes a Lease that has not changed for this long.

Long, because what serves goes on without a leader: a control plane that is starved for seconds must not cost a restart.
"""
RENEW_DEADLINE_SECONDS: Final = 20.0
"""A leader that has not renewed for this long writes nothing more and ends, before a follower's DURATION_SECONDS are over."""
RENEW_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 1.0
REQUEST_SECONDS: Final = 6.0
GROUP_VERSION: Final = "coordination.k8s.io/v1"


class Lease:
    """The Lease of one operator process."""

    def __init__(self, api: KubeApi, *, namespace: str, name: str, pod_name: str) -> None:
        self._api = api
        self._collection = collection(GROUP_VERSION, "leases", namespace)
        self._path = f"{self._collection}/{name}"
        self._name = name
        self._pod_name = pod_name
        self.name = f"{namespace}/{name}"
        """What this and its successors are known by."""
        self.identity = f"{pod_name}_{uuid.uuid4().hex[:8]}"
        self._held: Json | None = None
        self._renewed = 0.0
        self._lock = asyncio.Lock()

    @property
    def fence(self) -> int:
        """The number of this leadership; grows with every one."""
        assert self._held is not None
        return int(self._held["spec"].get("leaseTransitions") or 0)

    @property
    def metadata(self) -> ObjectMeta:
        """Of the Lease itself, which Events may be about."""
        assert self._held is not None
        return ObjectMeta.model_validate(self._held["metadata"])

    @property
    def is_held(self) -> bool:
        """Whether this process leads, as far as it knows."""
        return self._held is not None and monotonic() - self._renewed < RENEW_DEADLINE_SECONDS

    async def acquire(self) -> None:
        """Wait until this process leads."""
        seen: tuple[str, ...] = ()
        seen_at = monotonic()
        while True:
            try:
                found = await self._read()
                mark = mark_of(found)
                if mark[:1] != seen[:1]:
                    logger.info("the Lease is held by %s", mark[0] or "nobody")
                if mark != seen:
                    seen, seen_at = mark, monotonic()
                if found is None or self._is_free(mark[0]) or monotonic() - seen_at > DURATION_SECONDS:
                    await self._take(found)
                    logger.info("leading as %s with fence %d", self.identity, self.fence)
                    return
            except KubeConflict:
                continue
            except KubeError as error:
                logger.warning("the Lease cannot be read or taken: %s", error)
            await asyncio.sleep(RETRY_SECONDS)

    def _is_free(self, holder: str) -> bool:
        """Whether nobody leads: nobody has it, or a process of this pod that has ended, else this one would not run."""
        return not holder or holder.rpartition("_")[0] == self._pod_name

    async def hold(self) -> None:
        """Renew until it fails.

        Raises:
            LeaseLost: somebody else holds it, or it could not be renewed in time.
        """
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            while True:
                try:
                    await self._write({})
                    break
                except (KubeConflict, KubeNotFound):
                    await self._reread()
                except KubeError as error:
                    logger.warning("the Lease cannot be renewed: %s", error)
                if monotonic() - self._renewed > RENEW_DEADLINE_SECONDS:
                    raise LeaseLost(f"not renewed for {RENEW_DEADLINE_SECONDS:.0f} s")
                await asyncio.sleep(RETRY_SECONDS)

    async def renew(self) -> None:
        """Make certain that this process leads, now.

        Raises:
            KubeError: it could not be written; somebody else may lead.
        """
        await self._write({})

    async def release(self) -> None:
        """Give the Lease back at once; followers need not wait."""
        if self._held is not None:
            with contextlib.suppress(KubeError):
                await self._write({"holderIdentity": "", "leaseDurationSeconds": 1})
            self._held = None

    async def _read(self) -> Json | None:
        try:
            _, found = await self._api.request("GET", self._path, timeout_seconds=REQUEST_SECONDS)
        except KubeNotFound:
            return None
        return found

    async def _reread(self) -> None:
        try:
            found = await self._read()
        except KubeError as error:
            logger.warning("the Lease cannot be read: %s", error)
            return
        if found is None:
            raise LeaseLost("it was deleted")
        if mark_of(found)[0] != self.identity:
            raise LeaseLost(f"{mark_of(found)[0] or 'nobody'} holds it")
        self._held = found

    async def _take(self, found: Json | None) -> None:
        began = monotonic()
        now = _now()
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": int(((found or {}).get("spec") or {}).get("leaseTransitions") or 0) + 1,
        }
        metadata = {"name": self._name} if found is None else found["metadata"]
        body = {"apiVersion": GROUP_VERSION, "kind": "Lease", "metadata": metadata, "spec": spec}
        if found is None:
            self._held = await self._api.create(self._collection, body)
        else:
            self._held = await self._api.replace(self._path, body)
        self._renewed = began

    async def _write(self, changes: Json) -> None:
        async with self._lock:
            assert self._held is not None
            began = monotonic()
            body = {**self._held, "spec": {**self._held["spec"], "renewTime": _now(), **changes}}
            _, self._held = await self._api.request("PUT", self._path, body=body, timeout_seconds=REQUEST_SECONDS)
            self._renewed = began


def mark_of(found: Json | None) -> tuple[str, ...]:
    """Holder and what changes with every renewal; clocks of other machines are not believed."""
    spec = (found or {}).get("spec") or {}
    return (str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or ""), str(spec.get("leaseTransitions")))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
