"""What the pure parts see: frozen pictures of the cluster and of pods."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Any

from lorafleet_contract.admin import AdapterState, ObservedAdapter, PodState, Tier
from lorafleet_contract.names import BASE_MODEL_KIND
from lorafleet_contract.resources import AdapterResource, BaseModelResource, ObjectMeta
from lorafleet_operator.decide.entry_index import EntryIndex, index_of
from lorafleet_operator.decide.paging import all_pages, pages_of

BaseKey = tuple[str, str]
"""(namespace, name) of a BaseModelDeployment: what is reconciled as one."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a base as the API server has it."""

    uid: str
    name: str
    ip: str | None
    is_ready: bool
    """Its Ready condition: Services send requests to it."""
    is_leaving: bool
    """It has a deletion timestamp, or has ended."""
    is_running: bool
    """Its engine container runs and has passed its startup probe."""
    is_coming_up: bool
    """Not ready, but has a node, and has not been like this for long."""
    template: str
    """Which version of the pod template it was made from."""
    created_at: datetime
    problem: str
    """Why it does not come up, or ended, in the words of the scheduler, the kubelet or its engine; empty without any."""
    stage: str = ""
    """What it is doing while it is not ready."""
    is_being_created: bool = False
    """Its containers are being prepared: what keeps them is told in Events only."""
    has_failed: bool = False
    """It has ended, and not by being deleted."""
    built_from: str = ""
    """Which pod template of this operator it was made from; empty for another version's."""


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """A pod and what it says of itself."""

    pod: Pod
    state: PodState | None
    """None: it did not answer; nothing is known."""
    is_serving: bool = field(init=False, repr=False, compare=False)
    """Requests reach it, and it says what it has."""
    index: EntryIndex = field(init=False, repr=False, compare=False)
    """Its entries as each adapter of a pass looks them up."""
    residents: frozenset[str] = field(init=False, repr=False, compare=False)
    """Served names of the operator's entries that it is told to keep resident."""
    local_names: frozenset[str] = field(init=False, repr=False, compare=False)
    """Served names of its local adapters."""
    _pinned: tuple[int, int] = field(init=False, repr=False, compare=False)
    """Slots and rank pages that on-demand loads can never have."""

    before: InitVar["ObservedPod | None"] = None
    """The same pod as it was last: of what it says the same, nothing is made again."""
    counted: PodState | None = field(default=None, compare=False, repr=False)
    """The last document that told all counters anew, where that is not `state`: its counters may be older."""

    def __post_init__(self, before: "ObservedPod | None") -> None:
        is_well = self.state is not None and not self.state.draining
        object.__setattr__(self, "is_serving", is_well and self.pod.is_ready and not self.pod.is_leaving)
        entries = self.state.adapters if self.state is not None else []
        last = before.index if before is not None else None
        index = index_of(entries) if last is None else last.now(entries)
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "residents", index.residents)
        object.__setattr__(self, "local_names", index.local_names)
        object.__setattr__(self, "_pinned", (len(index.pinned), sum(self._pages(entry) for entry in index.pinned)))

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return self.pod.uid

    @property
    def is_writable(self) -> bool:
        """It can be told what to know."""
        return not self.pod.is_leaving and self.state is not None and not self.state.draining

    @property
    def is_lost(self) -> bool:
        """Neither it nor the kubelet says anything good of it: what should be resident on it goes elsewhere."""
        return self.state is None and not self.pod.is_ready and not self.pod.is_coming_up

    @property
    def has_been_told(self) -> bool:
        """What it says of its adapters means something: it answers, and had its first catalogue."""
        return self.state is not None and self.state.fence > 0

    @property
    def own_by_name(self) -> Mapping[str, tuple[ObservedAdapter, ...]]:
        """The operator's entries by served name."""
        return self.index.own

    @property
    def own_by_revision(self) -> Mapping[tuple[str, str], ObservedAdapter]:
        """The operator's entries by served name and revision."""
        return self.index.revisions

    @property
    def standing(self) -> tuple[object, ...]:
        """All that statuses of adapters say of a pod but its entries; equal where they say the same."""
        if self.state is None:
            return (self.pod, None)
        budgets = self.state.budgets
        room = (budgets.max_resident_adapters, budgets.total_rank_pages, budgets.rank_page, budgets.memory_pages)
        return (self.pod, self.has_been_told, self.state.draining, room, self._pinned)

    def own(self, name: str, revision: str) -> ObservedAdapter | None:
        """Return the operator's entry of one revision, if the pod has it."""
        return self.index.revisions.get((name, revision))

    def serves(self, name: str, revision: str) -> bool:
        """Whether a request for the revision is served here: it is ready, and on the device or able to get there."""
        entry = self.index.revisions.get((name, revision))
        return entry is not None and entry.state is AdapterState.READY and self.has_room_for(entry)

    def has_room_for(self, entry: ObservedAdapter) -> bool:
        """Whether an entry is on the device, or fits beside what is pinned there."""
        if entry.tier is Tier.DEVICE or entry.pinned or self.state is None:
            return True
        slots, pages = self._pinned
        budgets = self.state.budgets
        return slots < budgets.max_resident_adapters and pages + self._pages(entry) <= all_pages(budgets)

    @property
    def pinned_words(self) -> str:
        """What pinned adapters hold, for people."""
        slots, pages = self._pinned
        budgets = self.state.budgets if self.state is not None else None
        if budgets is None:
            return f"{slots} places and {pages} rank pages"
        return f"{slots} of {budgets.max_resident_adapters} places and {pages} of {all_pages(budgets)} rank pages"

    def _pages(self, entry: ObservedAdapter) -> int:
        assert self.state is not None
        return pages_of(entry, self.state.budgets)

    def entries_of(self, name: str) -> tuple[ObservedAdapter, ...]:
        """Return the operator's entries of a served name."""
        return self.index.own.get(name, ())

    @property
    def entries(self) -> tuple[ObservedAdapter, ...]:
        """All entries that it has, local ones too."""
        return tuple(self.state.adapters) if self.state is not None else ()


@dataclass(frozen=True, slots=True)
class BrokenResource:
    """A resource that the API server took and that cannot be read."""

    kind: str
    meta: ObjectMeta
    problem: str
    body: dict[str, Any] = field(repr=False)

    @property
    def is_deleted(self) -> bool:
        """Whether it is to go."""
        return self.meta.deletion_timestamp is not None


@dataclass(frozen=True, slots=True)
class Claim:
    """Who has a served name."""

    uid: str
    title: str
    """As people read it, e.g. `LoraAdapter team-a/french`."""
    reserved_until: datetime | None = None
    """Given where nobody has the name, and one namespace may still take it."""

    def refuses(self, name: str) -> str:
        """Return why others do not get the name."""
        if self.reserved_until is None:
            return f"{self.title} has the name {name}"
        return (
            f"{self.title} served as {name}: the name is reserved for it until {self.reserved_until:%Y-%m-%d %H:%M} UTC"
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is known of one base when it is reconciled, except what its pods say."""

    key: BaseKey
    base: BaseModelResource | None
    """None when there is none, and when it is being deleted: its pods go with it."""
    adapters: tuple[AdapterResource, ...]
    """Those that name the base, sorted by (namespace, name); also those being deleted."""
    pods: tuple[Pod, ...]
    claims: dict[str, Claim]
    """Served name -> who has it, over all bases and adapters of the cluster."""
    broken: tuple[BrokenResource, ...]
    are_orphans_known: bool
    """Whether a name that no adapter has may be removed from pods: they were all listed more than once."""
    now: datetime
    are_pods_hidden: bool = False
    """Whether there may be pods that are not known: the API server does not show those of the namespace."""
    published_at: Mapping[str, datetime] = field(default_factory=dict)
    """Adapter uid -> since when this operator has seen the API server say which of its revisions answer."""

    @property
    def unread_base(self) -> BrokenResource | None:
        """The base, where it is there and cannot be read: its pods go on, and nothing is known of them."""
        return next((one for one in self.broken if one.kind == BASE_MODEL_KIND and not one.is_deleted), None)
