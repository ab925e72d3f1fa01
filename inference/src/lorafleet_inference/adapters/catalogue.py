"""Which revisions of which adapters the pod should know, and who said so. Pure: it answers what has changed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from lorafleet_contract.admin import Owner, Residency, RevisionRef
from lorafleet_contract.sources import AdapterFacts, ResolvedSource, SourceFile
from lorafleet_inference.adapters.sources.base import Place, Source
from lorafleet_inference.engine.messages import AdapterKey


@dataclass(frozen=True, slots=True)
class Artifact:
    """Content, and where it can be had."""

    digest: str
    files: tuple[SourceFile, ...]
    facts: AdapterFacts
    source: Source
    place: Place
    """Pinned, where the source can be."""

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Entry:
    """One revision of one adapter that the pod should know."""

    name: str
    artifact: Artifact
    owner: Owner
    residency: Residency = Residency.RESIDENT
    pinned: bool = False
    stable: bool = True
    resolved: ResolvedSource | None = None
    """As the operator wrote it; None for a local one."""

    @property
    def key(self) -> AdapterKey:
        """Its identity."""
        return AdapterKey(self.name, self.artifact.digest)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a write changed."""

    put: tuple[Entry, ...] = ()
    """New, or with other flags."""
    repeated: tuple[Entry, ...] = ()
    """Written as they were already."""
    removed: tuple[Entry, ...] = ()
    passed_over: tuple[Entry, ...] = field(default=())
    """Of names that somebody else owns."""


class StaleWrite(Exception):
    """A write is older than the last accepted one."""


class NotOwned(Exception):
    """The name belongs to another owner."""


class Contradiction(Exception):
    """A write says two things at once."""


class Catalogue:
    """All entries. A name belongs to one owner, and at most one of its revisions is stable."""

    def __init__(self) -> None:
        self._names: dict[str, dict[AdapterKey, Entry]] = {}
        self.was_written = False
        """Whether the operator has ever written."""
        self.fence = 0
        self.generation = 0
        """(fence, generation) of the last accepted write; (0, 0) before the first."""

    def __iter__(self) -> Iterator[Entry]:
        return (entry for revisions in self._names.values() for entry in revisions.values())

    def get(self, key: AdapterKey) -> Entry | None:
        """Return an entry by its identity."""
        return self._names.get(key.name, {}).get(key)

    def revisions(self, name: str) -> list[Entry]:
        """Return all revisions of a name."""
        return list(self._names.get(name, {}).values())

    def owner(self, name: str) -> Owner | None:
        """Return who owns a name; None where nobody does."""
        return next((entry.owner for entry in self.revisions(name)), None)

    def find(self, name: str, revision: str | None) -> Entry | None:
        """Return a revision of a name, the stable one if none is named."""
        of_name = self.revisions(name)
        if revision is None:
            return next((entry for entry in of_name if entry.stable), None)
        return next((entry for entry in of_name if entry.key.revision == revision), None)

    def write(
        self, *, fence: int, generation: int, entries: Iterable[Entry], removed: Iterable[RevisionRef]
    ) -> Changes:
        """Take a write of the operator; what it does not mention stays, and a repetition changes nothing.

        Raises:
            StaleWrite: its (fence, generation) is lower than the last accepted one.
            Contradiction: two revisions of a name are stable.
        """
        if (fence, generation) < (self.fence, self.generation):
            raise StaleWrite(
                f"fence {fence}, generation {generation} is older than fence {self.fence}, generation {self.generation}"
            )
        wanted = {entry.key: entry for entry in entries}
        stable = [entry.name for entry in wanted.values() if entry.stable]
        if len(stable) != len(set(stable)):
            raise Contradiction(f"two stable revisions of {next(name for name in stable if stable.count(name) > 1)}")
        if self.was_written and (fence, generation) == (self.fence, self.generation):
            return Changes(repeated=tuple(entry for key, entry in wanted.items() if self.get(key) == entry))
        self.was_written, self.fence, self.generation = True, fence, generation
        leaving = {(ref.name, ref.revision) for ref in removed}
        gone = [
            entry
            for entry in self
            if (entry.name, entry.key.revision) in leaving and entry.key not in wanted and entry.owner is Owner.OPERATOR
        ]
        for entry in gone:
            self._forget(entry.key)
        return self._put_all(wanted.values(), gone)

    def put(self, entry: Entry) -> Changes:
        """Make an entry known, as the stable revision if it says so.

        Raises:
            NotOwned: the name belongs to another owner.
        """
        owner = self.owner(entry.name)
        if owner is not None and owner is not entry.owner:
            raise NotOwned(f"{entry.name} belongs to the owner {owner}")
        return self._put_all([entry], [])

    def remove(self, name: str, owner: Owner) -> Changes:
        """Remove all revisions of a name.

        Raises:
            NotOwned: the name belongs to another owner.
        """
        entries = self.revisions(name)
        if any(entry.owner is not owner for entry in entries):
            raise NotOwned(f"{name} belongs to the owner {entries[0].owner}")
        for entry in entries:
            self._forget(entry.key)
        return Changes(removed=tuple(entries))

    def remove_one(self, key: AdapterKey) -> Changes:
        """Remove one revision, if it is known."""
        entry = self.get(key)
        if entry is None:
            return Changes()
        self._forget(key)
        return Changes(removed=(entry,))

    def _put_all(self, entries: Iterable[Entry], gone: list[Entry]) -> Changes:
        put: list[Entry] = []
        repeated: list[Entry] = []
        passed_over: list[Entry] = []
        for entry in entries:
            if self.owner(entry.name) not in (None, entry.owner):
                passed_over.append(entry)
                continue
            if entry.stable:
                put += self._demote_others(entry)
            known = self.get(entry.key)
            self._names.setdefault(entry.name, {})[entry.key] = entry
            (repeated if known == entry else put).append(entry)
        last = {entry.key: entry for entry in put}
        return Changes(tuple(last.values()), tuple(repeated), tuple(gone), tuple(passed_over))

    def _demote_others(self, entry: Entry) -> list[Entry]:
        """The name moves: no other revision is stable any more."""
        changed = []
        for other in self.revisions(entry.name):
            if other.stable and other.key != entry.key:
                changed.append(replace(other, stable=False))
                self._names[entry.name][other.key] = changed[-1]
        return changed

    def _forget(self, key: AdapterKey) -> None:
        del self._names[key.name][key]
        if not self._names[key.name]:
            del self._names[key.name]
