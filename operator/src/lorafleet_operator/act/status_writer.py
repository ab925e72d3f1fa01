"""Writes status and finalizers by server-side apply, only where something has changed."""

import logging
from typing import Final

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
from lorafleet_operator.cluster.kube import KubeApi
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.decide.conditions import READY, progress_of, said, with_times
from lorafleet_operator.decide.views import BrokenResource
from lorafleet_operator.errors import KubeConflict, KubeError, KubeNotFound
from lorafleet_operator.paths import Json, collection

logger = logging.getLogger(__name__)
STATUS_MANAGER: Final = "lorafleet-operator-status"
FINALIZER_MANAGER: Final = "lorafleet-operator-finalizer"
KINDS: Final = {Kind.BASE: BASE_MODEL_KIND, Kind.ADAPTER: ADAPTER_KIND}
API_VERSION: Final = f"{GROUP}/{VERSION}"


class StatusWriter:
    """The only part that writes to the two kinds."""

    def __init__(self, api: KubeApi, store: Store, *, reporter: str) -> None:
        self._api = api
        self._store = store
        self._reporter = reporter

    async def adapter(self, resource: AdapterResource, status: AdapterStatus) -> None:
        """Write the status of a LoraAdapter.

        Raises:
            KubeError: it could not be written.
        """
        has_switched = resource.status.stable_revision != status.stable_revision
        await self._write(Kind.ADAPTER, resource.metadata, resource.status, status, has_switched=has_switched)

    async def base(self, resource: BaseModelResource, status: BaseModelStatus) -> None:
        """Write the status of a BaseModelDeployment.

        Raises:
            KubeError: it could not be written.
        """
        await self._write(Kind.BASE, resource.metadata, resource.status, status)

    async def _write(
        self,
        kind: Kind,
        meta: ObjectMeta,
        before: AdapterStatus | BaseModelStatus,
        after: AdapterStatus | BaseModelStatus,
        *,
        has_switched: bool = False,
    ) -> None:
        content = after.model_dump(mode="json", by_alias=True, exclude_none=True)
        if not await self._apply(kind, meta, {"status": content}, "/status", STATUS_MANAGER):
            return
        metrics.STATUS_WRITES.labels(kind=KINDS[kind]).inc()
        event = events.transition(before.conditions, after.conditions, has_switched=has_switched)
        if event is not None:
            await events.post(self._api, KINDS[kind], meta, event, reporter=self._reporter)

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
        after = with_times(verdicts, conditions, generation=resource.meta.generation, now=events.now())
        if after == conditions:
            return
        # the rest stays: gateways go on with what answers
        content = {
            **before,
            "observedGeneration": resource.meta.generation,
            "conditions": [c.model_dump(mode="json", by_alias=True, exclude_none=True) for c in after],
        }
        await self._apply(kind, resource.meta, {"status": content}, "/status", STATUS_MANAGER)

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
        """Apply content to a resource; False when it is gone or another one by now."""
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
        except (KubeNotFound, KubeConflict) as error:
            logger.debug("%s %s/%s is another one by now: %s", KINDS[kind], meta.namespace, meta.name, error)
            return False
        except KubeError as error:
            logger.error("%s %s/%s cannot be written: %s", KINDS[kind], meta.namespace, meta.name, error)
            raise
        if written.get("metadata", {}).get("uid") == meta.uid:
            self._store.put(kind, written)
        return True
