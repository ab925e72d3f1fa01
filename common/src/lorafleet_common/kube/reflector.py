"""Keeps a cache equal to one collection of the API server: list, watch, go on where it broke off, list again when too late."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.cache import Cache
from lorafleet_common.kube.client import Event, KubeApi
from lorafleet_common.kube.errors import KubeError, KubeExpired, KubeNotFound, KubeRefused
from lorafleet_common.paths import version_of

logger = logging.getLogger(__name__)
FIRST_RETRY_SECONDS: Final = 0.05
MAX_RETRY_SECONDS: Final = 2.0
MAX_REFUSED_SECONDS: Final = 5.0
"""One namespace that is refused is asked for again this often."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What one reflector covers."""

    kind: str
    """Plural, for logs and metrics."""
    path: str
    namespace: str = ""
    """Empty: all."""
    labels: str = ""


class Reflector:
    """One collection, for ever. Data never vanishes because the API server is away."""

    def __init__(
        self, api: KubeApi, scope: Scope, cache: Cache[Any], *, restarted: Callable[[str, str], None] = lambda *_: None
    ) -> None:
        self.scope = scope
        self._restarted = restarted
        self._api = api
        self._cache = cache
        self._version = 0
        self._num_failures = 0
        self.is_listed = False
        self.is_refused = False
        """One namespace that the API server does not show: it is gone, or rights are missing."""
        self.problem = "nothing was listed yet"
        """Why it does not follow; empty while it does."""
        self.heard_at = 0.0
        """Unix seconds when the API server said something last."""

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            reason = "ended"
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except KubeExpired:
                reason, self._version = "expired", 0
                self._num_failures += 1
                logger.info("%s: too far behind, listing again", self._where)
            except KubeError as error:
                reason = "broken"
                self._failed(error)
            self._restarted(self.scope.kind, reason)
            await asyncio.sleep(self._pause())

    async def _list(self) -> None:
        listed = await self._api.list(self.scope.path, labels=self.scope.labels)
        self._cache.replace(listed.items, listed.version, self.scope.namespace)
        self._version = listed.version
        if not self.is_listed:
            logger.info("%s: %d listed", self._where, len(listed.items))
        self.is_listed = True
        self._said_something()

    async def _watch(self) -> None:
        began = monotonic()
        async for event in self._api.watch(self.scope.path, version=self._version, labels=self.scope.labels):
            self._take(event)
            self._num_failures = 0
            self._said_something()
        if monotonic() - began > MAX_RETRY_SECONDS:
            self._num_failures = 0
        else:
            self._num_failures += 1  # an API server that ends watches at once is backed off from

    def _take(self, event: Event) -> None:
        version = version_of(event.body)
        if event.type in ("ADDED", "MODIFIED"):
            self._cache.put(event.body, self.scope.namespace)
        elif event.type == "DELETED":
            self._cache.remove(event.body, self.scope.namespace)
        else:
            self._cache.advance(version, self.scope.namespace)
        self._version = version

    def _said_something(self) -> None:
        self.problem = ""
        if self.is_refused:
            self.is_refused = False
            logger.info("%s: may be followed again", self._where)
        self.heard_at = time.time()

    def _failed(self, error: KubeError) -> None:
        self._num_failures += 1
        self.problem = f"{self._where}: {error}"
        self.is_refused = self.scope.namespace != "" and isinstance(error, KubeRefused | KubeNotFound)
        # that a watch breaks off is normal; that it cannot be had again is not
        is_news = not error.retryable and self._num_failures == 1
        is_loud = is_news or self._num_failures in (3, 10) or self._num_failures % 100 == 0
        logger.log(logging.WARNING if is_loud else logging.DEBUG, "cannot follow %s", self.problem)

    def _pause(self) -> float:
        """Return how long to wait: longer after each failure; processes that lost one API server do not come back as one."""
        limit = MAX_REFUSED_SECONDS if self.is_refused else MAX_RETRY_SECONDS
        delay = min(FIRST_RETRY_SECONDS * 2.0 ** min(self._num_failures, 10), limit)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  no secret

    @property
    def _where(self) -> str:
        return f"{self.scope.kind} of {self.scope.namespace or 'all namespaces'}"
