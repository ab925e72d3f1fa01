"""Decisions over frozen pictures."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_contract.admin import Tier
from lorafleet_gateway.fleet.routing import (
    SPILL_FACTOR,
    SPILL_FLOOR,
    Candidate,
    Decision,
    Why,
    decide,
    may_eject,
    two_at_random,
)

uids = st.text("abcdef0123456789", min_size=1, max_size=4)
candidates = st.builds(
    Candidate,
    uid=uids,
    is_ready=st.booleans(),
    is_reachable=st.booleans(),
    tier=st.sampled_from([None, *Tier]),
    outstanding=st.integers(0, 200),
    is_ejected=st.just(False),
)
pools = st.lists(candidates, max_size=8, unique_by=lambda c: c.uid)
names = st.sampled_from(["french", "german", "roman"])
CLASSES = {Tier.DEVICE: 0, Tier.HOST: 1, Tier.DISK: 2, Tier.SOURCE: 3, None: 3}


def pod(
    uid: str, tier: Tier | None = None, outstanding: int = 0, *, ready: bool = True, reachable: bool = True
) -> Candidate:
    return Candidate(uid, ready, reachable, tier, outstanding)


@given(names, pools, st.booleans(), st.booleans(), st.sets(uids))
def test_a_pod_is_chosen_exactly_when_one_is_ready_and_has_not_refused(
    name: str, pool: list[Candidate], is_adapter: bool, on_demand: bool, tried: set[str]
) -> None:
    decision = decide(name, pool, is_adapter=is_adapter, loads_on_demand=on_demand, tried=tried)
    possible = {c.uid for c in pool if c.is_ready and c.uid not in tried}
    assert (decision.uid in possible) if possible else (decision.uid is None)
    if not possible:
        ready = any(c.is_ready for c in pool)
        assert decision.why is (Why.ALL_TRIED if ready else Why.NONE_READY if pool else Why.NO_PODS)


@given(names, pools, st.booleans(), st.booleans())
def test_silent_pods_are_the_last_resort(name: str, pool: list[Candidate], is_adapter: bool, on_demand: bool) -> None:
    decision = decide(name, pool, is_adapter=is_adapter, loads_on_demand=on_demand)
    chosen = next((c for c in pool if c.uid == decision.uid), None)
    if chosen is not None and not chosen.is_reachable:
        assert not any(c.is_ready and c.is_reachable for c in pool)


@given(names, pools, st.booleans(), st.booleans(), st.randoms())
def test_order_does_not_matter(
    name: str, pool: list[Candidate], is_adapter: bool, on_demand: bool, random: object
) -> None:
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (decide(name, p, is_adapter=is_adapter, loads_on_demand=on_demand) for p in (pool, shuffled))
    assert first == second


@given(names, pools, st.booleans())
def test_nothing_nearer_is_passed_over_unless_it_is_too_busy(name: str, pool: list[Candidate], on_demand: bool) -> None:
    decision = decide(name, pool, is_adapter=True, loads_on_demand=on_demand)
    ready = [c for c in pool if c.is_ready]
    asked = [c for c in ready if c.is_reachable] or ready
    if not asked:
        return
    chosen = next(c for c in asked if c.uid == decision.uid)
    limit = max(SPILL_FLOOR, SPILL_FACTOR * sum(c.outstanding for c in asked) / len(asked))
    nearer = [c for c in asked if CLASSES[c.tier] < CLASSES[chosen.tier]]
    assert all(c.outstanding >= limit for c in nearer)
    if nearer:
        assert on_demand
        assert decision.why is Why.SPILL
    else:
        assert decision.why is (Why(chosen.tier.lower()) if chosen.tier else Why.UNLISTED)


@given(names, st.lists(uids, min_size=2, max_size=8, unique=True), st.sampled_from([None, Tier.HOST, Tier.DISK]))
def test_an_adapter_that_is_not_resident_stays_with_its_pod_when_others_come_and_go(
    name: str, all_uids: list[str], tier: Tier | None
) -> None:
    everybody = [pod(uid, tier) for uid in all_uids]
    home = decide(name, everybody, is_adapter=True).uid
    for gone in all_uids:
        left = [c for c in everybody if c.uid != gone]
        if gone != home:
            assert decide(name, left, is_adapter=True).uid == home


def test_least_outstanding_among_pods_that_hold_it_on_the_device() -> None:
    pool = [pod("a", Tier.DEVICE, 3), pod("b", Tier.DEVICE, 1), pod("c", Tier.HOST, 0), pod("d", None, 0)]
    assert decide("french", pool, is_adapter=True) == Decision("b", Why.DEVICE)


def test_least_outstanding_for_the_base_wherever_adapters_are() -> None:
    pool = [pod("a", Tier.DEVICE, 3), pod("b", None, 1)]
    assert decide("numerals", pool, is_adapter=False) == Decision("b", Why.BASE)


def test_many_adapters_that_are_nowhere_spread_over_all_pods() -> None:
    pool = [pod(f"pod-{i}") for i in range(4)]
    homes = Counter(decide(f"adapter-{i}", pool, is_adapter=True).uid for i in range(400))
    assert set(homes) == {c.uid for c in pool}
    assert min(homes.values()) > 60


def test_a_hot_adapter_spills_only_where_it_can_be_loaded() -> None:
    pool = [pod("a", Tier.DEVICE, SPILL_FLOOR), pod("b", Tier.DISK, 0)]
    assert decide("hot", pool, is_adapter=True, loads_on_demand=True) == Decision("b", Why.SPILL)
    assert decide("hot", pool, is_adapter=True, loads_on_demand=False) == Decision("a", Why.DEVICE)
    calm = [pod("a", Tier.DEVICE, SPILL_FLOOR - 1), pod("b", Tier.DISK, 0)]
    assert decide("hot", calm, is_adapter=True, loads_on_demand=True) == Decision("a", Why.DEVICE)


@given(names, pools, st.booleans(), st.booleans())
def test_the_least_busy_of_equally_near_pods_is_chosen(
    name: str, pool: list[Candidate], is_adapter: bool, on_demand: bool
) -> None:
    decision = decide(name, pool, is_adapter=is_adapter, loads_on_demand=on_demand)
    if decision.why not in (Why.BASE, Why.DEVICE):
        return
    ready = [c for c in pool if c.is_ready]
    asked = [c for c in ready if c.is_reachable] or ready
    equal = [c for c in asked if not is_adapter or c.tier is Tier.DEVICE]
    chosen = next(c for c in equal if c.uid == decision.uid)
    assert chosen.outstanding == min(c.outstanding for c in equal)


def test_the_least_busy_is_chosen_wherever_it_stands_and_whatever_its_name() -> None:
    """At a tie the name decides, and only then."""
    for idle in range(5):
        for name in ("french", "german", "roman", "numerals"):
            pool = [pod(f"pod-{i}", Tier.DEVICE, 0 if i == idle else 1 + i) for i in range(5)]
            assert decide(name, pool, is_adapter=True).uid == f"pod-{idle}"
            assert decide(name, pool, is_adapter=False).uid == f"pod-{idle}"
    equal = [pod(f"pod-{i}", Tier.DEVICE, 7) for i in range(5)]
    assert len({decide(f"adapter-{i}", equal, is_adapter=True).uid for i in range(60)}) == 5


def test_of_two_that_are_drawn_the_less_busy_one() -> None:
    pool = [pod(f"pod-{i}", Tier.DEVICE, i) for i in range(4)]
    for drawn in ([0, 3], [2, 1], [3, 2]):
        for is_adapter in (True, False):
            decision = decide("french", pool, is_adapter=is_adapter, sample=lambda _, d=drawn: [pool[i] for i in d])
            assert decision.uid == f"pod-{min(drawn)}"


def test_what_is_drawn_are_two_different_pods_and_each_in_time() -> None:
    pool = [pod(f"pod-{i}") for i in range(4)]
    draws = [two_at_random(pool) for _ in range(200)]
    assert all(len({c.uid for c in drawn}) == 2 for drawn in draws)
    assert {c.uid for drawn in draws for c in drawn} == {c.uid for c in pool}
    assert {len(two_at_random(pool[:3])) for _ in range(20)} == {2}
    assert sorted(two_at_random(pool[:2]), key=lambda c: c.uid) == pool[:2]
    assert list(two_at_random(pool[:1])) == pool[:1]


def test_two_gateways_do_not_send_everything_to_the_one_idle_pod() -> None:
    pool = [pod("idle", Tier.DEVICE, 0), *(pod(f"pod-{i}", Tier.DEVICE, 3) for i in range(9))]
    chosen = Counter(decide("hot", pool, is_adapter=True, sample=two_at_random).uid for _ in range(500))
    assert 0 < chosen["idle"] < 250


def test_ejected_pods_are_asked_only_if_there_is_no_other() -> None:
    def ejected(uid: str, tier: Tier) -> Candidate:
        return Candidate(uid, is_ready=True, is_reachable=True, tier=tier, outstanding=0, is_ejected=True)

    pool = [ejected("a", Tier.DEVICE), pod("b", Tier.DISK, 20)]
    assert decide("french", pool, is_adapter=True) == Decision("b", Why.DISK)
    assert decide("numerals", pool, is_adapter=False) == Decision("b", Why.BASE)
    assert decide("french", pool, is_adapter=True, tried={"b"}) == Decision("a", Why.DEVICE)


def test_at_most_half_of_a_base_is_ejected() -> None:
    allowed = {n: max((k + 1 for k in range(n) if may_eject(num_ready=n, num_ejected=k)), default=0) for n in range(7)}
    assert allowed == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}


@pytest.mark.parametrize("name", ["french", "german", "roman", "numerals", "thai"])
def test_of_equally_busy_pods_that_hold_it_the_one_that_would_load_it(name: str) -> None:
    """So a name keeps its pod from before it is resident to after, and its prefixes are found there."""
    uids = [f"pod-{i}" for i in range(5)]
    home = decide(name, [pod(uid) for uid in uids], is_adapter=True)
    assert home == Decision(home.uid, Why.UNLISTED)
    assert decide(name, [pod(uid, Tier.DEVICE, 2) for uid in uids], is_adapter=True) == Decision(home.uid, Why.DEVICE)
    assert decide(name, [pod(uid, None, 2) for uid in uids], is_adapter=False) == Decision(home.uid, Why.BASE)


@pytest.mark.parametrize("tier", list(Tier))
def test_the_reason_is_where_it_is_held(tier: Tier) -> None:
    assert decide("french", [pod("a", tier)], is_adapter=True) == Decision("a", Why(tier.lower()))
    assert decide("french", [pod("a", tier)], is_adapter=False) == Decision("a", Why.BASE)


def test_a_pod_is_too_busy_with_twice_the_mean_of_those_that_can_be_asked() -> None:
    """And with that of the base's other pods, not of those that are not ready, are silent, ejected or were tried."""
    calm = [pod(f"pod-{i}", Tier.DISK, 40) for i in range(3)]
    for outstanding, why in ((119, Why.DEVICE), (120, Why.SPILL)):
        assert decide("hot", [pod("hot", Tier.DEVICE, outstanding), *calm], is_adapter=True).why is why
    others = [
        pod("not ready", None, 9999, ready=False),
        pod("silent", None, 9999, reachable=False),
        Candidate("ejected", True, True, None, 9999, is_ejected=True),
        pod("tried", None, 9999),
    ]
    hot = pod("hot", Tier.DEVICE, 120)
    assert decide("hot", [hot, *calm, *others], is_adapter=True, tried={"tried"}).why is Why.SPILL


def test_where_all_are_too_busy_the_nearest_has_it() -> None:
    alone = [pod("a", Tier.DEVICE, 9999)]
    assert decide("hot", alone, is_adapter=True).uid == "a"
    only_left = [pod("a", Tier.DEVICE, 70), pod("b", Tier.DISK, 70)]
    assert decide("hot", only_left, is_adapter=True) == Decision("a", Why.DEVICE)
