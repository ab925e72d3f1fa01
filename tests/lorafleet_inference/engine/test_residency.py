"""Pages are owned once, what is pinned or in use stays, and nothing grows."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.engines import key_of

from lorafleet_inference.engine.messages import AdapterKey, DeviceTier
from lorafleet_inference.engine.residency import NoRoomEver, NoRoomYet, Residency, Room

NUM_PAGES, MAX_RESIDENT, HOST_BYTES = 8, 4, 100
KEYS = tuple(key_of(letter) for letter in "abcdefgh")
keys = st.sampled_from(KEYS)


def no_service(_: AdapterKey) -> float:
    return 0.0


class Living(RuleBasedStateMachine):
    """Adapters that are registered, loaded, used, pinned and released in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.residency = Residency(num_pages=NUM_PAGES, max_resident=MAX_RESIDENT, host_bytes=HOST_BYTES)
        self.pinned: dict[AdapterKey, bool] = {}
        self.num_bytes: dict[AdapterKey, int] = {}
        self.coming: set[AdapterKey] = set()
        self.in_use: set[AdapterKey] = set()

    @rule(key=keys, num_pages=st.integers(1, 4), num_bytes=st.integers(1, 120), pinned=st.booleans())
    def register(self, key: AdapterKey, num_pages: int, num_bytes: int, pinned: bool) -> None:
        if key not in self.residency:
            self.residency.register(key, num_pages=num_pages, num_bytes=num_bytes, pinned=pinned)
            self.pinned[key], self.num_bytes[key] = pinned, num_bytes

    @rule(key=keys, pinned=st.booleans())
    def pin(self, key: AdapterKey, pinned: bool) -> None:
        if key in self.residency:
            self.residency.pin(key, pinned=pinned)
            self.pinned[key] = pinned

    @rule(key=keys)
    def load(self, key: AdapterKey) -> None:
        if key not in self.residency or self.residency.pages(key):
            return
        before = {other: self.residency.pages(other) for other in self.pinned}
        room = self.residency.make_room(key, self.in_use, service=no_service)
        gone = {other for other, pages in before.items() if pages and not self.residency.pages(other)}
        match room:
            case Room(pages, evicted):
                assert set(evicted) == gone
                assert not gone & (self.in_use | self.coming)
                assert not any(self.pinned[other] for other in gone)
                assert pages == self.residency.pages(key)
                self.coming.add(key)
            case NoRoomYet(busy):
                assert not gone
                assert busy
                assert set(busy) <= self.in_use | self.coming
            case NoRoomEver():
                assert not gone
                assert any(self.pinned[other] for other, pages in before.items() if pages)

    @rule(key=keys, fails=st.booleans())
    def arrive(self, key: AdapterKey, fails: bool) -> None:
        if key not in self.coming:
            return
        self.coming.remove(key)
        if fails:
            self.residency.give_up_room(key)
            assert not self.residency.pages(key)
        else:
            self.residency.arrived(key)
            keep, leaving = self.residency.keep_on_host(key)
            assert keep == (self.num_bytes[key] <= HOST_BYTES)
            assert key not in leaving

    @rule(key=keys)
    def use(self, key: AdapterKey) -> None:
        if key in self.residency.on_device:
            self.in_use.add(key)
            self.residency.use(key)

    @rule(key=keys)
    def rest(self, key: AdapterKey) -> None:
        self.in_use.discard(key)

    @rule(key=keys)
    def release(self, key: AdapterKey) -> None:
        if key in self.residency and key not in self.in_use | self.coming:
            self.residency.release(key)
            del self.pinned[key]

    @invariant()
    def books_balance(self) -> None:
        pages = [page for key in self.pinned for page in self.residency.pages(key)]
        assert len(pages) == len(set(pages)) == self.residency.num_used_pages
        assert set(pages) <= set(range(NUM_PAGES))
        holders = {key for key in self.pinned if self.residency.pages(key)}
        assert len(holders) <= MAX_RESIDENT
        assert set(self.residency.on_device) == holders - self.coming
        assert self.in_use <= holders
        assert self.residency.host_used_bytes == sum(map(self.residency.host_bytes_of, self.pinned)) <= HOST_BYTES


Living.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLiving = Living.TestCase


def with_residents(*names: str, num_pages: int = 1) -> Residency:
    residency = Residency(num_pages=NUM_PAGES, max_resident=MAX_RESIDENT, host_bytes=HOST_BYTES)
    for name in names:
        residency.register(key_of(name), num_pages=num_pages, num_bytes=30, pinned=False)
        assert isinstance(residency.make_room(key_of(name), (), service=no_service), Room)
        residency.arrived(key_of(name))
    return residency


def test_the_least_recently_used_adapter_leaves() -> None:
    residency = with_residents("a", "b", "c", "d")
    residency.use(key_of("a"))
    residency.register(key_of("e"), num_pages=1, num_bytes=1, pinned=False)
    assert residency.make_room(key_of("e"), (), service=no_service) == Room((1,), (key_of("b"),))
    assert residency.tier(key_of("b")) is DeviceTier.DISK
    assert residency.num_evictions == 1


def test_nobody_leaves_in_vain() -> None:
    residency = with_residents("a", num_pages=1)
    for name, num_pages in (("b", 4), ("c", 3)):
        residency.register(key_of(name), num_pages=num_pages, num_bytes=1, pinned=False)
        residency.make_room(key_of(name), (), service=no_service)
        residency.arrived(key_of(name))
    residency.register(key_of("big"), num_pages=4, num_bytes=1, pinned=False)
    room = residency.make_room(key_of("big"), (), service=no_service)
    assert isinstance(room, Room)
    assert room.evicted == (key_of("b"),), "a is older, but its page would not have been needed"


def test_who_is_waited_for_is_the_most_served() -> None:
    residency = with_residents("a", "b", "c", "d")
    residency.register(key_of("e"), num_pages=1, num_bytes=1, pinned=False)
    service = {key_of("a"): 1.0, key_of("b"): 9.0, key_of("c"): 3.0, key_of("d"): 2.0}
    answer = residency.make_room(key_of("e"), set(service), service=service.__getitem__)
    assert answer == NoRoomYet((key_of("b"),))


def test_pinned_adapters_can_make_an_adapter_impossible() -> None:
    residency = with_residents("a", "b", "c", "d")
    for name in "abcd":
        residency.pin(key_of(name), pinned=True)
    residency.register(key_of("e"), num_pages=1, num_bytes=1, pinned=False)
    answer = residency.make_room(key_of("e"), (), service=no_service)
    assert isinstance(answer, NoRoomEver)
    assert "pinned adapters hold 4 pages and 4 places" in answer.message


def test_neighbouring_pages_are_preferred() -> None:
    residency = with_residents("a", "b", "c", "d")
    for name in "ac":
        residency.release(key_of(name))
    residency.register(key_of("e"), num_pages=2, num_bytes=1, pinned=False)
    room = residency.make_room(key_of("e"), (), service=no_service)
    assert isinstance(room, Room)
    assert room.pages == (4, 5)


def test_the_host_keeps_the_recently_used_within_its_bytes() -> None:
    residency = with_residents("a", "b", "c", "d")
    kept = [residency.keep_on_host(key_of(name)) for name in "abc"]
    assert kept == [(True, ()), (True, ()), (True, ())]
    residency.use(key_of("a"))
    assert residency.keep_on_host(key_of("d")) == (True, (key_of("b"),))
    assert residency.host_used_bytes == 90


@pytest.mark.parametrize("num_adapters", [200])
def test_many_adapters_in_turns_grow_nothing(num_adapters: int) -> None:
    residency = Residency(num_pages=NUM_PAGES, max_resident=MAX_RESIDENT, host_bytes=HOST_BYTES)
    for number in range(num_adapters):
        residency.register(key_of(str(number)), num_pages=1 + number % 3, num_bytes=40, pinned=False)
    for number in range(3 * num_adapters):
        key = key_of(str(number % num_adapters))
        assert isinstance(residency.make_room(key, (), service=no_service), Room)
        residency.arrived(key)
        residency.keep_on_host(key)
        assert residency.num_used_pages <= NUM_PAGES
        assert len(residency.on_device) <= MAX_RESIDENT
        assert residency.host_used_bytes <= HOST_BYTES
