"""Where a pod may have to be told something: of a pod that had what it should only what has changed since is compared. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lorafleet_contract.names import revision_of
from lorafleet_operator.decide.catalogue import Catalogue, CatalogueMemory, Key
from lorafleet_operator.decide.diff import PodChange, unwanted_of
from lorafleet_operator.decide.entry_index import EntryIndex
from lorafleet_operator.decide.views import ObservedPod

Index = Mapping[Key, Any]
"""A catalogue by key: what is the same in two of them is the same object."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """A pod as it was compared with a catalogue."""

    index: Index
    seen: EntryIndex
    open: frozenset[Key]
    """What it was told, or will have to let go: not as it should be while nothing else is heard of it."""


class ToldMemory:
    """What passes over a base remember of each other's comparisons."""

    def __init__(self) -> None:
        self.catalogue = CatalogueMemory()
        self._last: Index = {}
        """Of the last pass."""
        self._index: Index = {}
        self._position: dict[Key, int] = {}
        self._changed: frozenset[Key] = frozenset()
        """What is another in the catalogue of this pass."""
        self._before: dict[str, _Compared] = {}
        self._compared: dict[str, _Compared] = {}
        self._names: Collection[str] = ()
        self.unwanted: set[Key] = set()
        """What some pod that can be told has in this pass and should not have."""

    def begin(self, catalogue: Catalogue, retried: Collection[str]) -> None:
        """A pass with this catalogue begins; what has one of the names that are `retried` is compared in any case."""
        self.unwanted = set()
        self._last, self._index = self._index, catalogue.index
        self._before, self._compared, self._names = self._compared, {}, retried
        self._position = {key: number for number, key in enumerate(self._index)}
        self._changed = frozenset(_differences(self._last, self._index))

    def keys_of(self, pod: ObservedPod, fence: int) -> list[Key] | None:
        """Return where the pod may have to be told something, in the order of the catalogue; None: anywhere."""
        known = self._before.get(pod.uid)
        if known is None or known.index is not self._last or pod.local_names:
            return None
        if pod.state is None or pod.state.fence < fence:
            return None
        keys = self._changed | known.open
        if known.seen is not pod.index:
            keys |= pod.index.since(known.seen)
        if self._names:
            keys |= {key for key in self._index if key[0] in self._names}
        return sorted(keys, key=lambda key: (self._position.get(key, -1), key))

    def compared(
        self, pod: ObservedPod, change: PodChange | None, keys: list[Key] | None, catalogue: Catalogue
    ) -> None:
        """Take in what came of it; `keys` as `keys_of` returned them."""
        unwanted = unwanted_of(pod, catalogue.wanted_of(pod, ()), keys)
        self.unwanted |= unwanted
        if pod.local_names:
            return
        told = {(entry.name, revision_of(entry.digest)) for entry in change.entries} if change is not None else set()
        self._compared[pod.uid] = _Compared(self._index, pod.index, frozenset(told | unwanted))


def _differences(before: Mapping[Key, object], after: Mapping[Key, object]) -> set[Key]:
    found = {key for key, value in after.items() if before.get(key) is not value}
    return found | (before.keys() - after.keys())
