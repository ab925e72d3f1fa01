"""The life of adapters in the engine: registered, loaded by a thread beside the steps, evicted, released.

The thread reads and copies; every decision is taken on the engine's own thread, between two steps.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.merged import merged_plan
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import MAX_RANK
from lorafleet_inference.engine.load_outcome import Outcome, Refused
from lorafleet_inference.engine.load_thread import AdapterDevice, LoadThread
from lorafleet_inference.engine.merging import Merge
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus, DeviceTier, RegisterAdapter
from lorafleet_inference.engine.residency import NoRoomEver, NoRoomYet, Residency
from lorafleet_inference.engine.turns import Turns
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.errors import AdapterError

MAX_READ_AHEAD = 2
"""Slabs beyond the host cache that are read, or were and have no room on the device yet."""
SlabT = TypeVar("SlabT")


@dataclass(slots=True)
class _Adapter(Generic[SlabT]):
    content: Path | Merge
    """A folder, or what it is made of."""
    resident: bool
    pinned: bool
    plan: AdapterPlan | None = None
    """None until it is inspected."""
    slab: SlabT | None = None
    """While it is on the host."""
    busy: bool = False
    """The thread works on it."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """An adapter that was inspected."""

    plan: AdapterPlan
    num_pages: int
    num_bytes: int
    """Of its slab."""


@dataclass(slots=True, kw_only=True)
class _Search:
    """One look for room, for all adapters that have none."""

    in_use: set[AdapterKey]
    just_came: set[AdapterKey]
    """Those that came for a request that waits yet."""
    stay: set[AdapterKey]
    """Nobody of them leaves."""
    urgent: set[AdapterKey]
    """Requests wait for them, or whoever asked for them has waited for too long."""
    service: Callable[[AdapterKey], float]
    now: float
    first: tuple[AdapterKey, tuple[AdapterKey, ...]] | None = None
    """The first that found no room, and who has to end before it has."""
    hopeless: set[int] = field(default_factory=set)
    """Numbers of rank pages for which somebody before found no room: who needs as many finds none either."""
    others_leave: dict[int, bool] = field(default_factory=dict)
    """By number of rank pages, whether others would leave for so many; until somebody gets room."""
    outcome: Outcome = field(default_factory=Outcome)


class AdapterLoads(Generic[SlabT]):
    """Owns what is known of each adapter. `post` hands a finished job back to the engine's thread, to be called there."""

    def __init__(
        self,
        residency: Residency,
        device: AdapterDevice[SlabT],
        inspect: Callable[[Path], AdapterPlan],
        post: Callable[[Callable[[], Outcome]], None],
        *,
        max_merged_rank: int = MAX_RANK,
    ) -> None:
        self.residency = residency
        self._device = device
        self._inspect = inspect
        self._max_merged_rank = max_merged_rank
        self._adapters: dict[AdapterKey, _Adapter[SlabT]] = {}
        self._to_come: dict[AdapterKey, None] = {}
        """Those that were asked to be resident and have no room yet, in the order of asking."""
        self._leaving: set[AdapterKey] = set()
        self._reading: set[AdapterKey] = set()
        self._read: dict[AdapterKey, float] = {}
        """Seconds that reading took, of adapters that were read and have no room yet."""
        self._turns = Turns()
        self._thread = LoadThread(post)
        self.held: set[AdapterKey] = set()
        """Adapters of which nothing new may start, so that a waiting one gets their room."""

    def accepts(self, key: AdapterKey) -> bool:
        """Whether requests may name the adapter."""
        return key in self._adapters and key not in self._leaving

    def vocabulary(self, key: AdapterKey) -> Vocabulary:
        """Return the token ids that an accepted adapter knows; none before it is inspected."""
        plan = self._adapters[key].plan
        return Vocabulary(0, 0) if plan is None else plan.vocabulary

    def invocation(self, key: AdapterKey) -> tuple[int, ...]:
        """Return the tokens from whose last occurrence in a prompt on an inspected adapter is computed; none: from the first."""
        plan = self._adapters[key].plan
        assert plan is not None, "before it is inspected it has no vocabulary, so no request is accepted"
        return plan.invocation

    def register(self, message: RegisterAdapter) -> Outcome:
        """Make an adapter known, or change its flags."""
        key, known = message.key, self._adapters.get(message.key)
        self._leaving.discard(key)
        if known is None:
            content = message.merge or Path(message.directory)
            self._adapters[key] = _Adapter(content, message.resident, message.pinned, busy=True)
            self._thread.run(lambda: self._measured(content), lambda found: self._inspected(key, found))
            return Outcome()
        known.resident, known.pinned = message.resident, message.pinned
        if known.plan is None:
            return Outcome()  # the inspection under way answers
        self.residency.pin(key, pinned=message.pinned)
        return self._settle(key)

    def release(self, key: AdapterKey) -> Outcome:
        """Take no new requests; `free_released` does the rest when the last one has ended."""
        if key not in self._adapters:
            return Outcome([AdapterStatus(key, None)])
        self._leaving.add(key)
        self._to_come.pop(key, None)
        return Outcome()

    def free_released(self, has_work: Callable[[AdapterKey], bool]) -> Outcome:
        """Free released adapters that nothing uses."""
        outcome = Outcome()
        for key in [key for key in self._leaving if not self._adapters[key].busy and not has_work(key)]:
            self._keep(key, None)
            del self._adapters[key]
            self._leaving.remove(key)
            self._read.pop(key, None)
            self.held.discard(key)
            if key in self.residency:
                self.residency.release(key)
            self._device.remove(key)
            outcome.statuses.append(AdapterStatus(key, None))
        return outcome

    def start_loads(
        self,
        waiting: list[AdapterKey],
        in_use: set[AdapterKey],
        service: Callable[[AdapterKey], float],
        *,
        computing: Collection[AdapterKey] = (),
        now: float = 0.0,
    ) -> Outcome:
        """Begin the loads that are wanted and have room.

        `waiting`: adapters that requests wait for, in their order. `in_use`: adapters of running requests, of them
        `computing` those that do not only compute again what was preempted. `now`: seconds of any clock.

        An adapter that came for a waiting request stays until it was used, else two that wait for one place would drive
        each other out. Those that fit overtake one that does not, until it is overdue; then only what leaves it its room
        does, and adapters that had more have to make way for it. One that was asked to be resident comes after those
        that requests wait for, and before them when it is overdue, so that whoever asked has an answer. Nobody leaves
        for an adapter that cannot be read.
        """
        self.held.clear()
        wanted = list(dict.fromkeys([*waiting, *self._to_come]))
        self._forget_read(wanted)
        roomless = [key for key in wanted if key in self.residency and not self.residency.pages(key)]
        self._turns.observe(roomless, computing, now)
        overdue = [key for key in roomless if key in self._to_come and self._turns.is_overdue(key, now)]
        just_came = set(self.residency.unused).intersection(waiting)
        search = _Search(
            in_use=in_use,
            just_came=just_came,
            stay=in_use | just_came,
            urgent={*waiting, *overdue},
            service=service,
            now=now,
        )
        for key in dict.fromkeys([*overdue, *roomless]):
            if self._may_have_room(key, search):
                self._find_room(key, search)
        return search.outcome

    def _may_have_room(self, key: AdapterKey, search: _Search) -> bool:
        """Whether room is looked for now; one for which others would leave is read before."""
        adapter, num_pages = self._adapters[key], self.residency.pages_needed(key)
        if adapter.busy or num_pages in search.hopeless:
            return False
        if search.first is not None and not self._may_overtake(key, *search.first, search.stay, search.now):
            return False
        if adapter.slab is None:
            if num_pages not in search.others_leave:
                search.others_leave[num_pages] = bool(self.residency.leaving_for(key, search.stay))
            if search.others_leave[num_pages]:
                self._read_ahead(key, adapter, search.outcome)
                return False
        return True

    def _find_room(self, key: AdapterKey, search: _Search) -> None:
        """Load an adapter where it has room; the first that has none has others make way for it."""
        room, outcome = self.residency.make_room(key, search.stay, service=search.service), search.outcome
        match room:
            case NoRoomEver(message):
                outcome.statuses.append(self._failed(key, Reason.OUT_OF_MEMORY, message))
                outcome.refused.append(Refused(key, Reason.OUT_OF_MEMORY, message))
            case NoRoomYet(busy) if search.first is None:
                search.first = key, busy
                search.hopeless.add(self.residency.pages_needed(key))
                if key in search.urgent:
                    self.held.update(set(busy) - search.just_came)
                    self._make_way(key, search)
            case NoRoomYet():
                search.hopeless.add(self.residency.pages_needed(key))
            case _:
                search.others_leave.clear()
                for other in room.evicted:
                    self._device.remove(other)
                    self._adapters[other].resident = False
                    outcome.statuses.append(self._status(other))
                self._load(key, self._adapters[key], room.pages, outcome)

    def close(self) -> None:
        """Let the thread finish what it does."""
        self._thread.close()

    def _may_overtake(
        self, key: AdapterKey, first: AdapterKey, waited: Collection[AdapterKey], stay: set[AdapterKey], now: float
    ) -> bool:
        return not self._turns.is_overdue(first, now) or self.residency.fits_beside(key, first, waited, stay)

    def _make_way(self, key: AdapterKey, search: _Search) -> None:
        """Say who has to make way for an adapter whose requests have waited long enough; it is read first."""
        if not self._turns.is_overdue(key, search.now):
            return
        candidates = self._turns.preemptible(key, search.in_use, search.service, search.now)
        leaving = self.residency.enough_of(candidates, key, search.stay)
        adapter = self._adapters[key]
        if leaving and adapter.slab is None:
            self._read_ahead(key, adapter, search.outcome)
        else:
            search.outcome.preempt = leaving

    def _read_ahead(self, key: AdapterKey, adapter: _Adapter[SlabT], outcome: Outcome) -> None:
        """Read an adapter that others will have to leave for; one that cannot be read drives nobody out."""
        beyond = [one for one in self._read if not self.residency.host_bytes_of(one)]
        if len(self._reading) + len(beyond) >= MAX_READ_AHEAD:
            return
        adapter.busy = True
        self._reading.add(key)
        self._make_host_room(key, outcome)
        plan, began = adapter.plan, time.monotonic()
        assert plan is not None
        self._thread.run(
            lambda: self._device.load_slab(plan), lambda done: self._was_read(key, done, time.monotonic() - began)
        )

    def _was_read(self, key: AdapterKey, done: SlabT | AdapterError, seconds: float) -> Outcome:
        self._adapters[key].busy = False
        self._reading.discard(key)
        if isinstance(done, AdapterError):
            self._keep(key, None)
            return self._not_loaded(key, done)
        self._adapters[key].slab = done
        self._read[key] = seconds
        return Outcome([self._status(key)] if key in self.residency.hosted else [])

    def _forget_read(self, wanted: Collection[AdapterKey]) -> None:
        """What was read for requests that are gone stays only in the host cache."""
        for key in [key for key in self._read if key not in wanted]:
            del self._read[key]
            self._keep(key, self._adapters[key].slab)

    def _make_host_room(self, key: AdapterKey, outcome: Outcome) -> None:
        """Before an adapter is read, have others leave the host for it, but none that the thread works on.

        Where that is not enough it is read to memory beside the host tier, and not kept.
        """
        busy = {other for other in self.residency.hosted if self._adapters[other].busy}
        _, leaving = self.residency.keep_on_host(key, busy)
        for other in leaving:
            self._keep(other, None)
            self._read.pop(other, None)
            outcome.statuses.append(self._status(other))

    def _keep(self, key: AdapterKey, slab: SlabT | None) -> None:
        """Have this be all of an adapter on the host, or nothing, where no room was set aside."""
        adapter, has_room = self._adapters[key], key in self.residency.hosted
        for one in {id(one): one for one in (adapter.slab, slab) if one is not None}.values():
            if one is not slab or not has_room:
                self._device.drop_slab(one)
        adapter.slab = slab if has_room else None
        if slab is None:
            self.residency.leave_host(key)

    def _settle(self, key: AdapterKey) -> Outcome:
        """Answer for an adapter that is where it was asked to be; else note that it has to come."""
        if self._adapters[key].resident and key not in self.residency.on_device:
            self._to_come[key] = None
            return Outcome()
        self._to_come.pop(key, None)
        return Outcome([self._status(key)])

    def _measured(self, content: Path | Merge) -> _Measured:
        """Runs in the thread."""
        plan = self._settled(content)
        return _Measured(plan, self._device.num_pages(plan), self._device.slab_bytes(plan))

    def _settled(self, content: Path | Merge) -> AdapterPlan:
        if isinstance(content, Path):
            return self._device.settle(self._inspect(content))
        parts = [self._device.settle(self._inspect(Path(part.directory))) for part in content.parts]
        return merged_plan(content, parts, max_rank=self._max_merged_rank)

    def _inspected(self, key: AdapterKey, found: _Measured | AdapterError) -> Outcome:
        adapter = self._adapters[key]
        adapter.busy = False
        if isinstance(found, AdapterError):
            return self._refuse(key, found)
        adapter.plan = found.plan
        self.residency.register(key, num_pages=found.num_pages, num_bytes=found.num_bytes, pinned=adapter.pinned)
        return self._settle(key)

    def _refuse(self, key: AdapterKey, error: AdapterError) -> Outcome:
        """Inspection failed: the adapter is not known any more."""
        del self._adapters[key]
        self._leaving.discard(key)
        status = AdapterStatus(key, None, error.reason, error.message)
        return Outcome([status], [Refused(key, error.reason, error.message)])

    def _load(self, key: AdapterKey, adapter: _Adapter[SlabT], pages: tuple[int, ...], outcome: Outcome) -> None:
        adapter.busy = True
        self._to_come.pop(key, None)
        plan, kept, began = adapter.plan, adapter.slab, time.monotonic()
        assert plan is not None
        if kept is None:
            self._make_host_room(key, outcome)

        def copy() -> SlabT:
            slab = self._device.load_slab(plan) if kept is None else kept
            try:
                self._device.install(key, pages, slab)
            except BaseException:
                if kept is None:
                    self._device.drop_slab(slab)
                raise
            return slab

        read_seconds = self._read.pop(key, None)
        source = DeviceTier.DISK if kept is None or read_seconds is not None else DeviceTier.HOST
        began -= read_seconds or 0.0
        self._thread.run(copy, lambda done: self._loaded(key, done, source, time.monotonic() - began))

    def _loaded(self, key: AdapterKey, done: SlabT | AdapterError, source: DeviceTier, seconds: float) -> Outcome:
        adapter = self._adapters[key]
        adapter.busy = False
        if isinstance(done, AdapterError):
            self.residency.give_up_room(key)
            self._keep(key, adapter.slab)
            return self._not_loaded(key, done)
        self.residency.arrived(key)
        self._to_come.pop(key, None)
        self._keep(key, done)
        return Outcome([self._status(key, seconds, source)])

    def _not_loaded(self, key: AdapterKey, error: AdapterError) -> Outcome:
        status = self._failed(key, error.reason, error.message)
        return Outcome([status], [Refused(key, error.reason, error.message)])

    def _failed(self, key: AdapterKey, reason: Reason, message: str) -> AdapterStatus:
        self._adapters[key].resident = False
        self._to_come.pop(key, None)
        return AdapterStatus(key, self.residency.tier(key), reason, message)

    def _status(
        self, key: AdapterKey, load_seconds: float | None = None, loaded_from: DeviceTier | None = None
    ) -> AdapterStatus:
        return AdapterStatus(
            key,
            self.residency.tier(key),
            rank_pages=len(self.residency.pages(key)),
            host_bytes=self.residency.host_bytes_of(key),
            load_seconds=load_seconds,
            loaded_from=loaded_from,
        )
