"""What each pod should know: budgets and wants for the placement, entries from it. Pure."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lorafleet_contract.adapter_spec import PlacementMode, PlacementSpec
from lorafleet_contract.admin import Budgets, CatalogueEntry, Owner, Residency
from lorafleet_contract.guests import GuestLimits
from lorafleet_contract.names import revision_of
from lorafleet_contract.resources import ArtifactStatus, BaseModelResource
from lorafleet_operator.decide.intent import Intent
from lorafleet_operator.decide.paging import Paging, all_pages, pages_of
from lorafleet_operator.decide.place import Placement, PodBudget, Want
from lorafleet_operator.decide.views import ObservedPod

ASSUMED_RANK_PAGE = 8
"""Until a pod has said how it counts pages."""


@dataclass(frozen=True, slots=True)
class AdapterRevisions:
    """What pods should know of one adapter."""

    intent: Intent
    target: str | None
    """The revision that the bare name means."""
    is_on_demand_refused: bool = False
    """Whether the base does not load on demand."""
    guest: GuestLimits | None = None
    """What limits an adapter of another namespace than the base's."""
    name: str = field(init=False, repr=False, compare=False)
    """The served name."""
    main: ArtifactStatus | None = field(init=False, repr=False, compare=False)
    """The revision that is placed: the target, else what there is."""
    other: ArtifactStatus | None = field(init=False, repr=False, compare=False)
    """The revision that is to come, or has just been replaced."""

    def __post_init__(self) -> None:
        artifacts = self.intent.artifacts
        main = next((a for a in artifacts if a.revision == self.target), artifacts[0] if artifacts else None)
        object.__setattr__(self, "name", self.intent.name)
        object.__setattr__(self, "main", main)
        object.__setattr__(self, "other", next((a for a in artifacts if a is not main), None))

    @property
    def priority(self) -> int:
        """What counts of the priority that it asks for."""
        asked = self.intent.adapter.placement.priority
        return asked if self.guest is None else min(asked, self.guest.max_priority or 0)

    @property
    def is_pinned(self) -> bool:
        """Whether it is pinned where it is resident."""
        return self.intent.adapter.placement.pin and (self.guest is None or bool(self.guest.allow_pin))


def budgets_of(base: BaseModelResource, pods: Sequence[ObservedPod]) -> list[PodBudget]:
    """Return the room on each pod that is to stay.

    A pod that does not answer yet is taken to be like the others, so that a new fleet is not placed on its first pod.
    What is on a ready pod that does not answer stays there, and nothing new comes to it.
    """
    answered = next((pod.state.budgets for pod in pods if pod.state is not None), None)
    budgets = []
    for pod in pods:
        if pod.pod.is_leaving or pod.is_lost or (pod.state is not None and pod.state.draining):
            continue
        known = pod.state.budgets if pod.state is not None else answered
        slots, pages, paging = _room(base, known)
        entries = pod.entries if pod.local_names else ()
        local = [e for e in entries if e.owner is Owner.LOCAL and e.residency is Residency.RESIDENT]
        taken = sum(pages_of(entry, known) for entry in local) if known is not None else 0
        is_open = pod.state is not None or not pod.pod.is_ready
        budgets.append(PodBudget(pod.uid, slots - len(local), pages - taken, paging, is_open))
    return budgets


def _room(base: BaseModelResource, budgets: Budgets | None) -> tuple[int, int, Paging]:
    if budgets is not None:
        return budgets.max_resident_adapters, all_pages(budgets), Paging.of(budgets)
    slots = base.spec.lora.max_resident_adapters
    return slots, slots * math.ceil(base.spec.lora.max_rank / ASSUMED_RANK_PAGE), Paging(ASSUMED_RANK_PAGE)


WantMemory = dict[str, tuple[AdapterRevisions, int | None, Want]]
"""Uid of an adapter -> what its want was made of but its holders, and the want."""


def wants_of(
    lineups: Iterable[AdapterRevisions],
    pods: Sequence[ObservedPod],
    auto: Mapping[str, int] | None = None,
    memory: WantMemory | None = None,
) -> list[Want]:
    """Return what should be resident, and where it is already; `auto` and `memory` as in `plan_of`."""
    before, made = memory or {}, WantMemory()
    wants, holders = [], _Holders(pods)
    for lineup in lineups:
        main, other = lineup.main, lineup.other
        if main is None:
            continue
        adapter = lineup.intent.adapter
        num_pods, held = _num_pods(adapter.placement, (auto or {}).get(adapter.metadata.uid)), holders.of(lineup)
        last = before.get(adapter.metadata.uid)
        if last is not None and last[0] is lineup and last[1] == num_pods and last[2].holders == held:
            want = last[2]
        else:
            want = Want(
                name=lineup.name,
                rank=main.rank,
                num_pods=num_pods,
                priority=lineup.priority,
                holders=held,
                other_rank=other.rank if other is not None else None,
                memory_pages=main.memory_pages,
                other_memory_pages=other.memory_pages if other is not None else None,
                group=adapter.metadata.namespace if lineup.guest is not None else "",
                max_group_slots=lineup.guest.max_slots if lineup.guest is not None else None,
            )
        made[adapter.metadata.uid] = (lineup, num_pods, want)
        wants.append(want)
    if memory is not None:
        memory.clear()
        memory.update(made)
    return wants


def _num_pods(spec: PlacementSpec, auto: int | None) -> int | None:
    if spec.mode is PlacementMode.ALL:
        return None
    if spec.mode is PlacementMode.AUTO:
        return spec.least if auto is None else auto
    return spec.replicas if spec.mode is PlacementMode.FIXED else 0


class _Holders:
    """Where adapters are resident: as pods say, else, for a pod that does not say, as status said last."""

    def __init__(self, pods: Sequence[ObservedPod]) -> None:
        self._found: dict[str, list[str]] = {}
        for pod in pods:
            for name in pod.residents:
                self._found.setdefault(name, []).append(pod.uid)
        self._silent = {pod.uid for pod in pods if not pod.has_been_told}

    def of(self, lineup: AdapterRevisions) -> frozenset[str]:
        found = self._found.get(lineup.name, ())
        if not self._silent:
            return frozenset(found)
        listed = {placement.pod_uid for placement in lineup.intent.adapter.status.placements}
        return frozenset(found) | (listed & self._silent)


Key = tuple[str, str]
"""Served name and revision."""
Made = dict[tuple[str, str, bool, bool, bool], tuple[ArtifactStatus, CatalogueEntry]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a pod should know."""

    entries: Sequence[CatalogueEntry]
    keys: Sequence[Key]
    """Of the entries, in their order."""
    all_keys: frozenset[Key]

    @classmethod
    def of(cls, entries: Iterable[CatalogueEntry]) -> "Wanted":
        """Return some entries with their keys."""
        listed = tuple(entries)
        keys = tuple((entry.name, revision_of(entry.digest)) for entry in listed)
        return cls(listed, keys, frozenset(keys))


@dataclass(frozen=True, slots=True)
class _Known:
    """One revision, as it is told to the pods that keep it and to all others."""

    key: Key
    resident_on: frozenset[str]
    resident: CatalogueEntry | None
    """None where no pod keeps it."""
    on_demand: CatalogueEntry


@dataclass(frozen=True, slots=True)
class _Part:
    """What a catalogue has of one adapter, and what it was made of."""

    lineup: AdapterRevisions
    pods: frozenset[str] | None
    beside: frozenset[str] | None
    known: tuple[_Known, ...]
    made: Made

    def is_of(self, lineup: AdapterRevisions, pods: frozenset[str] | None, beside: frozenset[str] | None) -> bool:
        return self.lineup is lineup and self.pods == pods and self.beside == beside


class CatalogueMemory:
    """What the last catalogue of a base was made of: an artifact that is still the same makes the same entry."""

    def __init__(self) -> None:
        self.made: Made = {}
        self.parts: dict[str, _Part] = {}
        """By uid of the adapter."""


class Catalogue:
    """What the pods of a base should know. An entry is made once, however many pods are told it."""

    def __init__(
        self, lineups: Iterable[AdapterRevisions], placement: Placement, memory: CatalogueMemory | None = None
    ) -> None:
        memory = memory or CatalogueMemory()
        self._before, self._made = memory.made, Made()
        parts, before, self._known = dict[str, _Part](), memory.parts, list[_Known]()
        for lineup in lineups:
            if not lineup.intent.artifacts:
                continue
            uid = lineup.intent.adapter.metadata.uid
            pods, beside = placement.pods.get(lineup.name), placement.beside.get(lineup.name)
            part = before.get(uid)
            if part is None or not part.is_of(lineup, pods, beside):
                part = self._part(lineup, pods, beside)
            self._made.update(part.made)
            self._known.extend(part.known)
            parts[uid] = part
        self.index = {known.key: known for known in self._known}
        """What is the same as in the last catalogue is the same object."""
        self._keys = tuple(self.index)
        self._all_keys = frozenset(self._keys)
        memory.made, memory.parts = self._made, parts

    def _part(self, lineup: AdapterRevisions, pods: frozenset[str] | None, beside: frozenset[str] | None) -> _Part:
        known, made = [], Made()
        for artifact in lineup.intent.artifacts:
            uids = (pods if artifact is lineup.main else beside) or frozenset()
            on_demand = self._entry(lineup, artifact, made, is_resident=False)
            resident = self._entry(lineup, artifact, made, is_resident=True) if uids else None
            known.append(_Known((lineup.name, artifact.revision), uids, resident, on_demand))
        return _Part(lineup, pods, beside, tuple(known), made)

    def wanted_by(self, pod: ObservedPod) -> Wanted:
        """Return what one pod should know; names of its local adapters (`serve --adapter`) are left out."""
        local, uid = pod.local_names, pod.uid
        if local:
            return Wanted.of(_told(known, uid) for known in self._known if known.key[0] not in local)
        return Wanted([_told(known, uid) for known in self._known], self._keys, self._all_keys)

    def wanted_of(self, pod: ObservedPod, keys: Collection[Key]) -> Wanted:
        """Return, of what a pod without local adapters should know, what concerns some keys."""
        known = [self.index[key] for key in keys if key in self.index]
        return Wanted([_told(one, pod.uid) for one in known], tuple(one.key for one in known), self._all_keys)

    def _entry(
        self, lineup: AdapterRevisions, artifact: ArtifactStatus, made: Made, *, is_resident: bool
    ) -> CatalogueEntry:
        is_pinned, is_stable = is_resident and lineup.is_pinned, artifact.revision == lineup.target
        key = (lineup.name, artifact.revision, is_resident, is_pinned, is_stable)
        known = self._before.get(key)
        if known is None or known[0] is not artifact:
            entry = CatalogueEntry(
                name=lineup.name,
                source=artifact.resolved,
                residency=Residency.RESIDENT if is_resident else Residency.ON_DEMAND,
                pinned=is_pinned,
                stable=is_stable,
            )
            known = (artifact, entry)
        made[key] = known
        return known[1]


def _told(known: _Known, uid: str) -> CatalogueEntry:
    return known.resident if known.resident is not None and uid in known.resident_on else known.on_demand


def entries_for(
    pod: ObservedPod, lineups: Iterable[AdapterRevisions], placement: Placement
) -> Sequence[CatalogueEntry]:
    """Return what one pod should know."""
    return Catalogue(lineups, placement).wanted_by(pod).entries


def revisions_by_name(lineups: Iterable[AdapterRevisions]) -> Mapping[str, AdapterRevisions]:
    """Return the line-ups that own their names, by name."""
    return {lineup.name: lineup for lineup in lineups if lineup.intent.owns_name}
