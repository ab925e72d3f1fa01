"""The entries of a pod's document, as passes look them up. Of a later document of the pod only what has changed is looked at. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import is_not
from typing import Final

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Owner, Residency

Key = tuple[str, str]
"""Served name and revision."""
MAX_STEPS: Final = 16
"""Documents of a pod between two of which it is remembered what has changed."""


class _Step:
    """From one document of a pod to the next."""

    __slots__ = ("before", "keys")

    def __init__(self, before: "_Step | None" = None, keys: Iterable[Key] = ()) -> None:
        self.before = before
        self.keys = tuple(keys)
        """Of what has become another."""
        end: _Step | None = self
        for _ in range(MAX_STEPS):
            end = end.before if end is not None else None
        if end is not None:
            end.before = None  # else the first document of a pod would be remembered as long as the pod


@dataclass(frozen=True, slots=True)
class EntryIndex:
    """Entries of one document."""

    entries: Sequence[ObservedAdapter]
    own: Mapping[str, tuple[ObservedAdapter, ...]]
    """The operator's by served name."""
    revisions: Mapping[tuple[str, str], ObservedAdapter]
    """The same by name and revision."""
    residents: frozenset[str]
    """Served names of the operator's that are to be kept resident."""
    local_names: frozenset[str]
    """Served names of those that are local."""
    pinned: tuple[ObservedAdapter, ...]
    """Of all owners, but what has failed."""
    step: _Step = field(repr=False, compare=False, default_factory=_Step)
    """What has become of the document before."""

    def now(self, entries: Sequence[ObservedAdapter]) -> "EntryIndex":
        """Return the index of what the same pod says now: most of it with the same objects."""
        if entries is self.entries:
            return self
        come, gone = _difference(self.entries, entries)
        if len(come) + len(gone) > len(entries) // 2:
            return index_of(entries)
        revisions, own = dict(self.revisions), dict(self.own)
        changed: dict[str, list[ObservedAdapter]] = {}
        left = set(map(id, gone))
        for entry in (*gone, *come):
            if entry.owner is Owner.OPERATOR and entry.name not in changed:
                changed[entry.name] = [one for one in own.get(entry.name, ()) if id(one) not in left]
        for entry in _own(gone):
            revisions.pop((entry.name, entry.revision), None)
        for entry in _own(come):
            revisions[entry.name, entry.revision] = entry
            changed[entry.name].append(entry)
        own |= {name: tuple(those) for name, those in changed.items()}
        for name in [name for name, those in changed.items() if not those]:
            del own[name]
        residents = {name for name, those in changed.items() if any(map(_is_resident, those))}
        has_local = bool(self.local_names) or any(entry.owner is Owner.LOCAL for entry in come)
        pinned = [entry for entry in self.pinned if id(entry) not in left] + [
            entry for entry in come if _is_pinned(entry)
        ]
        return EntryIndex(
            entries,
            own,
            revisions,
            residents=self.residents.difference(changed) | residents,
            local_names=_local_names(entries) if has_local else frozenset(),
            pinned=tuple(pinned),
            step=_Step(self.step, ((entry.name, entry.revision) for entry in _own((*gone, *come)))),
        )

    def since(self, before: "EntryIndex") -> set[Key]:
        """Return in what of the operator's this is another than an index of the same pod, and maybe in a little more."""
        step: _Step | None = self.step
        keys = set[Key]()
        while step is not None:
            if step is before.step:
                return keys
            keys.update(step.keys)
            step = step.before
        found = {key for key, entry in self.revisions.items() if before.revisions.get(key) is not entry}
        return found | (before.revisions.keys() - self.revisions.keys())


def _difference(
    before: Sequence[ObservedAdapter], after: Sequence[ObservedAdapter]
) -> tuple[list[ObservedAdapter], list[ObservedAdapter]]:
    """Return what has come and what has gone, told by identity; fast where the rest is at its place."""
    least = min(len(before), len(after))
    moved = list(compress(range(least), map(is_not, before, after)))
    gone, come = [before[at] for at in moved], [after[at] for at in moved]
    gone.extend(before[least:])
    come.extend(after[least:])
    if gone and come:
        old, new = set(map(id, gone)), set(map(id, come))
        if not old.isdisjoint(new):
            gone, come = [one for one in gone if id(one) not in new], [one for one in come if id(one) not in old]
    return come, gone


def index_of(entries: Sequence[ObservedAdapter]) -> EntryIndex:
    """Return the index of a document."""
    own: dict[str, tuple[ObservedAdapter, ...]] = {}
    for entry in _own(entries):
        own[entry.name] = (*own[entry.name], entry) if entry.name in own else (entry,)
    return EntryIndex(
        entries,
        own,
        {(entry.name, entry.revision): entry for entry in _own(entries)},
        residents=frozenset(entry.name for entry in _own(entries) if _is_resident(entry)),
        local_names=_local_names(entries),
        pinned=tuple(entry for entry in entries if _is_pinned(entry)),
    )


def _own(entries: Iterable[ObservedAdapter]) -> list[ObservedAdapter]:
    return [entry for entry in entries if entry.owner is Owner.OPERATOR]


def _local_names(entries: Iterable[ObservedAdapter]) -> frozenset[str]:
    return frozenset([entry.name for entry in entries if entry.owner is Owner.LOCAL])


def _is_resident(entry: ObservedAdapter) -> bool:
    return entry.residency is Residency.RESIDENT


def _is_pinned(entry: ObservedAdapter) -> bool:
    return entry.pinned and entry.state is not AdapterState.FAILED
