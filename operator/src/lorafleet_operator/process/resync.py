"""Every 30 s everything is listed and compared: what an event missed is healed here."""

import asyncio
import logging
import time
from collections.abc import Callable

from lorafleet_contract.names import GROUP, LABEL_BASE, VERSION
from lorafleet_operator import metrics
from lorafleet_operator.act.apply import Applier
from lorafleet_operator.act.reconcile import Reconciler
from lorafleet_operator.cluster.collect import all_keys
from lorafleet_operator.cluster.kube import KubeApi
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import KubeError
from lorafleet_operator.paths import Json, collection

logger = logging.getLogger(__name__)


class Resync:
    """Lists all kinds, takes the lists into the store, wakes every base."""

    def __init__(
        self,
        api: KubeApi,
        config: OperatorConfig,
        *,
        store: Store,
        applier: Applier,
        reconciler: Reconciler,
        wake: Callable[[BaseKey], None],
    ) -> None:
        self._api = api
        self._config = config
        self._store = store
        self._applier = applier
        self._reconciler = reconciler
        self._wake = wake
        self.last = time.monotonic()
        """When everything was listed last; at first the start."""
        self.is_synced = False

    async def once(self) -> None:
        """List, compare, wake.

        Raises:
            KubeError: a list could not be had; nothing has been taken in of that kind.
        """
        for kind in Kind:
            known_before = self._store.uids(kind)
            self._store.replace(kind, await self._list(kind), known_before=known_before)
        self._applier.forget_applied()
        keys = all_keys(self._store)
        self._reconciler.retry_failures(keys)
        for key in keys:
            self._wake(key)
        self.last = time.monotonic()
        self.is_synced = True
        metrics.RESYNC_TIME.set_to_current_time()

    async def for_ever(self) -> None:
        """List again and again; a failure is logged and the next time is tried sooner."""
        while True:
            await asyncio.sleep(self._config.resync_seconds)
            try:
                await self.once()
            except KubeError as error:
                logger.warning("nothing could be listed: %s", error)

    async def _list(self, kind: Kind) -> list[Json]:
        version = "v1" if kind is Kind.POD else f"{GROUP}/{VERSION}"
        labels = LABEL_BASE if kind is Kind.POD else None
        items: list[Json] = []
        for namespace in self._config.watch_namespaces or (None,):
            items.extend(await self._api.list(collection(version, kind, namespace), labels=labels))
        return items
