"""The served names of base models for the time after them, kept in a ConfigMap of the operator's namespace.

A base has no finalizer, and its status goes with it: what it leaves reserved has to be written down before.
"""

import asyncio
import json
import logging
from typing import Final

from pydantic import TypeAdapter, ValidationError

from lorafleet_common.clock import WallClock, whole_seconds
from lorafleet_common.kube.client import KubeApi
from lorafleet_common.kube.errors import KubeError, KubeNotFound
from lorafleet_common.paths import collection
from lorafleet_contract.names import MANAGED_BY
from lorafleet_operator.cluster.collect import bases_of
from lorafleet_operator.cluster.store import Store
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.decide.kept_names import KeptBase, kept_after

logger = logging.getLogger(__name__)
FIELD: Final = "bases.json"
_ENTRIES: Final = TypeAdapter(list[KeptBase])


class KeptNames:
    """Keeps `store.kept_bases` and the ConfigMap equal."""

    def __init__(
        self, api: KubeApi, writes: Writes, store: Store, *, namespace: str, name: str, now: WallClock
    ) -> None:
        self._api = api
        self._writes = writes
        self._store = store
        self._metadata = {"name": name, "namespace": namespace}
        self._path = f"{collection('v1', 'configmaps', namespace)}/{name}"
        self._now = now
        self._written: str | None = None

    async def load(self) -> None:
        """Read what was kept; without it nothing is reserved, and nothing stops."""
        try:
            self._written = str(((await self._api.get(self._path)).get("data") or {}).get(FIELD, "[]"))
            self._store.kept_bases = {kept.key: kept for kept in _ENTRIES.validate_json(self._written)}
        except KubeNotFound:
            return
        except (KubeError, ValidationError) as error:
            logger.warning("the names of bases that are gone cannot be read: %s", error)

    async def keep(self) -> None:
        """Take in which bases there are, and write down what has changed."""
        kept = kept_after(self._store.kept_bases, bases_of(self._store), whole_seconds(self._now()))
        self._store.kept_bases = kept
        entries = [entry.model_dump(mode="json", by_alias=True, exclude_defaults=True) for entry in kept.values()]
        text = json.dumps(sorted(entries, key=lambda entry: (entry["namespace"], entry["name"])), separators=(",", ":"))
        if text == self._written or (self._written is None and not kept):
            return
        labels = {"app.kubernetes.io/part-of": "lorafleet", "app.kubernetes.io/managed-by": MANAGED_BY}
        metadata = {**self._metadata, "labels": labels}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {FIELD: text}}
        try:
            await self._writes.apply(self._path, body, manager=MANAGED_BY)
            self._written = text
        except KubeError as error:
            logger.warning("the names of bases cannot be kept: %s", error)

    async def for_ever(self, seconds: float) -> None:
        """Keep again and again."""
        while True:
            await asyncio.sleep(seconds)
            await self.keep()
