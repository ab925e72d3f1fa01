"""Placement keeps to budgets, moves as little as it can, and never depends on an order."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_operator.decide.paging import Paging
from lorafleet_operator.decide.place import Placement, PodBudget, Want, place, rendezvous

RANKS = st.sampled_from([4, 8, 16, 32, 64])
PAGES = st.none() | st.integers(1, 5)
PAGINGS = st.sampled_from([Paging(4), Paging(8), Paging(16), Paging(24, 7, is_told=True)])


@st.composite
def pods(draw: st.DrawFn, *, min_size: int = 1) -> list[PodBudget]:
    num = draw(st.integers(min_size, 6))
    budget = st.tuples(st.integers(0, 6), st.integers(0, 20), PAGINGS, st.booleans())
    return [PodBudget(f"pod-{i}", *draw(budget)) for i in range(num)]


@st.composite
def wants(draw: st.DrawFn, uids: list[str], *, max_size: int = 12) -> list[Want]:
    num = draw(st.integers(0, max_size))
    holders = st.frozensets(st.sampled_from([*uids, "gone"])) if uids else st.just(frozenset())
    one = st.tuples(RANKS, st.none() | st.integers(0, 4), st.integers(0, 2), holders, st.none() | RANKS)
    pages = st.tuples(PAGES, PAGES)
    made = [Want(f"a{i}", *draw(one)) for i in range(num)]
    return [replace(want, memory_pages=own, other_memory_pages=other) for want in made for own, other in [draw(pages)]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[PodBudget], list[Want]]:
    budgets = draw(pods())
    return budgets, draw(wants([budget.uid for budget in budgets]))


def taken(budget: PodBudget, all_wants: list[Want], placement: Placement) -> tuple[int, int]:
    """Slots and pages that a placement takes on a pod."""
    takes = [(want.rank, want.memory_pages) for want in all_wants if budget.uid in placement.pods[want.name]]
    takes += [
        (want.other_rank or 0, want.other_memory_pages)
        for want in all_wants
        if budget.uid in placement.beside.get(want.name, ())
    ]
    return len(takes), sum(itertools.starmap(budget.paging.pages_of, takes))


def hold(all_wants: list[Want], placement: Placement) -> list[Want]:
    """The same wants after the placement has been carried out."""
    return [replace(want, holders=placement.pods[want.name]) for want in all_wants]


@given(problems())
def test_never_over_budget(problem: tuple[list[PodBudget], list[Want]]) -> None:
    budgets, all_wants = problem
    placement = place(budgets, all_wants)
    for budget in budgets:
        slots, pages = taken(budget, all_wants, placement)
        assert slots <= max(budget.slots, 0)
        assert pages <= max(budget.pages, 0)
    for want in all_wants:
        assert placement.beside.get(want.name, frozenset()) <= placement.pods[want.name]


@given(problems())
def test_never_more_pods_than_wanted_and_what_lacks_is_said(problem: tuple[list[PodBudget], list[Want]]) -> None:
    budgets, all_wants = problem
    placement = place(budgets, all_wants)
    for want in all_wants:
        wanted = len(budgets) if want.num_pods is None else min(want.num_pods, len(budgets))
        assert len(placement.pods[want.name]) + placement.missing.get(want.name, 0) == wanted


@given(problems(), st.randoms(use_true_random=False))
def test_order_of_arguments_means_nothing(problem: tuple[list[PodBudget], list[Want]], shuffler: random.Random) -> None:
    budgets, all_wants = problem
    expected = place(budgets, all_wants)
    shuffler.shuffle(budgets)
    shuffler.shuffle(all_wants)
    assert place(budgets, all_wants) == expected


@given(problems())
def test_what_was_carried_out_stays(problem: tuple[list[PodBudget], list[Want]]) -> None:
    budgets, all_wants = problem
    placement = place(budgets, all_wants)
    assert place(budgets, hold(all_wants, placement)) == placement


@given(problems())
def test_nothing_new_on_a_closed_pod(problem: tuple[list[PodBudget], list[Want]]) -> None:
    budgets, all_wants = problem
    placement = place(budgets, all_wants)
    closed = {budget.uid for budget in budgets if not budget.is_open}
    for want in all_wants:
        assert placement.pods[want.name] & closed <= want.holders


@given(problems(), RANKS, st.integers(0, 2))
def test_new_adapter_moves_nobody_where_somewhere_is_room(
    problem: tuple[list[PodBudget], list[Want]], rank: int, priority: int
) -> None:
    """Whatever its priority: others give way only where nothing else is left."""
    budgets, all_wants = problem
    settled = hold(all_wants, place(budgets, all_wants))
    before = place(budgets, [replace(w, other_rank=None) for w in settled])
    room = [
        budget
        for budget in budgets
        if budget.is_open
        and taken(budget, settled, Placement(before.pods, {}, {}))[0] < budget.slots
        and taken(budget, settled, Placement(before.pods, {}, {}))[1] + budget.paging.pages_of(rank) <= budget.pages
    ]
    new = Want("new", rank, 1, priority)
    after = place(budgets, [*(replace(w, other_rank=None) for w in settled), new])
    if room:
        assert len(after.pods["new"]) == 1
        for want in settled:
            assert after.pods[want.name] >= before.pods[want.name]


@given(problems())
def test_nobody_lower_has_the_room_that_a_higher_one_lacks(problem: tuple[list[PodBudget], list[Want]]) -> None:
    budgets, all_wants = problem
    placement = place(budgets, all_wants)
    plain = Placement(placement.pods, {}, {})
    for want in all_wants:
        equals = [other for other in all_wants if other.priority >= want.priority]
        for budget in budgets:
            if want.name in placement.missing and budget.is_open and budget.uid not in placement.pods[want.name]:
                slots, pages = taken(budget, equals, plain)
                assert (
                    slots + 1 > budget.slots
                    or pages + budget.paging.pages_of(want.rank, want.memory_pages) > budget.pages
                )


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 5))
def test_pod_that_goes_moves_only_what_was_on_it(num_pods: int, num_wants: int, gone: int) -> None:
    budgets = [PodBudget(f"pod-{i}", 100, 1000, Paging(8)) for i in range(num_pods)]
    before = place(budgets, [Want(f"a{i}", 8, 1) for i in range(num_wants)])
    left = [budget for budget in budgets if budget.uid != f"pod-{gone % num_pods}"]
    held = [Want(f"a{i}", 8, 1, holders=before.pods[f"a{i}"]) for i in range(num_wants)]
    after = place(left, held)
    for want in held:
        if f"pod-{gone % num_pods}" not in before.pods[want.name]:
            assert after.pods[want.name] == before.pods[want.name]
        assert len(after.pods[want.name]) == 1


def test_adapters_spread_over_pods() -> None:
    """None holds more than its fair share and a quarter."""
    budgets = [PodBudget(f"pod-{i}", 500, 5000, Paging(8)) for i in range(4)]
    placement = place(budgets, [Want(f"a{i}", 8, 1) for i in range(200)])
    sizes = [sum(budget.uid in uids for uids in placement.pods.values()) for budget in budgets]
    assert sum(sizes) == 200
    assert max(sizes) <= 63


def test_urgent_adapter_takes_the_place_of_another() -> None:
    """Only where it must: everything is full."""
    budgets = [PodBudget("pod-0", 1, 8, Paging(8)), PodBudget("pod-1", 1, 8, Paging(8))]
    held = [Want("a", 8, 1, holders=frozenset({"pod-0"})), Want("b", 8, 1, holders=frozenset({"pod-1"}))]
    after = place(budgets, [*held, Want("urgent", 8, 1, priority=1)])
    assert len(after.pods["urgent"]) == 1
    assert sum(after.missing.values()) == 1


@pytest.mark.parametrize("num_pods", [2, 3, 5])
@pytest.mark.parametrize("num_wants", [4, 7, 30])
def test_no_pod_takes_more_than_a_quarter_above_its_share(num_pods: int, num_wants: int) -> None:
    """Hashing alone would: the names are ones that all weigh most on one pod."""
    budgets = [PodBudget(f"pod-{i}", 100, 1000, Paging(8)) for i in range(num_pods)]
    uids = [budget.uid for budget in budgets]
    names = (f"a{i}" for i in range(10_000))
    drawn = [name for name in names if max(uids, key=lambda uid: rendezvous(name, uid)) == "pod-0"][:num_wants]
    placement = place(budgets, [Want(name, 8, 1) for name in drawn])
    held = Counter(uid for pods in placement.pods.values() for uid in pods)
    share = math.ceil(1.25 * num_wants / num_pods)
    assert held["pod-0"] == share, "as far as its share goes it stays where its hash says"
    assert max(held.values()) == share
    assert sum(held.values()) == num_wants


def test_share_counts_all_that_is_wanted() -> None:
    budgets = [PodBudget(f"pod-{i}", 100, 1000, Paging(8)) for i in range(4)]
    wants = [Want("a", 8, None), *(Want(f"a{i}", 8, 2) for i in range(6)), Want("asked", 8, 0)]
    placement = place(budgets, wants)
    held = Counter(uid for pods in placement.pods.values() for uid in pods)
    assert placement.pods["a"] == {budget.uid for budget in budgets}
    assert placement.pods["asked"] == frozenset()
    assert max(held.values()) <= math.ceil(1.25 * (4 + 12) / 4)
    assert placement.missing == {}


def test_a_group_takes_no_more_slots_of_a_pod_than_it_may() -> None:
    budgets = [PodBudget(uid, 8, 64, Paging(8)) for uid in ("a", "b")]
    guests = [Want(f"g{n}", 8, None, priority=9, group="z", max_group_slots=2) for n in range(5)]
    found = place(budgets, [*guests, Want("own", 8, None)])
    assert found.pods["own"] == {"a", "b"}
    for uid in ("a", "b"):
        assert sum(uid in found.pods[want.name] for want in guests) == 2
    assert sum(found.missing.values()) == 6


NEWCOMERS = [f"new-{number}" for number in range(12)]
"""Names enough for each pod to weigh most for some of them."""


def heaviest(name: str, uids: list[str], count: int = 1) -> set[str]:
    return set(sorted(uids, key=lambda uid: rendezvous(name, uid), reverse=True)[:count])


@pytest.mark.parametrize("name", NEWCOMERS)
@pytest.mark.parametrize("count", [1, 2])
def test_an_adapter_goes_where_its_name_weighs_most(name: str, count: int) -> None:
    """So whoever places it anew, after a status was lost, finds the same pods."""
    budgets = [PodBudget(f"pod-{i}", 8, 64, Paging(8)) for i in range(4)]
    placed = place(budgets, [Want(name, 8, count)]).pods[name]
    assert placed == heaviest(name, [budget.uid for budget in budgets], count)


@pytest.mark.parametrize("name", NEWCOMERS)
@pytest.mark.parametrize("free", range(4))
def test_an_urgent_newcomer_goes_where_nobody_has_to_give_way(name: str, free: int) -> None:
    budgets = [PodBudget(f"pod-{i}", 1, 8, Paging(8)) for i in range(4)]
    held = frozenset(budget.uid for budget in budgets) - {f"pod-{free}"}
    placed = place(budgets, [Want("there", 8, 3, holders=held), Want(name, 8, 1, priority=1)])
    assert placed.pods == {"there": held, name: {f"pod-{free}"}}
    assert placed.missing == {}


@pytest.mark.parametrize("name", NEWCOMERS)
def test_a_place_that_is_given_up_anyway_is_free_for_an_urgent_newcomer(name: str) -> None:
    budgets = [PodBudget(f"pod-{i}", 1, 8, Paging(8)) for i in range(3)]
    uids = [budget.uid for budget in budgets]
    placed = place(budgets, [Want("fewer", 8, 2, holders=frozenset(uids)), Want(name, 8, 1, priority=1)])
    stays = heaviest("fewer", uids, 2)
    assert placed.pods == {"fewer": stays, name: set(uids) - stays}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(NEWCOMERS[:8], 2)))
def test_a_place_that_a_newcomer_has_got_is_not_free_for_the_next(first: str, second: str) -> None:
    budgets = [PodBudget("pod-0", 2, 16, Paging(8)), PodBudget("pod-1", 1, 8, Paging(8))]
    there = Want("there", 8, 1, holders=frozenset({"pod-0"}))
    placed = place(budgets, [there, Want(first, 8, 1, priority=1), Want(second, 8, 1, priority=1)])
    assert placed.pods["there"] == {"pod-0"}
    assert placed.pods[first] ^ placed.pods[second] == {"pod-0", "pod-1"}


@pytest.mark.parametrize("urgent", ["a", "b"])
def test_the_second_revision_of_the_more_urgent_one_has_the_last_room(urgent: str) -> None:
    pod = frozenset({"pod"})
    both = [Want(name, 8, 1, int(name == urgent), pod, other_rank=8) for name in ("a", "b")]
    placed = place([PodBudget("pod", 3, 24, Paging(8))], both)
    assert placed.pods == {"a": pod, "b": pod}
    assert placed.beside == {name: pod if name == urgent else frozenset() for name in ("a", "b")}


def test_without_pods_nothing_is_placed_and_nothing_lacks() -> None:
    wants = [Want("all", 8, None), Want("two", 8, 2, other_rank=4)]
    assert place([], wants) == Placement({"all": frozenset(), "two": frozenset()}, {"two": frozenset()}, {})
