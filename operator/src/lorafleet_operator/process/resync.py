"""Every 30 s everything is listed and compared: what an event missed is healed here."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.client import KubeApi, Listed
from lorafleet_common.kube.errors import KubeError, KubeNotFound
from lorafleet_common.paths import collection
from lorafleet_contract.names import GROUP, LABEL_BASE, VERSION
from lorafleet_operator import metrics
from lorafleet_operator.act.apply import Applier
from lorafleet_operator.cluster.collect import all_keys
from lorafleet_operator.cluster.scope import Change, Scope
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.decide.views import BaseKey

logger = logging.getLogger(__name__)
FIRST_RETRY_SECONDS: Final = 1.0
REFUSALS: Final = (403, 404)


class Resync:
    """Lists all kinds, takes the lists into the store, wakes every base."""

    def __init__(
        self,
        api: KubeApi,
        scope: Scope,
        *,
        seconds: float,
        store: Store,
        applier: Applier,
        wake: Callable[[BaseKey], None],
        tell: Callable[[Change], Awaitable[None]],
    ) -> None:
        self._api = api
        self._scope = scope
        self._seconds = seconds
        self._store = store
        self._applier = applier
        self._wake = wake
        self._tell = tell
        self.last = monotonic()
        """When everything was listed last; at first the start."""
        self.is_synced = False

    async def once(self) -> None:
        """List, compare, wake. What was taken in wakes its bases, also when the rest cannot be listed.

        A namespace of several that is refused is left out.

        Raises:
            KubeError: a list could not be had; nothing has been taken in of that kind.
        """
        refusals: dict[str, str] = {}
        try:
            for kind in Kind:
                await self._take_in(kind, refusals)
            self._applier.forget_applied()
        finally:
            for key in all_keys(self._store):
                self._wake(key)
        for namespace in self._scope.namespaces:
            if namespace is not None:
                self._scope.listed(namespace, refusals.get(namespace))
        for change in self._scope.take_changes():
            await self._tell(change)
        self.last = monotonic()
        self.is_synced = len(refusals) < len(self._scope.namespaces)
        metrics.RESYNC_TIME.set_to_current_time()

    async def for_ever(self) -> None:
        """List again and again; after a failure sooner."""
        delay = self._seconds
        while True:
            await asyncio.sleep(delay)
            try:
                await self.once()
                delay = self._seconds
            except KubeError as error:
                delay = FIRST_RETRY_SECONDS if delay >= self._seconds else delay * 2
                delay = min(delay, self._seconds)
                logger.warning("not everything could be listed, again in %.0f s: %s", delay, error)

    async def _take_in(self, kind: Kind, refusals: dict[str, str]) -> None:
        """List a kind in all scopes; namespaces that are refused are added to `refusals`."""
        version = "v1" if kind is Kind.POD else f"{GROUP}/{VERSION}"
        labels = LABEL_BASE if kind is Kind.POD else None
        missing: list[KubeNotFound] = []
        for scope in self._scope.namespaces:
            known_before = self._store.uids(kind, scope)
            try:
                listed = await self._api.list(collection(version, kind, scope), labels=labels)
            except KubeError as error:
                if scope is None or error.status not in REFUSALS:
                    raise
                if isinstance(error, KubeNotFound):
                    missing.append(error)
                refusals[scope], is_gone = await self._why(scope, error)
                if not is_gone:
                    self._store.hide(kind, scope)
                    continue
                listed = Listed([], 0)
            self._store.replace(kind, listed, known_before=known_before, scope=scope)
        if len(missing) == len(self._scope.namespaces):
            raise missing[0]  # no namespace has the kind: its definition is missing

    async def _why(self, namespace: str, error: KubeError) -> tuple[str, bool]:
        """Return why a namespace is refused, and whether it is gone."""
        try:
            found = await self._api.get(f"/api/v1/namespaces/{namespace}")
        except KubeNotFound:
            return "there is no such namespace", True
        except KubeError:
            return str(error), False
        if found["metadata"].get("deletionTimestamp"):
            return f"the namespace is being deleted ({error})", False
        return str(error), False
