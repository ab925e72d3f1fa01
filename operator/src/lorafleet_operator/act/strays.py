"""What is left in namespaces that are not served any more: bases are given up, and adapters that are deleted may go."""

import asyncio
import logging
from typing import Final

from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.paths import Json, collection
from lorafleet_contract.names import FINALIZER, GROUP, VERSION
from lorafleet_contract.resources import ObjectMeta
from lorafleet_operator.act.operators import Operators
from lorafleet_operator.act.status_writer import StatusWriter
from lorafleet_operator.cluster.collect import base_key_of
from lorafleet_operator.cluster.scope import Scope
from lorafleet_operator.cluster.store import Kind

logger = logging.getLogger(__name__)
NOBODY: Final = ""
"""In a base's status: whoever had it serves its namespace no more."""


class Strays:
    """Looks beyond the namespaces that are served, where the API server shows them."""

    def __init__(self, api: KubeApi, scope: Scope, operators: Operators, writer: StatusWriter) -> None:
        self._api = api
        self._scope = scope
        self._operators = operators
        self._writer = writer

    async def for_ever(self, seconds: float) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> None:
        """Look once; what cannot be seen or written is left for the next time."""
        if None in self._scope.namespaces:
            return
        try:
            bases = [(base_key_of(Kind.BASE, body), body) for body in await self._list(Kind.BASE)]
            adapters = [body for body in await self._list(Kind.ADAPTER) if self._is_outside(body)]
        except KubeError as error:
            logger.debug("other namespaces are not shown: %s", error)
            return
        me, outside = self._operators.me, [(key, body) for key, body in bases if self._is_outside(body)]
        self._operators.elsewhere = {
            key: holder
            for key, body in outside
            if key is not None and (holder := _holder(body)) not in (None, NOBODY, me)
        }
        for _, body in outside:
            if _holder(body) == me:
                await self._attempt(body, gives_up=True)
        holders = {key: _holder(body) for key, body in bases}
        for body in adapters:
            metadata = body["metadata"]
            if not metadata.get("deletionTimestamp") or FINALIZER not in metadata.get("finalizers", []):
                continue
            # of a base that is there somebody else takes care, unless it was ours
            if holders.get(base_key_of(Kind.ADAPTER, body), NOBODY) in (NOBODY, me):
                await self._attempt(body, gives_up=False)

    async def _attempt(self, body: Json, *, gives_up: bool) -> None:
        meta = ObjectMeta.model_validate(body["metadata"])
        try:
            if gives_up:
                await self._writer.claim(meta, NOBODY)
                logger.info("%s/%s is given up: its namespace is not served any more", meta.namespace, meta.name)
            else:
                await self._writer.release(meta)
        except KubeError as error:
            logger.warning("%s/%s cannot be written: %s", meta.namespace, meta.name, error)

    async def _list(self, kind: Kind) -> list[Json]:
        return (await self._api.list(collection(f"{GROUP}/{VERSION}", kind))).items

    def _is_outside(self, body: Json) -> bool:
        return not self._scope.serves(body["metadata"]["namespace"])


def _holder(base: Json) -> str | None:
    holder = (base.get("status") or {}).get("operator")
    return None if holder is None else str(holder)
