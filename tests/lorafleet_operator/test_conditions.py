"""Conditions and the Events that their changes are worth."""

from datetime import timedelta

from support.operator_views import NOW

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import Condition
from lorafleet_operator.act.events import transition
from lorafleet_operator.decide.conditions import MAX_MESSAGE, READY, STALLED, progress_of, said, with_times

LATER = NOW + timedelta(minutes=1)


def made(status: bool | None, reason: str = "Serving", *, stalled: bool = False) -> list[Condition]:
    ready = said(READY, status, reason, f"it is {reason}")
    return with_times([ready, *progress_of(ready, is_stalled=stalled, is_waiting=True)], [], generation=1, now=NOW)


def test_time_moves_with_the_status_only() -> None:
    first = with_times([said(READY, False, "Loading", "x")], [], generation=1, now=NOW)
    same = with_times([said(READY, False, "Resolving", "y")], first, generation=2, now=LATER)
    assert (same[0].last_transition_time, same[0].reason, same[0].observed_generation) == (NOW, "Resolving", 2)
    turned = with_times([said(READY, True, "Serving", "z")], same, generation=2, now=LATER)
    assert turned[0].last_transition_time == LATER


def test_conditions_are_sorted_and_messages_bounded() -> None:
    found = with_times(
        [said("Ready", None, "X", "m" * 9999), said("Accepted", True, "X", "")], [], generation=1, now=NOW
    )
    assert [c.type for c in found] == ["Accepted", "Ready"]
    assert found[1].status == "Unknown"
    assert len(found[1].message) == MAX_MESSAGE


def test_progress_says_what_is_true_and_nothing_else() -> None:
    ready, not_ready = said(READY, True, "Serving", "m"), said(READY, False, Reason.LOADING, "m")
    assert progress_of(ready, is_stalled=True, is_waiting=True) == []
    assert [v.type for v in progress_of(not_ready, is_stalled=False, is_waiting=True)] == ["Reconciling"]
    assert [v.type for v in progress_of(not_ready, is_stalled=True, is_waiting=True)] == ["Stalled"]
    assert progress_of(not_ready, is_stalled=False, is_waiting=False) == []


def test_events_are_for_transitions() -> None:
    waiting, ready, stuck = made(False, "Loading"), made(True), made(False, "UnsafeFormat", stalled=True)
    assert transition([], waiting) is None
    assert transition(waiting, waiting) is None
    assert transition(waiting, ready) == ("Normal", "Ready", "it is Serving")
    assert transition(ready, ready) is None
    assert transition(ready, ready, has_switched=True) == ("Normal", "Ready", "it is Serving")
    assert transition(ready, waiting, has_switched=True) == ("Normal", "Loading", "no longer Ready: it is Loading")
    assert transition(ready, waiting) == ("Normal", "Loading", "no longer Ready: it is Loading")
    assert transition(ready, stuck) == ("Warning", "UnsafeFormat", "it is UnsafeFormat")
    assert transition(stuck, stuck) is None
    assert transition(stuck, made(False, "DigestMismatch", stalled=True)) == (
        "Warning",
        "DigestMismatch",
        "it is DigestMismatch",
    )
    assert {c.type for c in stuck} == {READY, STALLED}
