"""Every 30 s everything is listed and compared: what an event missed is healed here."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from lorafleet_common.kube.client import KubeApi, Listed
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.paths import collection
from lorafleet_contract.names import GROUP, LABEL_BASE, VERSION
from lorafleet_operator import metrics
from lorafleet_operator.act.apply import Applier
from lorafleet_operator.clock import monotonic
from lorafleet_operator.cluster.collect import all_keys
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.decide.views import BaseKey

logger = logging.getLogger(__name__)
FIRST_RETRY_SECONDS: Final = 1.0


class Resync:
    """Lists all kinds, takes the lists into the store, wakes every base."""

    def __init__(
        self,
        api: KubeApi,
        config: OperatorConfig,
        *,
        store: Store,
        applier: Applier,
        wake: Callable[[BaseKey], None],
    ) -> None:
        self._api = api
        self._config = config
        self._store = store
        self._applier = applier
        self._wake = wake
        self.last = monotonic()
        """When everything was listed last; at first the start."""
        self.is_synced = False

    async def once(self) -> None:
        """List, compare, wake. What was taken in wakes its bases, also when the rest cannot be listed.

        Raises:
            KubeError: a list could not be had; nothing has been taken in of that kind.
        """
        try:
            for kind in Kind:
                known_before = self._store.uids(kind)
                self._store.replace(kind, await self._list(kind), known_before=known_before)
            self._applier.forget_applied()
        finally:
            for key in all_keys(self._store):
                self._wake(key)
        self.last = monotonic()
        self.is_synced = True
        metrics.RESYNC_TIME.set_to_current_time()

    async def for_ever(self) -> None:
        """List again and again; after a failure sooner."""
        delay = self._config.resync_seconds
        while True:
            await asyncio.sleep(delay)
            try:
                await self.once()
                delay = self._config.resync_seconds
            except KubeError as error:
                delay = FIRST_RETRY_SECONDS if delay >= self._config.resync_seconds else delay * 2
                delay = min(delay, self._config.resync_seconds)
                logger.warning("not everything could be listed, again in %.0f s: %s", delay, error)

    async def _list(self, kind: Kind) -> Listed:
        version = "v1" if kind is Kind.POD else f"{GROUP}/{VERSION}"
        labels = LABEL_BASE if kind is Kind.POD else None
        lists = [
            await self._api.list(collection(version, kind, namespace), labels=labels)
            for namespace in self._config.watch_namespaces or (None,)
        ]
        # of several lists the oldest says what is certainly gone
        return Listed([item for one in lists for item in one.items], min(one.version for one in lists))
