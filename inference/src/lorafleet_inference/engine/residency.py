"""Which adapters lie in device memory and on the host, and who goes when there is no room. Pure: it counts, others copy.

Device memory is pages, of which an adapter takes as many as all that it holds fills.
An adapter leaves the device only when it is neither pinned nor in use, the least recently used first, and only after it
is certain that the newcomer fits.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from lorafleet_inference.engine.free_pages import FreePages
from lorafleet_inference.engine.messages import AdapterKey, DeviceTier


@dataclass(slots=True)
class _Entry:
    num_pages: int
    num_bytes: int
    pinned: bool
    pages: tuple[int, ...] = ()
    device_used: int = 0
    host_used: int = 0
    """Ticks of the last use."""


@dataclass(frozen=True, slots=True)
class Room:
    """Pages that were set aside for an adapter, and the adapters that left the device for it."""

    pages: tuple[int, ...]
    evicted: tuple[AdapterKey, ...]


@dataclass(frozen=True, slots=True)
class NoRoomYet:
    """Room comes when these adapters have no running requests any more."""

    in_use: tuple[AdapterKey, ...]


@dataclass(frozen=True, slots=True)
class NoRoomEver:
    """The adapter does not fit beside the pinned ones."""

    message: str


class Residency:
    """Owns the pages of the device and the bytes of the host."""

    def __init__(self, *, num_pages: int, max_resident: int, host_bytes: int) -> None:
        self.num_pages = num_pages
        self._max_resident = max_resident
        self._host_bytes = host_bytes
        self._entries: dict[AdapterKey, _Entry] = {}
        self._holders: dict[AdapterKey, _Entry] = {}
        """Those that have pages."""
        self._hosted: dict[AdapterKey, _Entry] = {}
        """Those whose slab is on the host, or comes there."""
        self._free_pages = FreePages(num_pages)
        self._on_device: set[AdapterKey] = set()
        self._unused: set[AdapterKey] = set()
        """On the device, and not computed with since they came."""
        self._tick = 0
        self.num_evictions = 0

    @property
    def on_device(self) -> Collection[AdapterKey]:
        """Adapters that can be computed with; a live view."""
        return self._on_device

    @property
    def unused(self) -> Collection[AdapterKey]:
        """Those of them that have not been computed with since they came; a live view."""
        return self._unused

    @property
    def num_used_pages(self) -> int:
        """Pages that are taken."""
        return self.num_pages - len(self._free_pages)

    @property
    def host_used_bytes(self) -> int:
        """Bytes of the slabs that are kept on the host."""
        return sum(entry.num_bytes for entry in self._hosted.values())

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._entries

    def register(self, key: AdapterKey, *, num_pages: int, num_bytes: int, pinned: bool) -> None:
        """Make an adapter known."""
        self._entries[key] = _Entry(num_pages, num_bytes, pinned)

    def pin(self, key: AdapterKey, *, pinned: bool) -> None:
        """Change whether on-demand loads may evict it."""
        self._entries[key].pinned = pinned

    def tier(self, key: AdapterKey) -> DeviceTier:
        """Return where the adapter is nearest."""
        if key in self._on_device:
            return DeviceTier.DEVICE
        return DeviceTier.HOST if key in self._hosted else DeviceTier.DISK

    def pages(self, key: AdapterKey) -> tuple[int, ...]:
        """Return the pages of an adapter that is on the device or on its way there."""
        return self._entries[key].pages

    def pages_needed(self, key: AdapterKey) -> int:
        """Return how many pages it takes on the device."""
        return self._entries[key].num_pages

    def host_bytes_of(self, key: AdapterKey) -> int:
        """Return the bytes that its slab takes on the host; 0 if there is none."""
        return self._entries[key].num_bytes if key in self._hosted else 0

    def use(self, key: AdapterKey) -> None:
        """An adapter was computed with."""
        self._unused.discard(key)
        self._entries[key].device_used = self._entries[key].host_used = self._now()

    def make_room(
        self, key: AdapterKey, in_use: Collection[AdapterKey], *, service: Callable[[AdapterKey], float]
    ) -> Room | NoRoomYet | NoRoomEver:
        """Set pages aside, evicting what has to go; nothing changes unless the answer is Room.

        `in_use`: adapters of running requests. `service` tells whom to wait for: the most served ones.
        """
        entry = self._entries[key]
        assert not entry.pages, "the adapter has its pages already"
        holders = list(self._holders)
        pinned = {other for other in holders if self._entries[other].pinned}
        if not self._fits(entry, [other for other in holders if other not in pinned]):
            return NoRoomEver(
                f"adapter {key.name} needs {entry.num_pages} of {self.num_pages} rank pages and one of "
                f"{self._max_resident} places, and pinned adapters hold "
                f"{sum(len(self._entries[other].pages) for other in pinned)} pages and {len(pinned)} places; --adapter-memory "
                "gives more pages, --max-resident-adapters more places"
            )
        idle = self._idle(in_use)
        leaving = self._fewest(entry, idle)
        if leaving is None:
            busy = [other for other in holders if other not in idle and other not in pinned]
            busy.sort(key=service, reverse=True)
            waited = next(busy[:count] for count in range(1, len(busy) + 1) if self._fits(entry, idle + busy[:count]))
            return NoRoomYet(tuple(waited))
        for other in leaving:
            self._leave_device(other)
        self.num_evictions += len(leaving)
        entry.pages = self._free_pages.take(entry.num_pages)
        self._holders[key] = entry
        return Room(entry.pages, tuple(leaving))

    def leaving_for(self, key: AdapterKey, in_use: Collection[AdapterKey]) -> tuple[AdapterKey, ...] | None:
        """Return the adapters that would have to leave the device now; None if those that may are too few."""
        leaving = self._fewest(self._entries[key], self._idle(in_use))
        return None if leaving is None else tuple(leaving)

    def fits_beside(
        self, key: AdapterKey, first: AdapterKey, waited: Collection[AdapterKey], in_use: Collection[AdapterKey]
    ) -> bool:
        """Whether `first`, that has room when the `waited` ones end, still has it then if `key` comes before it."""
        leaving = {*self._idle(in_use), *waited}
        num_pages = len(self._free_pages) + sum(len(self._entries[other].pages) for other in leaving)
        num_left = num_pages - self._entries[key].num_pages
        num_resident = len(self._holders) - len(leaving) + 1
        return num_left >= self._entries[first].num_pages and num_resident < self._max_resident

    def enough_of(
        self, candidates: list[AdapterKey], key: AdapterKey, in_use: Collection[AdapterKey]
    ) -> tuple[AdapterKey, ...]:
        """Return the first ones of the candidates, few enough, that make room if they end; none if all are too few."""
        entry, idle = self._entries[key], self._idle(in_use)
        some = [other for other in candidates if other in self._on_device and not self._entries[other].pinned]
        count = next((count for count in range(len(some) + 1) if self._fits(entry, idle + some[:count])), 0)
        return tuple(some[:count])

    def arrived(self, key: AdapterKey) -> None:
        """The weights lie in the pages."""
        self.use(key)
        self._on_device.add(key)
        self._unused.add(key)

    def give_up_room(self, key: AdapterKey) -> None:
        """The load failed."""
        self._leave_device(key)

    @property
    def hosted(self) -> Collection[AdapterKey]:
        """Adapters that have room on the host; a live view."""
        return self._hosted.keys()

    def keep_on_host(
        self, key: AdapterKey, staying: Collection[AdapterKey] = ()
    ) -> tuple[bool, tuple[AdapterKey, ...]]:
        """Set room aside on the host; return whether there is, and whose slabs leave for it. `staying`: adapters that may not."""
        entry = self._entries[key]
        if key in self._hosted:
            return True, ()
        leaving: list[AdapterKey] = []
        used = self.host_used_bytes
        idle = [other for other in self._hosted if other not in staying]
        for other in sorted(idle, key=lambda one: self._entries[one].host_used):
            if used + entry.num_bytes <= self._host_bytes:
                break
            used -= self._hosted[other].num_bytes
            leaving.append(other)
        if used + entry.num_bytes > self._host_bytes:
            return False, ()
        for other in leaving:
            del self._hosted[other]
        self._hosted[key] = entry
        entry.host_used = self._now()
        return True, tuple(leaving)

    def leave_host(self, key: AdapterKey) -> None:
        """Give up the room on the host, if it has any."""
        self._hosted.pop(key, None)

    def release(self, key: AdapterKey) -> None:
        """Forget an adapter that nobody uses and nobody copies."""
        self._leave_device(key)
        self.leave_host(key)
        del self._entries[key]

    def _idle(self, in_use: Collection[AdapterKey]) -> list[AdapterKey]:
        """Adapters that may leave the device, the least recently used one first."""
        idle = [
            other
            for other in self._holders
            if other in self._on_device and other not in in_use and not self._entries[other].pinned
        ]
        return sorted(idle, key=lambda other: self._entries[other].device_used)

    def _fits(self, entry: _Entry, leaving: Collection[AdapterKey]) -> bool:
        num_pages = len(self._free_pages) + sum(len(self._entries[other].pages) for other in leaving)
        num_resident = len(self._holders) - len(leaving)
        return num_pages >= entry.num_pages and num_resident < self._max_resident

    def _fewest(self, entry: _Entry, idle: list[AdapterKey]) -> list[AdapterKey] | None:
        """The least recently used ones that have to leave, none that need not; None if all together are too few."""
        count = next((count for count in range(len(idle) + 1) if self._fits(entry, idle[:count])), None)
        if count is None:
            return None
        leaving = idle[:count]
        for other in list(leaving):
            rest = [one for one in leaving if one != other]
            if self._fits(entry, rest):
                leaving = rest
        return leaving

    def _leave_device(self, key: AdapterKey) -> None:
        entry = self._entries[key]
        self._free_pages.give(entry.pages)
        entry.pages = ()
        self._holders.pop(key, None)
        self._on_device.discard(key)
        self._unused.discard(key)

    def _now(self) -> int:
        self._tick += 1
        return self._tick
