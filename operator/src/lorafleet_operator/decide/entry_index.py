"""The entries of a pod's document, as passes look them up. Of a later document of the pod only what has changed is looked at. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Owner, Residency


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
    _ids: frozenset[int] = field(repr=False)
    """Of the entries, while they are here."""

    def now(self, entries: Sequence[ObservedAdapter]) -> "EntryIndex":
        """Return the index of what the same pod says now: most of it with the same objects."""
        if entries is self.entries:
            return self
        ids = frozenset(map(id, entries))
        come = [entry for entry in entries if id(entry) not in self._ids] if ids - self._ids else []
        gone = [entry for entry in self.entries if id(entry) not in ids] if self._ids - ids else []
        if len(come) + len(gone) > len(entries) // 2:
            return index_of(entries)
        revisions, own = dict(self.revisions), dict(self.own)
        changed: dict[str, list[ObservedAdapter]] = {}
        for entry in (*gone, *come):
            if entry.owner is Owner.OPERATOR and entry.name not in changed:
                changed[entry.name] = [one for one in own.get(entry.name, ()) if id(one) in ids]
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
        pinned = [entry for entry in self.pinned if id(entry) in ids] + [entry for entry in come if _is_pinned(entry)]
        return EntryIndex(
            entries,
            own,
            revisions,
            residents=self.residents.difference(changed) | residents,
            local_names=_local_names(entries) if has_local else frozenset(),
            pinned=tuple(pinned),
            _ids=ids,
        )


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
        _ids=frozenset(map(id, entries)),
    )


def _own(entries: Iterable[ObservedAdapter]) -> list[ObservedAdapter]:
    return [entry for entry in entries if entry.owner is Owner.OPERATOR]


def _local_names(entries: Iterable[ObservedAdapter]) -> frozenset[str]:
    return frozenset([entry.name for entry in entries if entry.owner is Owner.LOCAL])


def _is_resident(entry: ObservedAdapter) -> bool:
    return entry.residency is Residency.RESIDENT


def _is_pinned(entry: ObservedAdapter) -> bool:
    return entry.pinned and entry.state is not AdapterState.FAILED
