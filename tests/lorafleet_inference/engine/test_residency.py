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


def test_who_stays_on_the_host_and_who_leaves_it() -> None:
    residency = with_residents("a", "b", "c", "d", "e")
    for name in "abc":
        residency.keep_on_host(key_of(name))
    a, b, c = map(key_of, "abc")
    assert residency.keep_on_host(key_of("d"), {a, b, c}) == (False, ()), "nobody leaves in vain"
    assert residency.keep_on_host(key_of("d"), {a, c}) == (True, (b,))
    assert set(residency.hosted) == {a, c, key_of("d")}
    residency.leave_host(a)
    residency.leave_host(a)
    assert (residency.host_used_bytes, residency.host_bytes_of(a)) == (60, 0)
    assert residency.keep_on_host(key_of("e"), {c, key_of("d")}) == (True, ())


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


def of(*sizes: tuple[int, int], num_pages: int = 4, max_resident: int = 9, host_bytes: int = 100) -> Residency:
    """Adapters a, b, c… of so many pages and bytes each."""
    residency = Residency(num_pages=num_pages, max_resident=max_resident, host_bytes=host_bytes)
    for key, (pages, num_bytes) in zip(KEYS, sizes, strict=False):
        residency.register(key, num_pages=pages, num_bytes=num_bytes, pinned=False)
    return residency


def come(residency: Residency, *found: AdapterKey, in_use: tuple[AdapterKey, ...] = ()) -> list[tuple[AdapterKey, ...]]:
    """Load adapters and return who left for each."""
    left = []
    for key in found:
        room = residency.make_room(key, in_use, service=no_service)
        assert isinstance(room, Room)
        residency.arrived(key)
        left.append(room.evicted)
    return left


def test_the_last_page_and_the_last_place_are_given() -> None:
    a, b, c, d = KEYS[:4]
    by_pages = of((2, 1), (2, 1), (1, 1))
    assert come(by_pages, a, b) == [(), ()]
    assert by_pages.num_used_pages == 4
    assert come(by_pages, c) == [(a,)]
    by_places = of((1, 1), (1, 1), (1, 1), (1, 1), max_resident=3)
    assert come(by_places, a, b, c, d) == [(), (), (), (a,)]
    assert by_places.num_evictions == 1
    whole = of((4, 1), (5, 1))
    assert come(whole, a) == [()]
    assert isinstance(whole.make_room(b, (), service=no_service), NoRoomEver)


def test_no_more_leave_than_have_to() -> None:
    a, b, c, d = KEYS[:4]
    residency = of((1, 1), (2, 1), (1, 1), (2, 1))
    assert come(residency, a, b, c, d)[-1] == (b,), "the older small one would have been in vain"
    assert set(residency.on_device) == {a, c, d}


def test_no_more_are_waited_for_than_have_to_end() -> None:
    a, b, c, d = KEYS[:4]
    residency = of((1, 1), (1, 1), (2, 1), (2, 1))
    come(residency, a, b, c)
    served = {a: 1.0, b: 2.0, c: 3.0}
    waited = residency.make_room(d, (a, b, c), service=served.__getitem__)
    assert waited == NoRoomYet((c,))
    residency.release(a)
    assert residency.make_room(d, (b, c), service={b: 9.0, c: 3.0}.__getitem__) == NoRoomYet((b,))


def test_the_last_byte_of_the_host_is_given() -> None:
    a, b, c = KEYS[:3]
    residency = of((1, 60), (1, 40), (1, 1))
    assert residency.keep_on_host(a) == (True, ())
    assert residency.keep_on_host(b) == (True, ())
    assert residency.host_used_bytes == 100
    assert residency.keep_on_host(b) == (True, ()), "it is there already"
    assert residency.keep_on_host(c) == (True, (a,))
    assert (residency.host_bytes_of(a), residency.host_bytes_of(b)) == (0, 40)
    whole = of((1, 100), (1, 101))
    assert whole.keep_on_host(a) == (True, ())
    assert whole.keep_on_host(b) == (False, ()), "nobody leaves in vain"
    assert whole.host_used_bytes == 100


def test_refusal_counts_what_pinned_adapters_hold() -> None:
    a, b, c = KEYS[:3]
    residency = of((1, 1), (2, 1), (2, 1))
    come(residency, a, b)
    residency.pin(a, pinned=True)
    residency.pin(b, pinned=True)
    room = residency.make_room(c, (), service=no_service)
    assert isinstance(room, NoRoomEver)
    assert "needs 2 of 4 rank pages and one of 9 places, and pinned adapters hold 3 pages and 2 places" in room.message
    assert "--adapter-memory gives more pages" in room.message


def test_adapter_registered_as_pinned_is_not_evicted() -> None:
    a, b, c = KEYS[:3]
    residency = of((2, 1), (2, 1), (2, 1))
    residency.register(a, num_pages=2, num_bytes=1, pinned=True)
    assert come(residency, a, b, c)[-1] == (b,), "the older one is pinned"


def test_tier_is_where_the_adapter_is_nearest() -> None:
    a, b, c = KEYS[:3]
    residency = of((2, 50), (2, 101), (4, 1))
    assert residency.tier(a) is DeviceTier.DISK
    come(residency, a, b)
    assert [residency.keep_on_host(key)[0] for key in (a, b)] == [True, False]
    assert residency.tier(a) is DeviceTier.DEVICE
    assert come(residency, c) == [(a, b)]
    assert [residency.tier(key) for key in (a, b, c)] == [DeviceTier.HOST, DeviceTier.DISK, DeviceTier.DEVICE]


def test_adapter_is_unused_from_its_arrival_to_its_first_use_or_eviction() -> None:
    a, b, c = KEYS[:3]
    residency = of((2, 1), (2, 1), (4, 1))
    come(residency, a, b)
    assert set(residency.unused) == {a, b}
    residency.use(a)
    assert set(residency.unused) == {b}
    assert come(residency, c) == [(b, a)]
    assert set(residency.unused) == {c}


def test_only_adapters_in_use_are_waited_for() -> None:
    """An idle adapter leaves at once and a pinned one never, however much service they have had."""
    idle, pinned, busy, newcomer = KEYS[:4]
    residency = of((1, 1), (1, 1), (2, 1), (3, 1))
    come(residency, idle, pinned, busy)
    residency.pin(pinned, pinned=True)
    served = {idle: 9.0, pinned: 8.0, busy: 1.0}
    assert residency.make_room(newcomer, (pinned, busy), service=served.__getitem__) == NoRoomYet((busy,))


def test_evictions_are_counted_over_all_loads() -> None:
    a, b, c, d = KEYS[:4]
    residency = of((2, 1), (2, 1), (4, 1), (1, 1))
    assert come(residency, a, b, c, d) == [(), (), (a, b), (c,)]
    assert residency.num_evictions == 3


def test_host_frees_as_many_bytes_as_the_slab_needs() -> None:
    a, b, c, d = KEYS[:4]
    residency = of((1, 40), (1, 30), (1, 30), (1, 50))
    for key in (a, b, c):
        residency.keep_on_host(key)
    assert residency.keep_on_host(d) == (True, (a, b))
    assert residency.host_used_bytes == 80


def test_the_oldest_stays_if_the_next_two_make_the_room() -> None:
    a, b, c, d = KEYS[:4]
    residency = of((1, 1), (1, 1), (2, 1), (3, 1))
    assert come(residency, a, b, c, d)[-1] == (b, c)


def test_neighbouring_pages_at_the_end_are_found() -> None:
    a, b, c = KEYS[:3]
    residency = of((1, 1), (1, 1), (2, 1))
    come(residency, a, b)
    residency.release(a)
    come(residency, c)
    assert residency.pages(c) == (2, 3)


def test_who_would_have_to_leave_is_told_and_nobody_leaves() -> None:
    a, b, c, d = KEYS[:4]
    residency = of((2, 1), (2, 1), (1, 1), (3, 1))
    assert residency.leaving_for(a, ()) == ()
    come(residency, a, b)
    assert residency.leaving_for(c, ()) == (a,)
    assert residency.leaving_for(c, (a,)) == (b,)
    assert residency.leaving_for(d, ()) == (a, b)
    assert residency.leaving_for(d, (a,)) is None
    assert residency.leaving_for(c, (a, b)) is None
    assert (set(residency.on_device), residency.num_evictions) == ({a, b}, 0)


def test_one_that_overtakes_leaves_the_pages_of_the_first() -> None:
    """Idle ones may leave, those that are waited for will: what they have is shared by the two that come."""
    idle, waited, stays, newcomer = KEYS[:4]
    firsts = {pages: KEYS[3 + pages] for pages in (1, 2, 3, 4)}
    residency = of((2, 1), (2, 1), (1, 1), (2, 1), (1, 1), (2, 1), (3, 1), (4, 1), num_pages=6)
    come(residency, idle, waited, stays)
    busy = (waited, stays)
    beside = {pages: residency.fits_beside(newcomer, first, (waited,), busy) for pages, first in firsts.items()}
    assert beside == {1: True, 2: True, 3: True, 4: False}
    alone = {pages: residency.fits_beside(newcomer, first, (), busy) for pages, first in firsts.items()}
    assert alone == {1: True, 2: False, 3: False, 4: False}, "only the idle one leaves"


def test_one_that_overtakes_leaves_the_place_of_the_first() -> None:
    idle, waited, stays, newcomer, first = KEYS[:5]
    residency = of(*[(1, 1)] * 5, num_pages=9, max_resident=3)
    come(residency, idle, waited, stays)
    assert residency.fits_beside(newcomer, first, (waited,), (waited, stays))
    assert not residency.fits_beside(newcomer, first, (), (waited, stays))


def test_as_few_of_the_candidates_are_chosen_as_make_the_room() -> None:
    """In their order, and only those that can make some: a pinned one stays, and one that is not there has nothing."""
    idle, pinned, c, d, absent, two, four, five = KEYS
    residency = of((1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (2, 1), (4, 1), (5, 1), num_pages=6)
    come(residency, idle, pinned, c, d)
    residency.pin(pinned, pinned=True)
    candidates, busy = [absent, pinned, c, d], (pinned, c, d)
    assert residency.enough_of(candidates, absent, busy) == (), "the idle one's page is enough"
    assert residency.enough_of(candidates, two, busy) == (c,)
    assert residency.enough_of(candidates, four, busy) == (c, d)
    assert residency.enough_of(candidates, five, busy) == (), "all together are too few"
    assert set(residency.on_device) == {idle, pinned, c, d}
