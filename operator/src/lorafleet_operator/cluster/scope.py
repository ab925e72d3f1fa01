"""Which namespaces are served, and which of them the API server refuses to show now.

One that is refused, because it is gone or because somebody took the rights away, costs itself only: it is neither listed
nor watched until it may be, and what was known of it stays.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_operator import metrics

logger = logging.getLogger(__name__)
WATCH_RETRY_SECONDS: Final = 60.0
"""A namespace that may be listed and not watched is tried again after this."""
Change = tuple[str, str | None]
"""A namespace, and why it is refused from now on, or for another reason than before; None: it is served again."""


class Scope:
    """The namespaces that are served."""

    def __init__(self, namespaces: Collection[str], *, watch_retry_seconds: float = WATCH_RETRY_SECONDS) -> None:
        self.namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        """None is all of them."""
        self._watch_retry_seconds = watch_retry_seconds
        self._by_list: dict[str, str] = {}
        self._by_watch: dict[str, tuple[str, float]] = {}
        self._changes: list[Change] = []
        self._changed = asyncio.Event()

    def serves(self, namespace: str) -> bool:
        """Whether objects of a namespace are this operator's business."""
        return None in self.namespaces or namespace in self.namespaces

    @property
    def refused(self) -> dict[str, str]:
        """Namespaces that are refused, and why."""
        return {namespace: why for namespace, (why, _) in self._by_watch.items()} | self._by_list

    @property
    def watchable(self) -> tuple[str | None, ...]:
        """What may be watched."""
        return tuple(namespace for namespace in self.namespaces if namespace not in self.refused)

    def listed(self, namespace: str, refusal: str | None) -> None:
        """Take in whether a namespace could be listed."""
        before = self.refused
        if refusal is not None:
            self._by_list[namespace] = refusal
            if before.get(namespace, refusal) != refusal:
                logger.warning("namespace %s is still not served: %s", namespace, refusal)
                self._changes.append((namespace, refusal))
        else:
            self._by_list.pop(namespace, None)
            since = self._by_watch[namespace][1] if namespace in self._by_watch else monotonic()
            if monotonic() - since > self._watch_retry_seconds:
                del self._by_watch[namespace]
        self._compare(before)

    def watch_refused(self, namespace: str, why: str) -> None:
        """Take in that a watch in a namespace was refused."""
        before = self.refused
        self._by_watch[namespace] = (why, monotonic())
        self._compare(before)

    def take_changes(self) -> list[Change]:
        """Return what has changed since this was asked last."""
        changes, self._changes = self._changes, []
        return changes

    async def wait_changed(self) -> None:
        """Wait until another set of namespaces may be watched."""
        await self._changed.wait()

    def _compare(self, before: dict[str, str]) -> None:
        after = self.refused
        for namespace in after.keys() - before.keys():
            logger.warning("namespace %s is not served: %s", namespace, after[namespace])
            metrics.NAMESPACE_REFUSED.labels(namespace).set(1)
            self._changes.append((namespace, after[namespace]))
        for namespace in before.keys() - after.keys():
            logger.info("namespace %s is served again", namespace)
            metrics.NAMESPACE_REFUSED.remove(namespace)
            self._changes.append((namespace, None))
        if after.keys() != before.keys():
            self._changed.set()
            self._changed = asyncio.Event()
