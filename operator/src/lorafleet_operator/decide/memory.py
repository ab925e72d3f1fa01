"""What passes over a base remember of each other: little, and never what a pod or the API server could be asked."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from lorafleet_contract.names import ANNOTATION_RETRY
from lorafleet_contract.resources import AdapterResource, AdapterStatus, BaseModelResource
from lorafleet_operator.decide.canary import revisions_of
from lorafleet_operator.decide.views import BaseKey

Answering = tuple[str | None, frozenset[str]]
"""The stable revision, and all that have a part of the requests."""


class Publications:
    """Since when the API server is seen to say which revisions of each adapter answer."""

    def __init__(self) -> None:
        self._seen: dict[BaseKey, dict[str, tuple[AdapterStatus, Answering, datetime]]] = {}

    def of(self, base: BaseKey, adapters: Iterable[AdapterResource], now: datetime) -> Mapping[str, datetime]:
        """Return adapter uid -> time, after a look at the adapters as the API server has them."""
        before, after = self._seen.pop(base, {}), {}
        for adapter in adapters:
            uid, status = adapter.metadata.uid, adapter.status
            known = before.get(uid)
            if known is None or known[0] is not status:
                answering = answering_of(status)
                is_same = known is not None and known[1] == answering
                known = (status, answering, known[2] if known is not None and is_same else now)
            after[uid] = known
        if after:
            self._seen[base] = after
        return {uid: since for uid, (_, _, since) in after.items()}

    def acknowledged(self, base: BaseKey, uid: str, status: AdapterStatus, now: datetime) -> None:
        """The API server has taken a status."""
        seen, answering = self._seen.setdefault(base, {}), answering_of(status)
        if uid not in seen or seen[uid][1] != answering:
            seen[uid] = (status, answering, now)


def answering_of(status: AdapterStatus) -> Answering:
    """Return which revisions requests for the bare name go to."""
    return status.stable_revision, revisions_of(status.traffic)


class Retries:
    """Which adapters somebody asks to be tried again, by an annotation with a new value."""

    def __init__(self) -> None:
        self._seen: dict[BaseKey, dict[str, tuple[str, str]]] = {}
        self._due: dict[BaseKey, set[str]] = {}

    def due(self, base: BaseModelResource, adapters: Iterable[AdapterResource]) -> frozenset[str]:
        """Return the names of the adapters that are told to pods again, until `told`."""
        key = (base.metadata.namespace, base.metadata.name)
        before, after = self._seen.pop(key, {}), {}
        for adapter in adapters:
            uid, mark = adapter.metadata.uid, (_mark(base), _mark(adapter))
            if before.get(uid, mark) != mark:
                self._due.setdefault(key, set()).add(adapter.served_name)
            after[uid] = mark
        if after:
            self._seen[key] = after
        return frozenset(self._due.get(key, ()))

    def told(self, base: BaseKey) -> None:
        """Pods have taken what they were told."""
        self._due.pop(base, None)

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._seen.pop(base, None)
        self._due.pop(base, None)


def _mark(resource: AdapterResource | BaseModelResource) -> str:
    return resource.metadata.annotations.get(ANNOTATION_RETRY, "")
