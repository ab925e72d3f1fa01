"""Adapters come when they are wanted, answer for themselves, and never fail anybody else."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.engines import key_of

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.engine.adapter_loads import AdapterLoads
from lorafleet_inference.engine.load_outcome import Outcome
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus, DeviceTier, RegisterAdapter
from lorafleet_inference.engine.residency import Residency
from lorafleet_inference.engine.turns import PATIENCE_SECONDS
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.errors import AdapterError

MAX_RESIDENT = 2


@dataclass
class Memory:
    """A device that holds slabs as text; folders named `bad…` fail in the way that their names say."""

    held: dict[AdapterKey, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """Pages by folder; one where it says nothing."""
    num_bytes: dict[str, int] = field(default_factory=dict)
    """Of slabs by folder; 10 where it says nothing."""
    on_host: list[str] = field(default_factory=list)
    """Slabs whose memory is taken."""
    most_on_host: int = 0

    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        return plan

    def load_slab(self, plan: AdapterPlan) -> str:
        if plan.directory.name == "bad-file":
            raise AdapterError(Reason.ARTIFACT_INVALID, "a tensor is missing")
        if plan.directory.name == "bad-memory":
            raise MemoryError("too much")
        if plan.directory.name == "bad-luck":
            raise ZeroDivisionError("nobody foresaw it")
        self.on_host.append(plan.directory.name)
        self.most_on_host = max(self.most_on_host, len(self.on_host))
        return plan.directory.name

    def drop_slab(self, slab: str) -> None:
        self.on_host.remove(slab)

    def num_pages(self, plan: AdapterPlan) -> int:
        if plan.directory.name == "bad-shape":
            raise KeyError("a module that nobody has")
        return self.sizes.get(plan.directory.name, 1)

    def slab_bytes(self, plan: AdapterPlan) -> int:
        return self.num_bytes.get(plan.directory.name, 10)

    def install(self, key: AdapterKey, pages: tuple[int, ...], slab: str) -> None:
        assert slab in self.on_host
        if slab == "bad-copy":
            raise AdapterError(Reason.LOAD_FAILED, "it cannot be copied")
        self.held[key] = slab

    def remove(self, key: AdapterKey) -> None:
        self.held.pop(key, None)


def inspect(folder: Path) -> AdapterPlan:
    if folder.name == "bad-config":
        raise AdapterError(Reason.UNSUPPORTED_ADAPTER, "use_what")
    site = LoraSite("m", 1, 1.0, "a", "b")
    return AdapterPlan(folder, (site,), (), AdapterFacts(rank=1, size_bytes=1, target_modules=["m"]), Vocabulary(9, 9))


class Bench:
    """The loads of an engine whose steps compute nothing."""

    def __init__(self, max_resident: int = MAX_RESIDENT) -> None:
        self.posted: queue.SimpleQueue[Callable[[], Outcome]] = queue.SimpleQueue()
        self.device = Memory()
        residency = Residency(num_pages=10, max_resident=max_resident, host_bytes=35)
        self.loads = AdapterLoads(residency, self.device, inspect, self.posted.put)
        self.waiting: list[AdapterKey] = []
        self.running: set[AdapterKey] = set()
        self.service: dict[AdapterKey, float] = {}
        self.now = 0.0

    def register(self, name: str, *, resident: bool = False, pinned: bool = False) -> Outcome:
        return self.loads.register(RegisterAdapter(key_of(name), f"/{name}", resident, pinned))

    def turn(self, *, finished_jobs: int = 0) -> Outcome:
        """What a turn of the engine's loop does, after waiting for jobs of the thread."""
        outcomes = [self.posted.get(timeout=60)() for _ in range(finished_jobs)]
        outcomes.append(
            self.loads.start_loads(
                self.waiting,
                self.running,
                lambda key: self.service.get(key, 0.0),
                computing=self.running,
                now=self.now,
            )
        )
        outcomes.append(self.loads.free_released(lambda key: key in self.running or key in self.waiting))
        return Outcome(
            [one for each in outcomes for one in each.statuses],
            [one for each in outcomes for one in each.refused],
            tuple(one for each in outcomes for one in each.preempt),
        )

    def known(self, *names: str, **sizes: int) -> None:
        """Adapters on disk; `sizes` are pages."""
        self.device.sizes |= sizes
        for name in (*names, *sizes):
            self.register(name)
            self.turn(finished_jobs=1)

    def bring(self, *names: str) -> None:
        for name in names:
            self.register(name, resident=True)
            self.turn(finished_jobs=1)
            self.turn(finished_jobs=1)


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.loads.close()


def tiers(outcome: Outcome) -> list[tuple[str, DeviceTier | None]]:
    return [(status.key.name, status.tier) for status in outcome.statuses]


def test_a_registered_adapter_is_known_and_on_disk(bench: Bench) -> None:
    assert bench.register("a") == Outcome()
    assert tiers(bench.turn(finished_jobs=1)) == [("a", DeviceTier.DISK)]
    assert bench.loads.accepts(key_of("a"))
    assert not bench.device.held


def test_a_resident_adapter_answers_when_it_is_there(bench: Bench) -> None:
    bench.register("a", resident=True)
    assert tiers(bench.turn(finished_jobs=1)) == []
    outcome = bench.turn(finished_jobs=1)
    assert tiers(outcome) == [("a", DeviceTier.DEVICE)]
    assert outcome.statuses[0].loaded_from is DeviceTier.DISK
    assert outcome.statuses[0].host_bytes == 10
    assert bench.device.held == {key_of("a"): "a"}


def test_a_waiting_request_brings_its_adapter_and_the_idle_one_leaves(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.register("c")
    bench.turn(finished_jobs=1)
    bench.waiting = [key_of("c")]
    assert tiers(bench.turn()) == [], "it is read before anybody leaves"
    assert tiers(bench.turn(finished_jobs=1)) == [("c", DeviceTier.HOST), ("a", DeviceTier.HOST)]
    (loaded,) = bench.turn(finished_jobs=1).statuses
    assert (loaded.key, loaded.tier, loaded.loaded_from) == (key_of("c"), DeviceTier.DEVICE, DeviceTier.DISK)
    assert set(bench.device.held) == {key_of("b"), key_of("c")}
    bench.waiting = [key_of("a")]
    bench.turn()
    statuses = bench.turn(finished_jobs=1).statuses
    assert [one.loaded_from for one in statuses if one.key == key_of("a")] == [DeviceTier.HOST]


def test_adapters_in_use_stay_and_hold_nothing_new_until_there_is_room(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.register("c")
    bench.turn(finished_jobs=1)
    bench.waiting, bench.running = [key_of("c")], {key_of("a"), key_of("b")}
    bench.turn()
    assert bench.loads.held
    assert set(bench.device.held) == {key_of("a"), key_of("b")}
    bench.running = {key_of("b")}
    bench.turn()
    assert ("a", DeviceTier.HOST) in tiers(bench.turn(finished_jobs=1))
    assert not bench.loads.held
    bench.turn(finished_jobs=1)
    assert key_of("c") in bench.device.held


def test_two_that_wait_for_one_place_have_it_in_turns(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.loads.residency.pin(key_of("a"), pinned=True)
    for name in ("c", "d"):
        bench.register(name)
        bench.turn(finished_jobs=1)
    bench.waiting = [key_of("c"), key_of("d")]
    bench.turn()
    bench.turn(finished_jobs=2)
    bench.turn(finished_jobs=1)
    bench.turn()
    assert key_of("c") in bench.device.held, "c has not been computed yet"
    assert key_of("c") not in bench.loads.held
    bench.loads.residency.use(key_of("c"))
    bench.waiting = [key_of("d")]
    bench.turn()
    bench.turn(finished_jobs=1)
    assert key_of("d") in bench.device.held


@pytest.mark.parametrize("name", ["bad-file", "bad-memory", "bad-luck"])
def test_nobody_leaves_for_an_adapter_that_cannot_be_read(bench: Bench, name: str) -> None:
    bench.bring("a", "b")
    bench.known(name)
    bench.waiting = [key_of(name)]
    bench.turn()
    bench.waiting = []
    outcome = bench.turn(finished_jobs=1)
    assert [one.key for one in outcome.refused] == [key_of(name)]
    assert set(bench.device.held) == {key_of("a"), key_of("b")}
    assert bench.loads.residency.num_evictions == 0


def test_adapters_that_fit_go_before_one_that_does_not_until_that_is_overdue() -> None:
    bench = Bench(max_resident=5)
    bench.device.sizes["a"] = 4
    bench.bring("a")
    bench.known(big=7, small=1, wide=2, other=4)
    bench.running, bench.waiting = {key_of("a")}, [key_of("big"), key_of("wide")]
    bench.turn()
    bench.turn(finished_jobs=1)
    assert key_of("wide") in bench.device.held
    bench.running.add(key_of("wide"))
    bench.waiting, bench.now = [key_of("big"), key_of("other"), key_of("small")], PATIENCE_SECONDS
    bench.turn()
    bench.turn(finished_jobs=1)
    assert set(bench.device.held) == {key_of("a"), key_of("wide"), key_of("small")}, "big fits beside small after a"
    bench.running = set()
    bench.turn()
    bench.turn(finished_jobs=2)
    bench.turn(finished_jobs=1)
    assert key_of("big") in bench.device.held
    bench.loads.close()


def test_an_adapter_in_use_makes_way_for_one_that_was_served_less_after_a_time(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.known("c")
    bench.running, bench.waiting = {key_of("a"), key_of("b")}, [key_of("c")]
    bench.service = {key_of("a"): 7.0, key_of("b"): 9.0, key_of("c"): 3.0}
    assert bench.turn() == Outcome()
    bench.now = PATIENCE_SECONDS - 0.1
    assert bench.turn() == Outcome()
    bench.now = PATIENCE_SECONDS
    assert bench.turn() == Outcome(), "it is read before anybody makes way"
    outcome = bench.turn(finished_jobs=1)
    assert outcome.preempt == (key_of("b"),)
    bench.running.remove(key_of("b"))
    bench.turn()
    bench.turn(finished_jobs=1)
    assert set(bench.device.held) == {key_of("a"), key_of("c")}
    bench.running.add(key_of("c"))
    bench.waiting = [key_of("b")]
    bench.now += PATIENCE_SECONDS - 0.1
    assert not bench.turn().preempt
    bench.now += PATIENCE_SECONDS
    assert not bench.turn().preempt, "b has had more than both"
    bench.service[key_of("a")] = 10.0
    assert bench.turn().preempt == (key_of("a"),)


def test_an_adapter_stays_for_a_time_in_which_it_computes_something_new(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.known("c", "d")
    bench.service = {key_of("a"): 9.0, key_of("b"): 8.0}
    bench.running, bench.waiting = {key_of("a"), key_of("b")}, [key_of("c")]
    bench.turn()
    bench.now = PATIENCE_SECONDS
    bench.turn()
    assert bench.turn(finished_jobs=1).preempt == (key_of("a"),)
    bench.running = {key_of("b")}
    bench.turn()
    bench.turn(finished_jobs=1)
    bench.running = {key_of("b"), key_of("c")}
    bench.service[key_of("c")] = 20.0
    bench.loads.residency.pin(key_of("b"), pinned=True)
    bench.waiting = [key_of("a")]
    bench.turn()
    bench.now += PATIENCE_SECONDS - 0.1
    assert not bench.turn().preempt
    bench.now += 0.1
    assert bench.turn().preempt == (key_of("c"),), "pinned ones never make way"


def test_an_adapter_that_is_asked_to_be_resident_has_its_turn_on_a_device_that_is_full(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.known("c")
    bench.running, bench.waiting = {key_of("a"), key_of("b")}, [key_of("c")]
    bench.service = {key_of("a"): 7.0, key_of("b"): 9.0}
    bench.register("d", resident=True)
    bench.turn(finished_jobs=1)
    bench.now = PATIENCE_SECONDS
    bench.turn()
    assert bench.turn(finished_jobs=1).preempt == (key_of("b"),), "it is read, and goes before what requests wait for"
    bench.running = {key_of("a")}
    bench.turn()
    assert ("d", DeviceTier.DEVICE) in tiers(bench.turn(finished_jobs=1)), "whoever asked has the answer"
    bench.turn(finished_jobs=1)
    bench.turn(finished_jobs=1)
    assert set(bench.device.held) == {key_of("a"), key_of("c")}, "the place is the waiting request's next"


def test_nothing_new_starts_on_what_an_adapter_asked_to_be_resident_waits_for_too_long(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.running, bench.waiting = {key_of("a"), key_of("b")}, [key_of("a"), key_of("b")]
    for key in bench.running:
        bench.loads.residency.use(key)
    bench.register("d", resident=True)
    bench.turn(finished_jobs=1)
    assert not bench.loads.held
    bench.now = PATIENCE_SECONDS
    assert not bench.turn().preempt, "nobody was served more"
    assert len(bench.loads.held) == 1
    bench.running -= bench.loads.held
    bench.turn()
    bench.turn(finished_jobs=1)
    assert ("d", DeviceTier.DEVICE) in tiers(bench.turn(finished_jobs=1))


def test_an_adapter_that_cannot_be_measured_fails_alone(bench: Bench) -> None:
    """It is measured where it is read: what raises on the engine's thread ends the engine for all."""
    bench.register("bad-shape", resident=True)
    (status,) = bench.turn(finished_jobs=1).statuses
    assert (status.tier, status.reason) == (None, Reason.LOAD_FAILED)
    assert "a module that nobody has" in (status.message or "")
    assert not bench.loads.accepts(key_of("bad-shape"))


def test_an_adapter_that_inspection_refuses_is_forgotten(bench: Bench) -> None:
    bench.register("bad-config", resident=True)
    outcome = bench.turn(finished_jobs=1)
    assert outcome.statuses == [AdapterStatus(key_of("bad-config"), None, Reason.UNSUPPORTED_ADAPTER, "use_what")]
    assert [one.key.name for one in outcome.refused] == ["bad-config"]
    assert not bench.loads.accepts(key_of("bad-config"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bad-file", Reason.ARTIFACT_INVALID),
        ("bad-memory", Reason.OUT_OF_MEMORY),
        ("bad-luck", Reason.LOAD_FAILED),
    ],
)
def test_a_load_that_fails_ends_its_requests_and_gives_its_room_back(bench: Bench, name: str, reason: Reason) -> None:
    bench.bring("a")
    bench.register(name)
    bench.turn(finished_jobs=1)
    bench.waiting = [key_of(name)]
    bench.turn()
    bench.waiting = []
    outcome = bench.turn(finished_jobs=1)
    assert [(one.key.name, one.reason) for one in outcome.refused] == [(name, reason)]
    assert [(one.tier, one.reason) for one in outcome.statuses] == [(DeviceTier.DISK, reason)]
    assert bench.loads.residency.num_used_pages == 1
    assert set(bench.device.held) == {key_of("a")}
    assert bench.turn() == Outcome(), "it is not tried again by itself"


def test_an_adapter_that_does_not_fit_beside_pinned_ones_is_refused(bench: Bench) -> None:
    bench.bring("a", "b")
    for name in ("a", "b"):
        bench.register(name, resident=True, pinned=True)
    bench.register("c", resident=True)
    outcome = bench.turn(finished_jobs=1)
    assert [(one.key.name, one.reason) for one in outcome.refused] == [("c", Reason.OUT_OF_MEMORY)]


def test_a_released_adapter_ends_its_requests_first(bench: Bench) -> None:
    bench.bring("a")
    bench.running = {key_of("a")}
    assert bench.loads.release(key_of("a")) == Outcome()
    assert not bench.loads.accepts(key_of("a"))
    assert tiers(bench.turn()) == []
    bench.running = set()
    assert tiers(bench.turn()) == [("a", None)]
    assert not bench.device.held
    assert bench.loads.residency.num_used_pages == bench.loads.residency.host_used_bytes == 0


def test_what_is_unknown_is_released_at_once(bench: Bench) -> None:
    assert tiers(bench.loads.release(key_of("a"))) == [("a", None)]


def test_a_released_adapter_can_be_registered_again_before_it_is_gone(bench: Bench) -> None:
    bench.bring("a")
    bench.running = {key_of("a")}
    bench.loads.release(key_of("a"))
    assert tiers(bench.register("a", resident=True)) == [("a", DeviceTier.DEVICE)]
    bench.running = set()
    assert tiers(bench.turn()) == []
    assert bench.loads.accepts(key_of("a"))


def test_being_asked_twice_loads_once(bench: Bench) -> None:
    bench.register("a", resident=True)
    bench.register("a", resident=True)
    bench.turn(finished_jobs=1)
    bench.register("a", resident=True)
    assert tiers(bench.turn(finished_jobs=1)) == [("a", DeviceTier.DEVICE)]
    assert bench.turn() == Outcome()
    assert bench.posted.empty()


def on_host(bench: Bench) -> int:
    """Bytes of slabs whose memory is taken."""
    return 10 * len(bench.device.on_host)


def test_room_on_the_host_is_made_before_an_adapter_is_read() -> None:
    bench = Bench(max_resident=1)
    bench.known("a", "b", "c", "d", "e")
    for name in "abcdeabcde":
        bench.waiting = [key_of(name)]
        for _ in range(2):  # it is read, then copied; the first one is at once
            if key_of(name) not in bench.device.held:
                bench.turn()
                bench.turn(finished_jobs=1)
        assert key_of(name) in bench.device.held
        assert on_host(bench) == bench.loads.residency.host_used_bytes
        bench.loads.residency.use(key_of(name))
    assert bench.device.most_on_host == 3, "35 bytes are 3 of 10 each"
    bench.loads.close()


def test_who_is_copied_does_not_leave_the_host_for_another(bench: Bench) -> None:
    bench.device.num_bytes |= {"a": 35, "b": 35}
    bench.known("a", "b")
    bench.waiting = [key_of("a"), key_of("b")]
    bench.turn()  # both begin
    first, second = bench.turn(finished_jobs=1).statuses, bench.turn(finished_jobs=1).statuses
    assert [(one.key.name, one.host_bytes) for one in (*first, *second)] == [("a", 35), ("b", 0)]
    assert bench.device.on_host == ["a"]
    assert set(bench.device.held) == {key_of("a"), key_of("b")}


def test_what_is_larger_than_the_host_tier_is_loaded_and_not_kept(bench: Bench) -> None:
    bench.device.num_bytes["big"] = 36
    bench.bring("a", "big")
    assert set(bench.device.held) == {key_of("a"), key_of("big")}
    assert bench.device.on_host == ["a"]
    assert bench.loads.residency.host_used_bytes == 10


def test_what_was_read_for_nobody_any_more_gives_its_memory_back(bench: Bench) -> None:
    bench.device.num_bytes["big"] = 36
    bench.bring("a", "b")
    bench.known("big")
    bench.waiting = [key_of("big")]
    bench.turn()
    bench.waiting = []
    bench.turn(finished_jobs=1)
    assert bench.device.on_host == ["a", "b"]
    assert bench.loads.residency.host_used_bytes == 20


@pytest.mark.parametrize("name", ["bad-file", "bad-copy"])
def test_a_load_that_fails_leaves_nothing_on_the_host(bench: Bench, name: str) -> None:
    bench.bring("a")
    bench.known(name)
    bench.waiting = [key_of(name)]
    bench.turn()
    bench.waiting = []
    assert [one.host_bytes for one in bench.turn(finished_jobs=1).statuses] == [0]
    assert bench.device.on_host == ["a"]
    assert bench.loads.residency.host_used_bytes == 10


def test_an_adapter_that_cannot_be_copied_from_the_host_stays_there(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.known("bad-copy")
    bench.waiting = [key_of("bad-copy")]
    bench.turn()
    assert tiers(bench.turn(finished_jobs=1)) == [("bad-copy", DeviceTier.HOST), ("a", DeviceTier.HOST)]
    bench.waiting = []
    assert tiers(bench.turn(finished_jobs=1)) == [("bad-copy", DeviceTier.HOST)]
    assert bench.device.on_host == ["a", "b", "bad-copy"]


def test_a_released_adapter_gives_its_memory_back(bench: Bench) -> None:
    bench.bring("a")
    bench.loads.release(key_of("a"))
    bench.turn()
    assert bench.device.on_host == []
