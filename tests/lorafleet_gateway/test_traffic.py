"""Who answers while revisions share an adapter's traffic: in proportion, always alike, and moved one way only."""

import math
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_gateway.traffic import Share, Traffic, choose, named_revisions, read_traffic

STABLE, CANARY, THIRD = "a" * 12, "b" * 12, "c" * 12
KEYS = [f"session {number}" for number in range(20_000)]
SIGMAS = 4.5
"""One in 150,000 numbers that are drawn by chance is further away; the keys are fixed, so what passes passes always."""
weights = st.integers(0, 100)
keys = st.text(max_size=40)


def split(canary: int, name: str = CANARY) -> Traffic:
    return (Share(STABLE, 100 - canary), Share(name, canary))


def entries(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"revision": revision, "weight": weight} for revision, weight in pairs]


def within_bounds(number: int, total: int, share: float) -> bool:
    return abs(number - total * share) <= SIGMAS * math.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("canary", [1, 5, 25, 50, 90, 99])
def test_each_gets_its_share(canary: int) -> None:
    counts = Counter(choose(split(canary), key) for key in KEYS)
    assert within_bounds(counts[CANARY], len(KEYS), canary / 100), counts
    assert counts[STABLE] + counts[CANARY] == len(KEYS)


def test_each_of_three_gets_its_share() -> None:
    traffic = (Share(STABLE, 70), Share(CANARY, 20), Share(THIRD, 10))
    counts = Counter(choose(traffic, key) for key in KEYS)
    assert all(within_bounds(counts[share.revision], len(KEYS), share.weight / 100) for share in traffic), counts


def test_who_meets_one_canary_meets_the_next_no_more_often_than_others() -> None:
    first = [key for key in KEYS if choose(split(20), key) == CANARY]
    again = sum(choose(split(20, THIRD), key) == THIRD for key in first)
    assert within_bounds(again, len(first), 0.2)


@given(keys, weights, weights)
def test_a_growing_canary_takes_requests_and_gives_none_back(key: str, one: int, other: int) -> None:
    smaller, larger = sorted((one, other))
    if choose(split(smaller), key) == CANARY:
        assert choose(split(larger), key) == CANARY


@given(keys, st.permutations([Share(STABLE, 60), Share(CANARY, 30), Share(THIRD, 10)]))
def test_the_order_does_not_matter(key: str, shares: list[Share]) -> None:
    assert choose(tuple(shares), key) == choose((Share(STABLE, 60), Share(CANARY, 30), Share(THIRD, 10)), key)


def test_the_same_key_means_the_same_in_every_process() -> None:
    """Gateways that run side by side, and those of the next version, agree."""
    chosen = [choose(split(50), f"session {number}") for number in range(12)]
    assert "".join("c" if revision == CANARY else "s" for revision in chosen) == "csssscsscccs"


@pytest.mark.parametrize("key", ["", "\udcff", "é" * 10_000, "\0"])
def test_any_key_does(key: str) -> None:
    assert choose(split(50), key) in (STABLE, CANARY)


def test_at_the_ends_nobody_is_left_out_or_let_in() -> None:
    assert {choose(split(0), key) for key in KEYS[:500]} == {STABLE}
    assert {choose(split(100), key) for key in KEYS[:500]} == {CANARY}
    assert choose((), "any") is None


def test_what_the_operator_writes_is_read() -> None:
    assert read_traffic(entries((STABLE, 95), (CANARY, 5)), stable=STABLE) == split(5)
    assert read_traffic(
        [{**entry, "since": 7} for entry in entries((STABLE, 95), (CANARY, 5))], stable=STABLE
    ) == split(5)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="absent"),
        pytest.param([], id="empty"),
        pytest.param(entries((STABLE, 100)), id="one"),
        pytest.param(entries((STABLE, 95), (CANARY, 6)), id="more than all"),
        pytest.param(entries((STABLE, 90), (CANARY, 5)), id="less than all"),
        pytest.param(entries((STABLE, 105), (CANARY, -5)), id="less than nothing"),
        pytest.param(entries((STABLE, 95), (CANARY, "5%")), id="no number"),
        pytest.param([*entries((STABLE, 95)), {"revision": CANARY}], id="no weight"),
        pytest.param(entries((STABLE, 50), (STABLE, 50)), id="twice the same"),
        pytest.param(entries((STABLE, 95), ("newest", 5)), id="no revision"),
        pytest.param(entries((THIRD, 95), (CANARY, 5)), id="written for another stable one"),
        pytest.param({STABLE: 95, CANARY: 5}, id="no list"),
        pytest.param("half and half", id="words"),
    ],
)
def test_what_cannot_be_meant_leaves_all_to_the_stable_revision(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And the log says what it was, unless it is as always without a rollout."""
    assert read_traffic(value, stable=STABLE) == ()
    if value in (None, [], entries((STABLE, 100))):
        assert not caplog.records
    else:
        (said,) = (record.getMessage() for record in caplog.records)
        assert re.search(r"gets all: (\d+ validation error|\(Share\()", said)
        assert "cannot be read" in said or f"beside stable {STABLE}," in said
    assert named_revisions(value) <= {STABLE, CANARY, THIRD}


def test_revisions_are_named_whatever_their_weights() -> None:
    value = [*entries((STABLE, 95), ("newest", 3)), {"revision": CANARY, "weight": "2%"}, 7, None]
    assert named_revisions(value) == {STABLE, CANARY}
