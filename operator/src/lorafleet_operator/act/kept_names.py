"""The served names of base models for the time after them, kept in a ConfigMap of the operator's namespace.

A base has no finalizer, and its status goes with it: what it leaves reserved has to be written down before.
"""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any, Final

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
_LIST: Final = TypeAdapter(list[Any])


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
        self._is_loaded = False

    async def load(self) -> None:
        """Read what was kept. Where that is refused nothing is reserved, nothing is written, and it is tried again later.

        Raises:
            KubeError: the API server is away.
        """
        try:
            found = await self._api.get(self._path)
        except KubeNotFound:
            self._is_loaded = True
            return
        except KubeError as error:
            if error.retryable:
                raise
            logger.warning("the names of bases that are gone cannot be read: %s", error)
            return
        self._written, self._is_loaded = str((found.get("data") or {}).get(FIELD, "[]")), True
        self._store.kept_bases = {kept.key: kept for kept in _entries_of(self._written)} | self._store.kept_bases

    async def keep(self) -> None:
        """Take in which bases there are, and write down what has changed; never over what has not been read."""
        try:
            if not self._is_loaded:
                await self.load()
        except KubeError as error:
            logger.warning("the names of bases that are gone cannot be read: %s", error)
        kept = kept_after(self._store.kept_bases, bases_of(self._store), whole_seconds(self._now()))
        self._store.kept_bases = kept
        entries = [entry.model_dump(mode="json", by_alias=True, exclude_defaults=True) for entry in kept.values()]
        text = json.dumps(sorted(entries, key=lambda entry: (entry["namespace"], entry["name"])), separators=(",", ":"))
        if not self._is_loaded or text == self._written or (self._written is None and not kept):
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


def _entries_of(text: str) -> Iterator[KeptBase]:
    """Yield what can be read of a list that may be another version's; one entry that cannot costs no other."""
    try:
        entries = _LIST.validate_json(text)
    except ValidationError as error:
        logger.warning("the names of bases that are gone cannot be read: %s", error)
        return
    for entry in entries:
        try:
            yield KeptBase.model_validate(entry)
        except ValidationError as error:
            logger.warning("the name of a base that is gone cannot be read: %s", error)
