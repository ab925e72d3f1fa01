"""Writes status and finalizers by server-side apply, only where something has changed."""

import logging
from collections.abc import Callable
from typing import Final

from lorafleet_common.clock import WallClock, utc_now, whole_seconds
from lorafleet_common.kube.errors import KubeConflict, KubeError, KubeNotFound
from lorafleet_common.paths import Json, collection
from lorafleet_contract.names import ADAPTER_KIND, BASE_MODEL_KIND, FINALIZER, GROUP, VERSION
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import (
    AdapterResource,
    AdapterStatus,
    BaseModelResource,
    BaseModelStatus,
    Condition,
    ObjectMeta,
)
from lorafleet_operator import metrics
from lorafleet_operator.act import events
from lorafleet_operator.cluster.collect import base_key_of
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.decide.conditions import READY, progress_of, said, with_times
from lorafleet_operator.decide.views import BaseKey, BrokenResource
from lorafleet_operator.errors import NotLeading

logger = logging.getLogger(__name__)
STATUS_MANAGER: Final = "lorafleet-operator-status"
FINALIZER_MANAGER: Final = "lorafleet-operator-finalizer"
CLAIM_MANAGER: Final = "lorafleet-operator-claim"
"""Of status.operator alone: the status that an operator writes in its last moment takes nothing from the next one."""
KINDS: Final = {Kind.BASE: BASE_MODEL_KIND, Kind.ADAPTER: ADAPTER_KIND}
API_VERSION: Final = f"{GROUP}/{VERSION}"


class StatusWriter:
    """The only part that writes to the two kinds."""

    def __init__(
        self,
        api: Writes,
        store: Store,
        *,
        reporter: str,
        wake: Callable[[BaseKey], None],
        now: WallClock = utc_now,
    ) -> None:
        self._api = api
        self._store = store
        self._events = events.EventQueue(api, reporter=reporter)
        self._wake = wake
        self._now = now

    async def close(self) -> None:
        """Let the Events that wait be posted, for a moment."""
        await self._events.close()

    async def adapter(self, resource: AdapterResource, status: AdapterStatus, *, is_quiet: bool = False) -> bool:
        """Write the status of a LoraAdapter, and post an Event soon; return whether it was still there.

        With `is_quiet` there is none, except of a step of a rollout.

        Raises:
            KubeError: it could not be written.
        """
        has_switched = resource.status.stable_revision != status.stable_revision
        before, after = resource.status, status
        if not await self._write(Kind.ADAPTER, resource.metadata, after):
            return False
        event = events.step(before.rollout, after.rollout)
        if event is None and not is_quiet:
            event = events.transition(before.conditions, after.conditions, has_switched=has_switched)
        self._tell(Kind.ADAPTER, resource.metadata, event)
        return True

    async def base(self, resource: BaseModelResource, status: BaseModelStatus) -> None:
        """Write the status of a BaseModelDeployment.

        Raises:
            KubeError: it could not be written.
        """
        if await self._write(Kind.BASE, resource.metadata, status):
            event = events.transition(resource.status.conditions, status.conditions)
            self._tell(Kind.BASE, resource.metadata, event)
            self._tell(Kind.BASE, resource.metadata, events.scaled(resource.status.autoscaling, status.autoscaling))

    def tell(self, resource: BaseModelResource, event: tuple[str, str, str]) -> None:
        """Post an Event about a BaseModelDeployment."""
        self._tell(Kind.BASE, resource.metadata, event)

    def _tell(self, kind: Kind, meta: ObjectMeta, event: tuple[str, str, str] | None) -> None:
        if event is not None:
            self._events.add(KINDS[kind], meta, event)

    async def _write(self, kind: Kind, meta: ObjectMeta, status: AdapterStatus | BaseModelStatus) -> bool:
        content = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"operator"})
        if not await self._apply(kind, meta, {"status": content}, "/status", STATUS_MANAGER):
            return False
        metrics.STATUS_WRITES.labels(kind=KINDS[kind]).inc()
        return True

    async def broken(self, resource: BrokenResource, reason: Reason) -> None:
        """Say of a resource that cannot be read why it cannot.

        Raises:
            KubeError: it could not be written.
        """
        kind = Kind.BASE if resource.kind == BASE_MODEL_KIND else Kind.ADAPTER
        before: Json = resource.body.get("status") or {}
        conditions = [Condition.model_validate(condition) for condition in before.get("conditions", [])]
        ready = said(READY, False, reason, resource.problem)
        verdicts = [ready, *progress_of(ready, is_stalled=True, is_waiting=False)]
        after = with_times(verdicts, conditions, generation=resource.meta.generation, now=whole_seconds(self._now()))
        if after == conditions:
            return
        # the rest stays: gateways go on with what answers
        content = {
            **before,
            "observedGeneration": resource.meta.generation,
            "conditions": [c.model_dump(mode="json", by_alias=True, exclude_none=True) for c in after],
        }
        await self._apply(kind, resource.meta, {"status": content}, "/status", STATUS_MANAGER)

    async def claim(self, base: ObjectMeta, operator: str) -> None:
        """Write who operates a base, unless somebody has changed it since it was seen.

        Raises:
            KubeConflict: it has changed.
            KubeError: it could not be written.
        """
        content = {"metadata": {"resourceVersion": base.resource_version}, "status": {"operator": operator}}
        await self._apply(Kind.BASE, base, content, "/status", CLAIM_MANAGER)

    async def hold(self, adapter: ObjectMeta) -> None:
        """Put the finalizer on a LoraAdapter.

        Raises:
            KubeError: it could not be written.
        """
        content = {"metadata": {"finalizers": [FINALIZER]}}
        await self._apply(Kind.ADAPTER, adapter, content, "", FINALIZER_MANAGER)

    async def release(self, adapter: ObjectMeta) -> None:
        """Take the finalizer off a LoraAdapter.

        Raises:
            KubeError: it could not be written.
        """
        await self._apply(Kind.ADAPTER, adapter, {}, "", FINALIZER_MANAGER)

    async def _apply(self, kind: Kind, meta: ObjectMeta, content: Json, sub: str, manager: str) -> bool:
        """Apply content to a resource; False when it is gone.

        Raises:
            KubeConflict: it is another one by now, or was changed at the same time: to be looked at again.
            KubeError: it could not be written.
        """
        identity = {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid}
        body = {
            "apiVersion": API_VERSION,
            "kind": KINDS[kind],
            **content,
            "metadata": {**identity, **content.get("metadata", {})},
        }
        path = f"{collection(API_VERSION, kind, meta.namespace)}/{meta.name}{sub}"
        try:
            written = await self._api.apply(path, body, manager=manager)
        except KubeNotFound as error:
            logger.debug("%s %s/%s is gone: %s", KINDS[kind], meta.namespace, meta.name, error)
            return False
        except (KubeConflict, NotLeading) as error:
            logger.info("%s %s/%s is not written now: %s", KINDS[kind], meta.namespace, meta.name, error)
            raise
        except KubeError as error:
            logger.error("%s %s/%s cannot be written: %s", KINDS[kind], meta.namespace, meta.name, error)
            raise
        if written.get("metadata", {}).get("uid") == meta.uid and self._store.put_answer(kind, written):
            key = base_key_of(kind, written)
            if key is not None:
                self._wake(key)
        return True
