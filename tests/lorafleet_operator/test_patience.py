"""What waits a moment, and for how long: first catalogues for sources, statuses for what is under way."""

from dataclasses import replace

import pytest
from support import operator_views as v
from support.operator_views import KEY, NOW

from lorafleet_contract.admin import CatalogueEntry, ObservedAdapter, Residency, RevisionRef
from lorafleet_contract.names import revision_of
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, AdapterStatus
from lorafleet_operator.decide import deferral, first_catalogue
from lorafleet_operator.decide.conditions import progress_of, said, with_times
from lorafleet_operator.decide.deferral import MAX_AT_ONCE, WAIT_SECONDS, Deferrals
from lorafleet_operator.decide.diff import PodChange, Removal
from lorafleet_operator.decide.first_catalogue import MAX_WAIT_SECONDS, FirstCatalogues
from lorafleet_operator.decide.pace import MAX_SECONDS, SECONDS_PER_POD, Paced, Rounds


def change(name: str, fence: int) -> PodChange:
    return PodChange(v.seen(pod=v.pod(name), fence=fence), (), (), "because")


def test_first_catalogue_waits_for_sources_and_not_for_ever() -> None:
    waiting, fresh, known = FirstCatalogues(), change("p0", 0), change("p1", 1)
    assert waiting.due(KEY, [fresh, known], is_resolving=False, now=0) == [fresh, known]
    assert waiting.due(KEY, [fresh, known], is_resolving=True, now=1) == [known]
    assert waiting.due(KEY, [fresh], is_resolving=True, now=MAX_WAIT_SECONDS) == []
    assert waiting.due(KEY, [fresh], is_resolving=True, now=1 + MAX_WAIT_SECONDS) == [fresh]
    assert waiting.due(KEY, [fresh], is_resolving=True, now=2 + MAX_WAIT_SECONDS) == []
    assert first_catalogue.LOOK_SECONDS < MAX_WAIT_SECONDS


def status(reason: Reason, *, ready: bool = False, revision: str | None = None) -> AdapterStatus:
    verdict = said("Ready", ready, reason, "m")
    available = said("Available", revision is not None, Reason.SERVING, "m")
    verdicts = [verdict, available, *progress_of(verdict, is_stalled=reason is Reason.UNSAFE_FORMAT, is_waiting=True)]
    return AdapterStatus(stable_revision=revision, conditions=with_times(verdicts, [], generation=2, now=NOW))


def due(deferrals: Deferrals, changes: list[tuple[AdapterResource, AdapterStatus]], now: float) -> list[str]:
    return [resource.metadata.name for resource, _ in deferrals.due(KEY, changes, now=now)]


def test_progress_waits_and_everything_else_does_not() -> None:
    adapter, old = v.adapter(), v.adapter(status={"stableRevision": "a" * 12})
    for found, is_due in (
        ((adapter, status(Reason.RESOLVING)), False),
        ((adapter, status(Reason.LOADING)), False),
        ((adapter, status(Reason.NO_READY_PODS)), True),
        ((adapter, status(Reason.UNSAFE_FORMAT)), True),
        ((adapter, status(Reason.SERVING, ready=True, revision="b" * 12)), True),
        ((old, status(Reason.LOADING, revision=None)), True),
    ):
        assert bool(due(Deferrals(), [found], 0)) == is_due, found
    assert {Reason.RESOLVING, Reason.LOADING} == deferral.UNDER_WAY


def test_progress_is_written_after_a_while_a_few_at_a_time() -> None:
    deferrals = Deferrals()
    many = [(v.adapter(f"a{number:02d}"), status(Reason.LOADING)) for number in range(MAX_AT_ONCE + 5)]
    assert due(deferrals, many, 0) == []
    assert due(deferrals, many, WAIT_SECONDS / 2) == []
    first = due(deferrals, many, WAIT_SECONDS)
    assert len(first) == MAX_AT_ONCE
    left = [pair for pair in many if pair[0].metadata.name not in first]
    assert len(due(deferrals, left, WAIT_SECONDS)) == 5
    assert due(deferrals, many[:1], WAIT_SECONDS) == []


def told(at: str, *entries: CatalogueEntry, knows: tuple[ObservedAdapter, ...] = (), fence: int = 1) -> PodChange:
    return PodChange(v.seen(*knows, pod=v.pod(at), fence=fence), entries, (), "because")


def catalogued(name: str, *, is_kept: bool, stable: bool = True) -> CatalogueEntry:
    residency = Residency.RESIDENT if is_kept else Residency.ON_DEMAND
    return CatalogueEntry(name=name, source=v.artifact(name).resolved, residency=residency, stable=stable)


def names_told(paced: Paced) -> list[tuple[str, list[str]]]:
    return [(change.pod.uid, [entry.name for entry in change.entries]) for change in paced.changes]


def test_what_is_to_be_kept_is_told_at_once_and_all_else_in_rounds() -> None:
    rounds, pods = Rounds(), [f"p{number}" for number in range(10)]
    price = SECONDS_PER_POD * len(pods)

    def change_of(name: str, keeper: str = "p7") -> list[PodChange]:
        return [told(pod, catalogued("b", is_kept=False), catalogued(name, is_kept=pod == keeper)) for pod in pods]

    def due(name: str, now: float) -> Paced:
        return rounds.due(KEY, change_of(name), fence=1, now=now)

    first = due("a", 100.0)
    assert [uid for uid, _ in names_told(first)] == ["uid-p7", *(f"uid-{pod}" for pod in pods if pod != "p7")]
    assert all(names == ["b", "a"] for _, names in names_told(first))
    assert first.wait_seconds is None
    assert len(due("a", 100.0).changes) == len(pods)  # named right after it was told
    third = due("a", 100.0)
    assert names_told(third) == [("uid-p7", ["a"])]
    assert third.changes[0].why == "tell a"
    assert third.wait_seconds == pytest.approx(price)
    assert len(due("a", 100.0 + price / 2).changes) == 1
    assert len(due("a", 100.0 + price + 1e-9).changes) == len(pods)
    assert due("a", 100.0 + price + 1e-9).wait_seconds is not None
    rounds.forget(KEY)
    assert due("a", 100.0).wait_seconds is None


def test_rounds_over_many_pods_do_not_wait_for_long() -> None:
    rounds, changes = Rounds(), [told(f"p{number}", catalogued("a", is_kept=False)) for number in range(500)]
    found = [rounds.due(KEY, changes, fence=1, now=now).wait_seconds for now in (0.0, 0.0, 0.0, MAX_SECONDS + 0.01)]
    assert found == [None, None, pytest.approx(MAX_SECONDS), None]


def test_with_what_is_to_be_kept_goes_what_makes_room_for_it() -> None:
    rounds = Rounds()
    kept, known = v.entry("old", "old"), v.entry("new", "new", residency=Residency.ON_DEMAND)
    entries = [catalogued("old", is_kept=False), catalogued("new", is_kept=True), catalogued("other", is_kept=False)]
    change = told("p0", *entries, knows=(kept, known))
    change = replace(change, removals=(Removal(60.0, (RevisionRef(name="gone", revision="0" * 12),)),))
    assert known.revision == revision_of(entries[1].digest)
    rounds.due(KEY, [change], fence=1, now=0)
    rounds.due(KEY, [change], fence=1, now=0)
    found = rounds.due(KEY, [change], fence=1, now=0)
    assert names_told(found) == [("uid-p0", ["old", "new"])]
    assert found.changes[0].removals == change.removals
    # a name that moves, moves on all pods in one round
    named = told("p0", catalogued("new", is_kept=True), knows=(v.entry("new", "new", stable=False),))
    assert rounds.due(KEY, [named], fence=1, now=0).changes == ()


def test_pods_of_another_leader_do_not_wait() -> None:
    rounds, entries = Rounds(), [catalogued("a", is_kept=False)]
    changes = [told("p0", *entries, fence=1), told("p1", *entries, fence=0), told("p2", *entries, fence=2)]
    for _ in range(3):
        found = rounds.due(KEY, changes, fence=2, now=0)
    assert [uid for uid, _ in names_told(found)] == ["uid-p0", "uid-p1"]


def test_a_change_that_is_all_to_be_kept_takes_no_round() -> None:
    rounds, change = Rounds(), told("p0", catalogued("a", is_kept=True))
    for _ in range(4):
        assert rounds.due(KEY, [change], fence=1, now=0) == Paced((change,))
    waiting = told("p1", catalogued("a", is_kept=False))
    assert rounds.due(KEY, [waiting], fence=1, now=0).wait_seconds is None
    assert rounds.due(KEY, [waiting], fence=1, now=0).wait_seconds is None


def test_a_base_that_had_no_round_may_go() -> None:
    rounds = Rounds()
    rounds.forget(KEY)
    assert rounds.due(KEY, [], fence=1, now=0) == Paced(())
