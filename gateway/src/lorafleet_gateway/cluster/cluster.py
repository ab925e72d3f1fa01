"""The cluster as the gateway follows it: reflectors fill the directory, the directory tells the fleet which pods there are."""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from lorafleet_common.kube.cache import Cache
from lorafleet_common.kube.client import KubeApi, Listed
from lorafleet_common.kube.errors import KubeError, KubeNotFound, KubeRefused
from lorafleet_common.kube.reflector import Reflector, Scope
from lorafleet_common.metrics import OTHER
from lorafleet_common.paths import collection
from lorafleet_contract.names import (
    ADAPTER_PLURAL,
    BASE_MODEL_PLURAL,
    GROUP,
    LABEL_ROLE,
    MAX_SERVED_NAME,
    ROLE_PODS,
    SERVED_NAME,
    VERSION,
)
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.directory import Directory, Target
from lorafleet_gateway.cluster.lookup import Lookups
from lorafleet_gateway.errors import (
    AdapterFailed,
    AdapterLoading,
    ModelNotFound,
    ModelUnreadable,
    NoReadyPod,
    WatchEnded,
)
from lorafleet_gateway.fleet.pods import Fleet, Pod
from lorafleet_gateway.metrics import Reading
from lorafleet_gateway.views import BaseKey

RESOURCES: Final = f"{GROUP}/{VERSION}"
SLICES: Final = "endpointslices"
_LEGAL_NAME: Final = re.compile(SERVED_NAME)
"""Of served names; no other can be found."""
LOOKUP_SECONDS: Final = 2.0
MAX_NAMED: Final = 50
"""Objects that a metric names."""


@dataclass(frozen=True, slots=True)
class _Followed:
    """A kind of which names are looked up, in one scope."""

    path: str
    cache: Cache[Any]
    namespace: str


class Cluster:
    """What names mean and which pods there are, followed until cancelled."""

    def __init__(self, api: KubeApi, fleet: Fleet, namespaces: tuple[str, ...]) -> None:
        self._api = api
        self.fleet = fleet
        self.directory = Directory(self._endpoints_changed, fleet.stable_of)
        self.lookups = Lookups(self._find)
        self._was_settled = False
        self._reflectors: list[Reflector] = []
        self._named: list[_Followed] = []
        kinds: tuple[tuple[str, str, str, Cache[Any]], ...] = (
            (BASE_MODEL_PLURAL, RESOURCES, "", self.directory.bases),
            (ADAPTER_PLURAL, RESOURCES, "", self.directory.adapters),
            (SLICES, "discovery.k8s.io/v1", f"{LABEL_ROLE}={ROLE_PODS}", self.directory.slices),
        )
        for namespace in namespaces or ("",):
            for plural, group_version, labels, cache in kinds:
                path = collection(group_version, plural, namespace or None)
                scope = Scope(plural, path, namespace, labels)
                self._reflectors.append(Reflector(api, scope, cache, restarted=_restarted))
                if plural != SLICES:
                    self._named.append(_Followed(path, cache, namespace))

    async def follow(self) -> None:
        """Follow the API server until cancelled.

        Raises:
            WatchEnded: a reflector ended, which none may.
        """
        tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            raise WatchEnded("a watch ended for good")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.lookups.close()

    async def target(self, name: str) -> Target:
        """Return what a name means, having looked it up in the API server if it seems to mean nothing.

        Raises:
            ModelNotFound: nothing has the name.
            AdapterFailed: the adapter was refused.
            AdapterLoading: the adapter is not answerable yet.
            ModelUnreadable: who may have the name cannot be read.
            NoReadyPod: the name is unknown and the API server cannot be asked.
        """
        try:
            return self.directory.target(name)
        except (ModelNotFound, ModelUnreadable, AdapterFailed, AdapterLoading):
            if len(name) > MAX_SERVED_NAME or not _LEGAL_NAME.fullmatch(name):
                raise
            answered = await self.lookups.look_up(name)
        try:
            return self.directory.target(name)
        except ModelNotFound as error:
            if answered:
                raise
            raise NoReadyPod(f"whether there is a model {name!r} cannot be found out now") from error

    def unready_reason(self) -> str | None:
        """Return why requests cannot be answered rightly yet; None from the first time that they can, for ever.

        A namespace that is refused is not waited for, unless all are.
        """
        if self._was_settled:
            return None
        listed = {reflector.scope.kind for reflector in self._reflectors if reflector.is_listed}
        for reflector in self._reflectors:
            is_passed_over = reflector.is_refused and reflector.scope.kind in listed
            if not reflector.is_listed and not is_passed_over:
                return reflector.problem
        if any(pod.endpoint.is_ready and not pod.was_asked for pod in self.fleet.all()):
            return "pods are being asked what they hold"
        self._was_settled = True
        return None

    def readings(self) -> list[Reading]:
        """Return the gauges that are read at a scrape."""
        heard: dict[str, float] = {}
        for reflector in self._reflectors:
            if reflector.is_refused:
                continue
            kind = reflector.scope.kind
            heard[kind] = min(reflector.heard_at, heard.get(kind, reflector.heard_at))
        counts: dict[tuple[str, str], int] = {}
        at_zero: dict[str, bool] = {}
        adapters: dict[str, int] = {}
        num_adapters = self.directory.num_adapters()
        for key in self.directory.base_keys():
            label = self.label_of(key)
            adapters[label] = adapters.get(label, 0) + num_adapters[key]
            base = self.directory.base(key)
            if base is not None and base.zero is not None:
                at_zero[label] = base.is_at_zero
            for state in ("ready", "unreachable", "not_ready"):
                counts.setdefault((label, state), 0)
            for pod in self.fleet.of(key):
                counts[label, _state_of(pod)] += 1
        return [
            *(Reading(metrics.ENDPOINTS, labels, number) for labels, number in counts.items()),
            *(Reading(metrics.ADAPTERS, (label,), number) for label, number in adapters.items()),
            *(Reading(metrics.SCALED_TO_ZERO, (label,), number) for label, number in at_zero.items()),
            *(Reading(metrics.WATCH_HEARD, (kind,), at) for kind, at in heard.items()),
            *(Reading(metrics.NAMESPACE_REFUSED, (namespace,), 1) for namespace in sorted(self._refused())),
            *self._not_read(),
        ]

    def _not_read(self) -> list[Reading]:
        """Return who cannot be read: those by name that are not served, as far as there is room, then the others."""
        found = sorted(self.directory.not_read(), key=lambda one: one.is_served)
        counts = Counter(
            (one.kind, one.where if index < MAX_NAMED else OTHER, str(one.is_served).lower())
            for index, one in enumerate(found)
        )
        return [Reading(metrics.UNREADABLE, labels, number) for labels, number in counts.items()]

    def label_of(self, key: BaseKey) -> str:
        """Return the value of the label `base` for a base."""
        base = self.directory.base(key)
        return metrics.BASES.of((base.name if base is not None else None) or key[1])

    def _refused(self) -> set[str]:
        """Return the namespaces of which something cannot be followed."""
        return {reflector.scope.namespace for reflector in self._reflectors if reflector.is_refused}

    async def _find(self, name: str) -> int:
        answers = await asyncio.gather(*(self._find_in(kind, name) for kind in self._named))
        found = [(kind, one) for kind, one in zip(self._named, answers, strict=True) if isinstance(one, Listed)]
        if not found:
            raise next(error for error in answers if isinstance(error, KubeError))
        for kind, listed in found:
            for body in listed.items:
                kind.cache.put_found(body, kind.namespace)
        return sum(len(listed.items) for _, listed in found)

    async def _find_in(self, kind: _Followed, name: str) -> Listed | KubeError:
        """Return what has the name in one scope, or that the namespace is refused.

        Raises:
            KubeError: it cannot be found out.
        """
        fields = f"status.servedName={name}"
        try:
            return await self._api.list(kind.path, fields=fields, timeout_seconds=LOOKUP_SECONDS)
        except (KubeRefused, KubeNotFound) as error:
            if not kind.namespace:
                raise
            return error

    def _endpoints_changed(self, key: BaseKey) -> None:
        self.fleet.sync(key, self.directory.endpoints(key))


def _restarted(kind: str, reason: str) -> None:
    metrics.WATCH_RESTARTS.of(kind, reason).inc()


def _state_of(pod: Pod) -> str:
    if not pod.is_ready:
        return "not_ready"
    return "ready" if pod.is_reachable else "unreachable"
