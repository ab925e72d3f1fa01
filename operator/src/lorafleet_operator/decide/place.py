"""Which adapter is resident on which pod: pure, deterministic, sticky, within each pod's slots and pages of adapter memory.

Higher priority is served completely before lower. Within a priority, what is somewhere stays there; only then are
missing places filled, by rendezvous hashing: first among pods that have room without anybody giving way, of those first
among the ones that are not already fuller than their fair share. So a new adapter moves others only where nothing else is
left and they are of a lower priority, and a pod that goes away moves only what was on it.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lorafleet_operator.decide.paging import Paging

FAIR_SHARE: Final = 1.25
"""A pod may take this multiple of the average number of adapters before others are preferred."""


@dataclass(frozen=True, slots=True)
class PodBudget:
    """What a pod has room for, less what is not the operator's."""

    uid: str
    slots: int
    pages: int
    """Of adapter memory."""
    paging: Paging
    is_open: bool = True
    """False: it does not answer now; what is on it stays there, nothing new is put there."""


@dataclass(frozen=True, slots=True)
class Want:
    """One adapter that should be resident somewhere."""

    name: str
    rank: int
    num_pods: int | None
    """None: on all pods; 0: nowhere, it is loaded on demand."""
    priority: int = 0
    holders: frozenset[str] = frozenset()
    """Pods on which it is resident now."""
    other_rank: int | None = None
    """Rank of a second revision that should be resident beside it while one replaces the other."""
    group: str = ""
    """Those of one group share `max_group_slots`."""
    max_group_slots: int | None = None
    """Slots of each pod that its group may take; None: all."""
    memory_pages: int | None = None
    """As in its artifact, as is `other_memory_pages`; None where no pod has said."""
    other_memory_pages: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each adapter is to be resident."""

    pods: Mapping[str, frozenset[str]]
    """Name -> uids of pods."""
    beside: Mapping[str, frozenset[str]]
    """Name -> uids of those pods that have room for its other revision too."""
    missing: Mapping[str, int]
    """Name -> how many pods it lacks, for want of room; names that lack none are left out."""


class _Space:
    """Slots and pages that are left."""

    def __init__(self, budget: PodBudget) -> None:
        self.slots = budget.slots
        self.pages = budget.pages
        self._pages_of = budget.paging.pages_of
        self._num_of_group: Counter[str] = Counter()

    def fits(self, want: Want, pages: int) -> bool:
        """Whether there is room for a revision of an adapter that takes so many pages."""
        if want.max_group_slots is not None and self._num_of_group[want.group] >= want.max_group_slots:
            return False
        return self.slots >= 1 and self.pages >= pages

    def pages_of(self, want: Want) -> int:
        """Return the pages of the revision that is placed."""
        return self._pages_of(want.rank, want.memory_pages)

    def take(self, want: Want) -> bool:
        """Take room for the revision that is placed; False, and nothing taken, when there is none."""
        return self._take(want, self._pages_of(want.rank, want.memory_pages))

    def take_other(self, want: Want) -> bool:
        """Likewise, for the other one."""
        return self._take(want, self._pages_of(want.other_rank or 0, want.other_memory_pages))

    def _take(self, want: Want, pages: int) -> bool:
        if not self.fits(want, pages):
            return False
        self.slots -= 1
        self._num_of_group[want.group] += 1
        self.pages -= pages
        return True


class _Room(_Space):
    """What is left on one pod beside what has been placed so far."""

    def __init__(self, budget: PodBudget) -> None:
        super().__init__(budget)
        self.uid = budget.uid
        self.is_open = budget.is_open
        self.num_placed = 0
        self.spare = _Space(budget)
        """What would be left if everything stayed where it is."""


def place(budgets: Iterable[PodBudget], wants: Iterable[Want]) -> Placement:
    """Return where each adapter is to be resident.

    The same arguments in any order give the same answer; the answer as holders gives the answer again.
    """
    rooms = [_Room(budget) for budget in sorted(budgets, key=lambda budget: budget.uid)]
    ordered = sorted(wants, key=lambda want: (-want.priority, want.name))
    placed: dict[str, set[str]] = {want.name: set() for want in ordered}
    share = _fair_share(rooms, ordered)
    for want in ordered:
        _reserve(want, rooms)
    for priority in sorted({want.priority for want in ordered}, reverse=True):
        group = [want for want in ordered if want.priority == priority]
        for want in group:
            _keep(want, rooms, placed[want.name])
        for want in group:
            _fill(want, rooms, placed[want.name], share)
    beside = _place_others(rooms, ordered, placed)
    missing = {
        want.name: lacking for want in ordered if (lacking := _num_wanted(want, rooms) - len(placed[want.name])) > 0
    }
    return Placement({name: frozenset(uids) for name, uids in placed.items()}, beside, missing)


def rendezvous(name: str, uid: str) -> bytes:
    """Return the weight of a pod for an adapter; the highest wins."""
    return hashlib.sha256(f"{name}\0{uid}".encode()).digest()


def _num_wanted(want: Want, rooms: Sequence[_Room]) -> int:
    return len(rooms) if want.num_pods is None else min(want.num_pods, len(rooms))


def _fair_share(rooms: Sequence[_Room], wants: Sequence[Want]) -> int:
    total = sum(_num_wanted(want, rooms) for want in wants)
    return math.ceil(FAIR_SHARE * total / len(rooms)) if rooms else 0


def _by_weight(want: Want, rooms: Iterable[_Room]) -> list[_Room]:
    return sorted(rooms, key=lambda room: rendezvous(want.name, room.uid), reverse=True)


def _holding(want: Want, rooms: Sequence[_Room]) -> list[_Room]:
    return _by_weight(want, (room for room in rooms if room.uid in want.holders))


def _reserve(want: Want, rooms: Sequence[_Room]) -> None:
    num_kept = 0
    for room in _holding(want, rooms):
        if num_kept < _num_wanted(want, rooms) and room.spare.take(want):
            num_kept += 1


def _keep(want: Want, rooms: Sequence[_Room], placed: set[str]) -> None:
    for room in _holding(want, rooms):
        if len(placed) < _num_wanted(want, rooms):
            _put(want, room, placed)


def _fill(want: Want, rooms: Sequence[_Room], placed: set[str], share: int) -> None:
    if len(placed) >= _num_wanted(want, rooms):
        return  # the usual case: nothing is missing, and nothing has to be hashed
    candidates = _by_weight(want, (room for room in rooms if room.is_open and room.uid not in placed))
    # stable: each part is still by weight
    candidates.sort(key=lambda room: (not room.spare.fits(want, room.pages_of(want)), room.num_placed >= share))
    for room in candidates:
        if len(placed) >= _num_wanted(want, rooms):
            return
        if _put(want, room, placed):
            room.spare.take(want)


def _put(want: Want, room: _Room, placed: set[str]) -> bool:
    if not room.take(want):
        return False
    room.num_placed += 1
    placed.add(room.uid)
    return True


def _place_others(
    rooms: Sequence[_Room], wants: Sequence[Want], placed: Mapping[str, set[str]]
) -> dict[str, frozenset[str]]:
    """Second revisions take what is left: for them nobody gives way."""
    beside = {}
    for want in wants:
        if want.other_rank is not None:
            beside[want.name] = frozenset(
                room.uid for room in rooms if room.uid in placed[want.name] and room.take_other(want)
            )
    return beside
