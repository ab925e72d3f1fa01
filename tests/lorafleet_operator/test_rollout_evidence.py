"""What gateways counted, added up: from the first reading on, over restarts, rows that begin anew and answers in part."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_contract.evidence import Evidence, Latency, RevisionEvidence
from lorafleet_operator.decide.evidence import Counts, RowKey, Tally

BOUNDS = [0.1, 0.2, 0.4]
NEW = "bbbbbbbbbbbb"
KEY = RowKey("team", "base", "french", NEW)


def row(
    requests: int,
    *,
    began: int = 1,
    buckets: tuple[int, ...] = (0, 0, 0, 0),
    seconds: float = 0.0,
    of: str = NEW,
    **errors: int,
) -> RevisionEvidence:
    return RevisionEvidence(
        namespace="team",
        base="base",
        adapter="french",
        revision=of,
        began=began,
        num_requests=requests,
        errors=errors,
        first_byte=Latency(sum_seconds=seconds, buckets=list(buckets)),
        whole=Latency(sum_seconds=1.0, buckets=list(buckets)),
    )


def told(*rows: RevisionEvidence, boot: str = "a") -> Evidence:
    return Evidence(boot_id=boot, sequence=1, bounds_seconds=BOUNDS, revisions=list(rows))


def following(*keys: RowKey) -> Tally:
    made = Tally()
    made.follow(set(keys) or {KEY})
    return made


def test_the_first_reading_is_where_counting_begins() -> None:
    tally = following()
    tally.take("g0", told(row(1000, server_error=500)), is_whole=False)
    assert tally.total(KEY) == Counts()
    tally.take("g0", told(row(1010, server_error=501)), is_whole=False)
    assert (tally.total(KEY).requests, tally.total(KEY).faults) == (10, 1)


def test_a_row_that_begins_after_the_first_reading_counts_from_zero() -> None:
    tally = following()
    tally.take("g0", told(), is_whole=False)
    tally.take("g0", told(row(7)), is_whole=False)
    tally.take("g0", told(), is_whole=False)
    tally.take("g0", told(row(9)), is_whole=False)
    assert tally.total(KEY).requests == 9


def test_gateways_are_added_up() -> None:
    tally = following()
    for gateway in ("g0", "g1"):
        tally.take(gateway, told(), is_whole=False)
        tally.take(gateway, told(row(5)), is_whole=False)
    assert tally.total(KEY).requests == 10
    assert tally.total(RowKey("team", "base", "french", "other")) == Counts()


def test_a_gateway_that_restarts_counts_from_zero_and_is_told_of() -> None:
    tally = following()
    tally.take("g0", told(), is_whole=False)
    tally.take("g0", told(row(5)), is_whole=False)
    assert tally.num_restarts == 0
    tally.take("g0", told(row(2), boot="b"), is_whole=False)
    assert (tally.total(KEY).requests, tally.num_restarts) == (7, 1)
    tally.take("g0", told(row(3), boot="b"), is_whole=False)
    assert (tally.total(KEY).requests, tally.num_restarts) == (8, 1)
    tally.take("g0", told(boot="c"), is_whole=False)
    assert tally.num_restarts == 2


def test_rows_that_nobody_follows_hide_none_after_them() -> None:
    tally = following()
    tally.take("g0", told(), is_whole=False)
    tally.take("g0", told(row(9, of="c" * 12), row(5)), is_whole=False)
    assert tally.total(KEY).requests == 5


def test_a_gateway_without_latencies_counts_all_the_same() -> None:
    counts = Counts.of(row(3, buckets=()), BOUNDS)
    assert (counts.requests, counts.num_timed, counts.p95_seconds) == (3, 0, None)


def test_a_row_that_made_room_and_came_back_counts_from_zero() -> None:
    tally = following()
    tally.take("g0", told(row(50)), is_whole=False)
    tally.take("g0", told(row(60)), is_whole=False)
    tally.take("g0", told(row(4, began=9)), is_whole=False)
    assert tally.total(KEY).requests == 14


def test_what_a_gateway_said_counts_when_it_is_gone() -> None:
    tally = following()
    tally.take("g0", told(), is_whole=False)
    tally.take("g0", told(row(5)), is_whole=False)
    tally.forget("g0")
    tally.forget("g1")
    assert tally.total(KEY).requests == 5
    tally.take("g0", told(row(500)), is_whole=False)
    assert tally.total(KEY).requests == 5, "the first reading once more"


def test_nothing_is_kept_of_revisions_that_nobody_follows() -> None:
    """Hundreds of revisions are judged one after the other while one is judged all the time, among thousands that gateways tell of."""
    tally = following()
    for number in range(200):
        judged = RowKey("team", "base", "french", f"{number:012x}")
        tally.follow({KEY, judged})
        for gateway in ("g0", "g1"):
            others = [row(5, of=f"{number + more:012x}") for more in range(1, 20)]
            is_whole = tally.needs_whole(gateway)
            assert is_whole
            tally.take(gateway, told(row(number), *others), is_whole=is_whole)
            assert not tally.needs_whole(gateway)
            tally.take(gateway, told(row(number + 1), row(7, of=judged.revision)), is_whole=False)
        assert tally.total(judged).requests == 14
        assert tally.num_kept <= 6
    assert tally.total(KEY).requests == 2 + 199 * 2, "of the first reading only what came after"
    tally.follow(frozenset())
    assert tally.num_kept == 0


def test_one_that_is_followed_later_counts_from_the_next_whole_reading() -> None:
    """An answer with what is new says of a row only what it has come to: how much of that came before is not known."""
    later = RowKey("team", "base", "french", "cccccccccccc")
    tally = following()
    tally.take("g0", told(row(3), row(100, of=later.revision)), is_whole=True)
    tally.follow({KEY, later})
    tally.take("g0", told(row(4), row(101, of=later.revision)), is_whole=False)
    assert (tally.total(KEY).requests, tally.total(later).requests) == (1, 0)
    assert tally.needs_whole("g0")
    tally.take("g0", told(row(6), row(102, of=later.revision)), is_whole=True)
    assert (tally.total(KEY).requests, tally.total(later).requests) == (3, 0), "and loses nothing of the other"
    tally.take("g0", told(row(105, of=later.revision)), is_whole=False)
    assert tally.total(later).requests == 3


def test_a_gateway_that_restarts_before_it_was_read_whole_is_read_whole_by_that() -> None:
    later = RowKey("team", "base", "french", "cccccccccccc")
    tally = following()
    tally.take("g0", told(), is_whole=True)
    tally.follow({KEY, later})
    tally.take("g0", told(row(2), row(8, of=later.revision), boot="b"), is_whole=False)
    assert not tally.needs_whole("g0")
    tally.take("g0", told(row(9, of=later.revision), boot="b"), is_whole=False)
    assert (tally.total(KEY).requests, tally.total(later).requests, tally.num_restarts) == (2, 1, 1)


def test_one_that_is_followed_again_begins_anew() -> None:
    tally = following()
    tally.take("g0", told(), is_whole=True)
    tally.take("g0", told(row(5)), is_whole=False)
    tally.follow(frozenset())
    tally.take("g0", told(row(50)), is_whole=False)
    tally.follow({KEY})
    assert tally.total(KEY) == Counts()
    tally.take("g0", told(row(60)), is_whole=True)
    tally.take("g0", told(row(61)), is_whole=False)
    assert tally.total(KEY).requests == 1


KEYS = [RowKey("team", "base", "french", f"{number:012x}") for number in range(3)]
GATEWAYS = ["g0", "g1"]
DEEDS = st.one_of(
    st.tuples(st.just("count"), st.sampled_from(GATEWAYS), st.sampled_from(KEYS), st.integers(1, 9)),
    st.tuples(st.just("ask"), st.sampled_from(GATEWAYS)),
    st.tuples(st.just("restart"), st.sampled_from(GATEWAYS)),
    st.tuples(st.just("forget"), st.sampled_from(GATEWAYS)),
    st.tuples(st.just("follow"), st.sets(st.sampled_from(KEYS))),
)


class Polled:
    """Gateways that answer a long poll as real ones do, and what each answer was."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._counters: dict[str, Counter[RowKey]] = {gateway: Counter() for gateway in GATEWAYS}
        self._changed: dict[str, set[RowKey]] = {gateway: set() for gateway in GATEWAYS}
        self._boots: dict[str, int] = dict.fromkeys(GATEWAYS, 0)
        self._asked_of: dict[str, int | None] = dict.fromkeys(GATEWAYS)
        """The boot that answered last."""

    def count(self, gateway: str, key: RowKey, number: int) -> None:
        self._counters[gateway][key] += number
        self._changed[gateway].add(key)

    def restart(self, gateway: str) -> None:
        self._boots[gateway] += 1
        self._counters[gateway].clear()
        self._changed[gateway].clear()

    def forget(self, gateway: str) -> None:
        self.tally.forget(gateway)
        self._asked_of[gateway] = None

    def ask(self, gateway: str) -> bool:
        """Return whether all rows came."""
        wants_whole = self.tally.needs_whole(gateway)
        is_whole = wants_whole or self._asked_of[gateway] != self._boots[gateway]
        keys = self._counters[gateway].keys() if is_whole else self._changed[gateway]
        rows = [row(self._counters[gateway][key], of=key.revision) for key in sorted(keys, key=KEYS.index)]
        self.tally.take(gateway, told(*rows, boot=str(self._boots[gateway])), is_whole=wants_whole)
        self._changed[gateway].clear()
        self._asked_of[gateway] = self._boots[gateway]
        return is_whole


@given(st.lists(DEEDS, max_size=40))
def test_what_was_counted_between_a_whole_answer_and_the_next_one_is_in_the_sum(deeds: list[tuple[Any, ...]]) -> None:
    """And nothing else is, in whatever order revisions are followed, and gateways are asked, restart and go."""
    it = Polled()
    followed_at: dict[RowKey, int] = {}
    past: list[tuple[int, str, str]] = []
    """When, what, and of which gateway: whole, part, restart, forget."""
    counted: list[tuple[int, str, RowKey, int]] = []
    for now, (deed, *what) in enumerate(deeds):
        match deed:
            case "count":
                it.count(*what)
                counted.append((now, *what))
            case "follow":
                it.tally.follow(what[0])
                followed_at = {key: followed_at.get(key, now) for key in what[0]}
            case "ask":
                past.append((now, "whole" if it.ask(what[0]) else "part", what[0]))
            case _:
                getattr(it, deed)(*what)
                past.append((now, deed, what[0]))

    def is_in(when: int, gateway: str, key: RowKey) -> bool:
        before = [kind for at, kind, of in past if of == gateway and followed_at[key] <= at < when]
        later = [kind for at, kind, of in past if of == gateway and at > when]
        has_begun = (
            "whole" in before[len(before) - 1 - before[::-1].index("forget") :]
            if "forget" in before
            else "whole" in before
        )
        return has_begun and bool(later) and later[0] in ("whole", "part")

    for key in KEYS:
        wanted = sum(
            n for when, gateway, of, n in counted if of == key and key in followed_at and is_in(when, gateway, key)
        )
        assert it.tally.total(key).requests == wanted
    assert it.tally.num_kept <= len(followed_at) * (1 + len(GATEWAYS))


def test_what_is_the_clients_fault_is_no_request_of_the_revision() -> None:
    counted = Counts.of(
        row(100, client_error=1, overloaded=2, client_left=4, server_error=8, adapter_failed=1, pod_lost=16,
            stream_broken=3, unavailable=5, newer_class=2),
        BOUNDS,
    )  # fmt: skip
    assert (counted.requests, counted.faults, counted.lost) == (93, 11, 24)


def timed(*buckets: int, seconds: float = 0.0) -> Counts:
    return Counts.of(row(sum(buckets), buckets=buckets, seconds=seconds), BOUNDS)


@pytest.mark.parametrize(
    ("buckets", "p95"),
    [
        ((0, 0, 0, 0), None),
        ((100, 0, 0, 0), 0.095),
        ((90, 10, 0, 0), 0.15),
        ((0, 95, 5, 0), 0.2),
        ((0, 0, 0, 9), 0.4 + 0.0005 * math.log(20)),
        ((50, 0, 50, 0), 0.38),
    ],
)
def test_percentile_is_on_a_line_within_its_bucket(buckets: tuple[int, ...], p95: float | None) -> None:
    assert timed(*buckets).p95_seconds == (pytest.approx(p95) if p95 is not None else None)


@pytest.mark.parametrize(
    ("counts", "excess"),
    [
        (timed(10, 0, 0, 0, seconds=1.0), (0, 0.0, 0.0)),
        (timed(0, 0, 0, 4, seconds=4.0), (4, 0.6, 0.6)),
        (timed(0, 0, 0, 4), (4, 0.0, 0.001)),  # a gateway whose sum says nothing
        (timed(0, 10, 0, 4, seconds=4.0), (4, 0.1, 0.35)),  # ten between 1 and 2 s together
        (timed(4, 2, 2, 2, seconds=3.0), (2, 0.3, 0.8)),
        (timed(0, 10, 0, 4, seconds=2.8), (4, 0.0, 0.05)),
        (timed(0, 0, 0, 4, seconds=4.0) + timed(0, 10, 0, 0, seconds=1.5), (4, 0.475, 0.725)),
        (timed(0, 10, 0, 4, seconds=5.5) - timed(0, 10, 0, 0, seconds=1.5), (4, 0.6, 0.6)),
    ],
)
def test_the_sum_of_all_says_how_far_those_beyond_the_last_bound_are(
    counts: Counts, excess: tuple[int, float, float]
) -> None:
    """In the mean, between what the buckets of the others allow."""
    found = counts.excess
    assert (found.number, found.least_seconds, found.most_seconds) == pytest.approx(excess)
    assert found.middle_seconds == pytest.approx((excess[1] + excess[2]) / 2)


def test_a_percentile_beyond_the_last_bound_is_that_of_waiting_times() -> None:
    """Half the answers are one second beyond it in the mean: of those one in ten is slower than 0.4 s + ln 10."""
    counts = timed(0, 50, 0, 50, seconds=50 * 0.15 + 50 * 1.4)
    assert counts.p95_seconds == pytest.approx(0.4 + math.log(10))
    assert counts.percentile_seconds(0.0) == 0.4
    assert counts.percentile_seconds(2.0) == pytest.approx(0.4 + 2 * math.log(10))
    assert counts.num_slower(0.4, 1.0) == counts.num_slower(0.4, 0.0) == 50
    assert counts.num_slower(1.4, 1.0) == pytest.approx(50 / math.e)
    assert counts.num_slower(1.4, 0.0) == 0
    assert timed(0, 95, 0, 5, seconds=90.0).p95_seconds == 0.2  # the one in twenty is beyond, and the others are not


@pytest.mark.parametrize(
    ("seconds", "slower"), [(0.0, 20), (0.05, 15), (0.1, 10), (0.3, 8), (0.4, 6), (0.5, 6 * math.exp(-0.1)), (99.0, 0)]
)
def test_answers_slower_than_a_time(seconds: float, slower: float) -> None:
    assert timed(10, 0, 4, 6).num_slower(seconds, 1.0) == pytest.approx(slower)
    assert timed(0, 0, 0, 0).num_slower(seconds, 1.0) == 0


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0.01, 1000))
def test_one_in_twenty_is_slower_than_the_percentile(buckets: list[int], excess: float) -> None:
    counted = timed(*buckets)
    p95 = counted.percentile_seconds(excess)
    if p95 is not None:
        assert counted.num_slower(p95, excess) == pytest.approx(sum(buckets) / 20)


def test_buckets_of_gateways_with_other_bounds_are_added_by_bound() -> None:
    both = timed(1, 2, 3, 4) + Counts(first_byte={0.2: 10, 0.8: 20, math.inf: 1})
    assert both.first_byte == {0.1: 1, 0.2: 12, 0.4: 3, 0.8: 20, math.inf: 5}
    assert (both - timed(1, 2, 3, 4)).num_timed == 31
