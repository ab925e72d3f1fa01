"""Whose place on the device one that waits may have: by how long it waited, and how long others have computed."""

import pytest
from support.engines import key_of

from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.turns import PATIENCE_SECONDS, Turns

A, B, C, D = (key_of(name) for name in "abcd")


def test_nobody_is_overdue_who_has_not_been_seen_to_wait() -> None:
    turns = Turns()
    assert not turns.is_overdue(A, 1000.0)
    turns.observe([B], [], 0.0)
    assert not turns.is_overdue(A, 1000.0)


@pytest.mark.parametrize(
    ("waited", "is_overdue"), [(0.0, False), (PATIENCE_SECONDS - 0.5, False), (PATIENCE_SECONDS, True)]
)
def test_patience_ends_after_its_time(waited: float, is_overdue: bool) -> None:
    turns = Turns()
    turns.observe([A], [], 100.0)
    turns.observe([A, B], [], 100.0 + waited)
    assert turns.is_overdue(A, 100.0 + waited) is is_overdue
    assert not turns.is_overdue(B, 100.0 + waited), "it has just come"


def test_whoever_stops_waiting_begins_anew() -> None:
    turns = Turns()
    turns.observe([A], [], 0.0)
    turns.observe([], [], 1.0)
    turns.observe([A], [], 2.0)
    assert not turns.is_overdue(A, PATIENCE_SECONDS + 1.0)
    assert turns.is_overdue(A, PATIENCE_SECONDS + 2.0)


def service_of(**tokens: float) -> dict[AdapterKey, float]:
    return {key_of(name): served for name, served in tokens.items()}


def test_those_that_were_served_more_and_have_computed_for_long_give_their_places_the_most_served_first() -> None:
    turns, service = Turns(), service_of(a=10.0, b=30.0, c=20.0, d=10.0)
    turns.observe([A], [B, C, D], 50.0)
    turns.observe([A], [B, C, D], 50.0 + PATIENCE_SECONDS)
    assert turns.preemptible(A, [C, D, B], service.__getitem__, 50.0 + PATIENCE_SECONDS) == [B, C]
    assert turns.preemptible(A, [C, D], service.__getitem__, 50.0 + PATIENCE_SECONDS) == [C], "only who has a place"


def test_a_stay_is_worth_its_load() -> None:
    """Who has computed nothing new for as long since it came keeps its place, however much it was served before."""
    turns, service = Turns(), service_of(a=1.0, b=30.0, c=20.0)
    turns.observe([A], [B], 0.0)
    turns.observe([A], [B, C], 1.0)
    now = PATIENCE_SECONDS
    assert turns.preemptible(A, [B, C], service.__getitem__, now - 0.5) == []
    assert turns.preemptible(A, [B, C], service.__getitem__, now) == [B]
    assert turns.preemptible(A, [B, C], service.__getitem__, now + 1.0) == [B, C]
    turns.observe([A], [C], now + 1.0)  # b computes again what it had computed
    turns.observe([A], [B, C], now + 2.0)
    assert turns.preemptible(A, [B, C], service.__getitem__, now + 2.0) == [C]
    assert turns.preemptible(A, [D], lambda key: 99.0 if key == D else 1.0, now + 99.0) == [], (
        "it has not been seen to compute"
    )
