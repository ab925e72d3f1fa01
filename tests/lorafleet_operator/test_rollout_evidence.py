"""What gateways counted, added up: from the first reading on, over restarts, rows that begin anew and answers in part."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_contract.evidence import Evidence, Latency, RevisionEvidence
from lorafleet_operator.decide.evidence import Counts, RowKey, Tally

BOUNDS = [0.1, 0.2, 0.4]
NEW = "bbbbbbbbbbbb"
KEY = RowKey("team", "base", "french", NEW)


def row(requests: int, *, began: int = 1, buckets: tuple[int, ...] = (0, 0, 0, 0), **errors: int) -> RevisionEvidence:
    return RevisionEvidence(
        namespace="team",
        base="base",
        adapter="french",
        revision=NEW,
        began=began,
        num_requests=requests,
        errors=errors,
        first_byte=Latency(sum_seconds=1.0, buckets=list(buckets)),
        whole=Latency(sum_seconds=1.0, buckets=list(buckets)),
    )


def told(*rows: RevisionEvidence, boot: str = "a") -> Evidence:
    return Evidence(boot_id=boot, sequence=1, bounds_seconds=BOUNDS, revisions=list(rows))


def test_the_first_reading_is_where_counting_begins() -> None:
    tally = Tally()
    tally.take("g0", told(row(1000, server_error=500)))
    assert tally.total(KEY) == Counts()
    tally.take("g0", told(row(1010, server_error=501)))
    assert (tally.total(KEY).requests, tally.total(KEY).faults) == (10, 1)


def test_a_row_that_begins_after_the_first_reading_counts_from_zero() -> None:
    tally = Tally()
    tally.take("g0", told())
    tally.take("g0", told(row(7)))
    tally.take("g0", told())
    tally.take("g0", told(row(9)))
    assert tally.total(KEY).requests == 9


def test_gateways_are_added_up() -> None:
    tally = Tally()
    for gateway in ("g0", "g1"):
        tally.take(gateway, told())
        tally.take(gateway, told(row(5)))
    assert tally.total(KEY).requests == 10
    assert tally.total(RowKey("team", "base", "french", "other")) == Counts()


def test_a_gateway_that_restarts_counts_from_zero_and_is_told_of() -> None:
    tally = Tally()
    tally.take("g0", told())
    tally.take("g0", told(row(5)))
    assert tally.num_restarts == 0
    tally.take("g0", told(row(2), boot="b"))
    assert (tally.total(KEY).requests, tally.num_restarts) == (7, 1)
    tally.take("g0", told(row(3), boot="b"))
    assert (tally.total(KEY).requests, tally.num_restarts) == (8, 1)


def test_a_row_that_made_room_and_came_back_counts_from_zero() -> None:
    tally = Tally()
    tally.take("g0", told(row(50)))
    tally.take("g0", told(row(60)))
    tally.take("g0", told(row(4, began=9)))
    assert tally.total(KEY).requests == 14


def test_what_a_gateway_said_counts_when_it_is_gone() -> None:
    tally = Tally()
    tally.take("g0", told())
    tally.take("g0", told(row(5)))
    tally.forget("g0")
    tally.forget("g1")
    assert tally.total(KEY).requests == 5
    tally.take("g0", told(row(500)))
    assert tally.total(KEY).requests == 5, "the first reading once more"


def test_what_is_the_clients_fault_is_no_request_of_the_revision() -> None:
    counted = Counts.of(
        row(100, client_error=1, overloaded=2, client_left=4, server_error=8, adapter_failed=1, pod_lost=16,
            stream_broken=3, unavailable=5, newer_class=2),
        BOUNDS,
    )  # fmt: skip
    assert (counted.requests, counted.faults, counted.lost) == (93, 11, 24)


def timed(*buckets: int) -> Counts:
    return Counts.of(row(sum(buckets), buckets=buckets), BOUNDS)


@pytest.mark.parametrize(
    ("buckets", "p95"),
    [
        ((0, 0, 0, 0), None),
        ((100, 0, 0, 0), 0.095),
        ((90, 10, 0, 0), 0.15),
        ((0, 95, 5, 0), 0.2),
        ((0, 0, 0, 9), 0.4),
        ((50, 0, 50, 0), 0.38),
    ],
)
def test_percentile_is_on_a_line_within_its_bucket(buckets: tuple[int, ...], p95: float | None) -> None:
    assert timed(*buckets).p95_seconds == (pytest.approx(p95) if p95 is not None else None)


@pytest.mark.parametrize(
    ("seconds", "slower"), [(0.0, 20), (0.05, 15), (0.1, 10), (0.3, 8), (0.4, 6), (0.5, 6), (99.0, 6)]
)
def test_answers_slower_than_a_time(seconds: float, slower: float) -> None:
    assert timed(10, 0, 4, 6).num_slower(seconds) == pytest.approx(slower)
    assert timed(0, 0, 0, 0).num_slower(seconds) == 0


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_one_in_twenty_is_slower_than_the_percentile(buckets: list[int]) -> None:
    counted = timed(*buckets)
    p95 = counted.p95_seconds
    if p95 is not None and p95 < BOUNDS[-1]:
        assert counted.num_slower(p95) == pytest.approx(sum(buckets) / 20)


def test_buckets_of_gateways_with_other_bounds_are_added_by_bound() -> None:
    both = timed(1, 2, 3, 4) + Counts(first_byte={0.2: 10, 0.8: 20, math.inf: 1})
    assert both.first_byte == {0.1: 1, 0.2: 12, 0.4: 3, 0.8: 20, math.inf: 5}
    assert (both - timed(1, 2, 3, 4)).num_timed == 31
