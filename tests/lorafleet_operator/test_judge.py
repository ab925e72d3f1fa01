"""Whether a revision does well enough: a table, and what chance alone may do."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lorafleet_contract.rollout import Analysis, Judgement
from lorafleet_operator.decide.evidence import Counts, Hearing, Tally
from lorafleet_operator.decide.judge import judge

ANALYSIS = Analysis(
    min_requests=50, max_error_percent=5, max_error_percent_over_stable=1, max_latency_percent_over_stable=20
)
GOOD, BAD, UNCLEAR = Judgement.GOOD, Judgement.BAD, Judgement.INCONCLUSIVE
FAST = {0.1: 900, 0.2: 100, 0.4: 0, math.inf: 0}
SLOW = {0.1: 0, 0.2: 100, 0.4: 900, math.inf: 0}


def counts(requests: int = 1000, faults: int = 0, lost: int = 0, first_byte: dict[float, int] = FAST) -> Counts:
    return Counts(requests, faults, lost, first_byte)


WELL = counts()
TABLE: dict[str, tuple[dict[str, Any], Judgement, str]] = {
    "all is well": ({}, GOOD, "1000 requests, 0 errors, 0 lost with their pods"),
    "as many errors as are allowed": ({"canary": counts(faults=10)}, GOOD, "10 errors"),
    "more errors than are allowed": ({"canary": counts(faults=51)}, BAD, "5.1 % of 1000 requests failed, and 5 % may"),
    "more errors than of the stable one": ({"canary": counts(faults=30)}, BAD, "3.0 % of 1000 requests failed, 0.0 %"),
    "the stable one fails too": ({"canary": counts(faults=30), "stable": counts(faults=25)}, GOOD, "30 errors"),
    "both fail": ({"canary": counts(faults=500), "stable": counts(faults=500)}, BAD, "and 5 % may"),
    "too few of the new one": ({"canary": counts(49)}, UNCLEAR, "49 requests of 50"),
    "too few, and all fail": ({"canary": counts(49, faults=49)}, UNCLEAR, "49 requests of 50"),
    "too few of the stable one": ({"stable": counts(49)}, UNCLEAR, "the stable revision to compare with has 49"),
    "it fails, and the stable one has too few": ({"canary": counts(faults=60), "stable": counts(1)}, BAD, "6.0 %"),
    "just enough, and all fail": ({"canary": counts(50, faults=50)}, BAD, "100.0 % of 50 requests failed"),
    "lost, with just enough of the stable one": ({"canary": counts(lost=500), "stable": counts(50)}, BAD, "50.0 %"),
    "lost, as many more than of the stable one as are no more errors": ({"canary": counts(lost=30)}, BAD, "3.0 %"),
    "a gateway is silent": ({"num_silent": 1}, UNCLEAR, "1 of 2 gateways do not answer"),
    "all are silent": ({"num_silent": 2, "canary": counts(0), "stable": counts(0)}, UNCLEAR, "2 of 2 gateways"),
    "there is none": ({"num_gateways": 0}, UNCLEAR, "no gateway is known"),
    "nobody may be asked": ({"num_gateways": 0, "obstacle": "pods cannot be listed"}, UNCLEAR, "pods cannot be listed"),
    "a gateway is silent, and it is bad": ({"num_silent": 1, "canary": counts(faults=60)}, BAD, "6.0 %"),
    "it is slow": ({"canary": counts(first_byte=SLOW)}, BAD, "389 ms, 150 ms of the stable"),
    "both are slow": ({"canary": counts(first_byte=SLOW), "stable": counts(first_byte=SLOW)}, GOOD, "0 errors"),
    "it is faster": ({"stable": counts(first_byte=SLOW)}, GOOD, "0 errors"),
    "a little slower": ({"canary": counts(first_byte={0.1: 860, 0.2: 140})}, GOOD, "0 errors"),
    "no answer ended well": ({"canary": counts(first_byte={})}, GOOD, "0 errors"),
    "many are lost": ({"canary": counts(lost=100)}, BAD, "10.0 % of 1000 requests were lost with their pods, 0.0 %"),
    "of both as many are lost": ({"canary": counts(lost=100), "stable": counts(lost=100)}, GOOD, "100 lost"),
    "a pod is killed": ({"canary": counts(60, lost=4), "stable": counts(lost=35)}, GOOD, "4 lost with their pods"),
}


@pytest.mark.parametrize(("given", "judgement", "words"), TABLE.values(), ids=TABLE.keys())
def test_judgement(given: dict[str, Any], judgement: Judgement, words: str) -> None:
    situation = {"canary": WELL, "stable": WELL, "num_gateways": 2, "num_silent": 0, **given}
    canary, stable = situation.pop("canary"), situation.pop("stable")
    found = judge(ANALYSIS, canary, stable, Hearing(Tally(), **situation))
    assert found.judgement is judgement
    assert words in found.message
    assert found.is_loss == ("lost with their pods, " in found.message)


def judged(analysis: Analysis, canary: Counts, stable: Counts = WELL) -> Judgement:
    return judge(analysis, canary, stable, Hearing(Tally(), 1, 0)).judgement


def test_without_limits_enough_requests_are_enough() -> None:
    assert judged(Analysis(), counts(50, faults=50, lost=0, first_byte=SLOW), counts(0)) is GOOD


def test_only_limits_that_are_given_count() -> None:
    bad = counts(faults=100, first_byte=SLOW)
    assert judged(Analysis(max_error_percent=10), bad) is GOOD
    assert judged(Analysis(max_error_percent=9), bad) is BAD
    assert judged(Analysis(max_latency_percent_over_stable=500), bad) is GOOD
    assert judged(Analysis(max_latency_percent_over_stable=100), bad) is BAD
    assert judged(Analysis(max_error_percent=2), counts(lost=100)) is BAD
    assert judged(Analysis(max_latency_percent_over_stable=9), counts(lost=100)) is GOOD


def test_a_silent_gateway_is_never_good() -> None:
    for canary in (WELL, counts(faults=3), counts(10**6)):
        for silent in (1, 2, 3):
            found = judge(ANALYSIS, canary, WELL, Hearing(Tally(), 3, silent))
            assert found.judgement is UNCLEAR


def test_chance_alone_is_seldom_bad() -> None:
    """Two revisions that are the same: of 400 pairs of windows of the smallest size at most three are said to differ."""
    draw = random.Random(7)
    analysis = replace_limits(max_error_percent_over_stable=0, max_latency_percent_over_stable=0)

    def sample(number: int) -> Counts:
        buckets: dict[float, int] = {0.1: 0, 0.2: 0, 0.4: 0, math.inf: 0}
        for _ in range(number):
            buckets[draw.choices(list(buckets), (60, 30, 8, 2))[0]] += 1
        return counts(number, sum(draw.random() < 0.05 for _ in range(number)), 0, buckets)

    bad = sum(judged(analysis, sample(50), sample(500)) is BAD for _ in range(400))
    assert bad <= 3 * 4, bad


def test_a_difference_that_is_there_is_found_with_enough_requests() -> None:
    analysis = replace_limits(max_error_percent_over_stable=1)
    assert judged(analysis, counts(50, faults=2), counts(faults=10)) is GOOD
    assert judged(analysis, counts(2000, faults=80), counts(10000, faults=100)) is BAD


@pytest.mark.parametrize(
    ("requests", "most", "before"),
    [
        (100, 66, (400, 200)),
        (400, 234, (100, 42)),
        (72, 45, (72, 27)),  # to the last bit three standard errors
    ],
)
def test_a_difference_counts_from_three_standard_errors_on(requests: int, most: int, before: tuple[int, int]) -> None:
    analysis, stable = replace_limits(max_error_percent_over_stable=0), counts(*before)
    assert judged(analysis, counts(requests, faults=most), stable) is GOOD
    assert judged(analysis, counts(requests, faults=most + 1), stable) is BAD


def test_limits_are_parts_of_a_hundred() -> None:
    """With so many requests chance explains next to nothing."""
    analysis, many = replace_limits(max_error_percent_over_stable=1), 10**6
    assert judged(analysis, counts(many, lost=9_950), counts(many)) is GOOD
    assert judged(analysis, counts(many, lost=10_050), counts(many)) is BAD
    # 95 % of the stable one's come within 150 ms; of the new one's 9.9 % lie between 200 and 400 ms, evenly
    stable = counts(many * 100, first_byte={0.1: 90 * many, 0.2: 10 * many})
    canary = counts(many * 100, first_byte={0.1: 0, 0.2: 90_099_000, 0.4: 9_901_000})
    assert canary.p95_seconds == pytest.approx(0.299, abs=1e-5)
    assert judged(replace_limits(max_latency_percent_over_stable=100), canary, stable) is GOOD
    assert judged(replace_limits(max_latency_percent_over_stable=98), canary, stable) is BAD


def beyond(number: int, mean_seconds: float, *, of: int = 1000) -> Counts:
    """Answers of which so many took longer than the last bound, and so long in the mean; all others took next to no time."""
    first_byte = {0.001: of - number, 160.0: 0, math.inf: number}
    return Counts(of, 0, 0, first_byte, sum_seconds=number * mean_seconds)


def coarse(fast: int, slow: int, slowest: int, seconds: float = 0.0) -> Counts:
    """Answers within 40 s, within 80 s and beyond, and the sum of all."""
    return Counts(fast + slow + slowest, 0, 0, {40.0: fast, 80.0: slow, math.inf: slowest}, seconds)


ALL = 1000
BEYOND: dict[str, tuple[int, Counts, Counts, Judgement]] = {
    "ten times slower": (100, beyond(ALL, 2000), beyond(ALL, 200), BAD),
    "ten times slower, and that is allowed": (2000, beyond(ALL, 2000), beyond(ALL, 200), GOOD),
    "as slow": (0, beyond(ALL, 200), beyond(ALL, 200), GOOD),
    "faster": (0, beyond(ALL, 200), beyond(ALL, 2000), GOOD),
    "a little slower, within chance": (0, beyond(50, 230, of=50), beyond(500, 200, of=500), GOOD),
    "ten times slower, of few": (20, beyond(50, 2000, of=50), beyond(500, 200, of=500), BAD),
    "more of them": (0, beyond(500, 200), beyond(100, 200), BAD),
    "fewer of them": (0, beyond(100, 200), beyond(500, 200), GOOD),
    "only the canary": (20, beyond(100, 200), beyond(0, 0), BAD),
    "only the stable one": (0, beyond(0, 0), beyond(100, 200), GOOD),
    "as few as one in twenty": (20, beyond(50, 2000), beyond(0, 0), GOOD),
    "as far as the limit takes it": (500, coarse(0, 2, ALL, 200.0 * ALL), coarse(0, ALL, 0), GOOD),
    "beyond the limit": (500, coarse(0, 2, ALL, 2000.0 * ALL), coarse(0, ALL, 0), BAD),
    "exactly at the last bound": (0, coarse(0, 0, ALL), coarse(0, 950, 50), BAD),
    "nothing is known of how far": (0, beyond(ALL, 0), beyond(ALL, 0), GOOD),
    "as far as others' buckets explain": (0, coarse(0, 900, 100, 89_000.0), coarse(0, 900, 100, 53_000.0), GOOD),
    "as far as the few of the stable one explain": (0, beyond(200, 230.6), beyond(20, 200, of=200), GOOD),
    "farther than they explain": (0, beyond(200, 290), beyond(20, 200, of=200), BAD),
    "as far as its own few explain": (0, beyond(50, 230, of=50), beyond(5000, 200, of=5000), GOOD),
    "farther than its own few explain": (0, beyond(50, 320, of=50), beyond(5000, 200, of=5000), BAD),
    "farther than others' buckets explain": (0, coarse(0, 900, 100, 140_000.0), coarse(0, 900, 100, 53_000.0), BAD),
}


@pytest.mark.parametrize(("limit", "canary", "stable", "judgement"), BEYOND.values(), ids=BEYOND.keys())
def test_what_comes_after_the_last_bound_is_told_by_its_mean(
    limit: int, canary: Counts, stable: Counts, judgement: Judgement
) -> None:
    assert judged(Analysis(min_requests=20, max_latency_percent_over_stable=limit), canary, stable) is judgement


@pytest.mark.parametrize(
    "draw_one", [lambda draw: draw.expovariate(1 / 100), lambda draw: draw.uniform(0, 400), lambda draw: 30.0]
)
def test_chance_alone_is_seldom_bad_beyond_the_last_bound(draw_one: Callable[[random.Random], float]) -> None:
    draw = random.Random(11)

    def sample(number: int) -> Counts:
        share = sum(draw.random() < 0.3 for _ in range(number))
        return beyond(share, 160 + sum(draw_one(draw) for _ in range(share)) / share, of=number)

    bad = sum(
        judged(replace_limits(max_latency_percent_over_stable=0), sample(50), sample(500)) is BAD for _ in range(400)
    )
    assert bad <= 4, bad


def replace_limits(**limits: int) -> Analysis:
    return Analysis(min_requests=50, **limits)


def test_an_analysis_that_does_not_compare_needs_no_stable_requests() -> None:
    assert judged(Analysis(max_error_percent=2), WELL, counts(0)) is GOOD
    assert judged(ANALYSIS.model_copy(update={"min_requests": 1}), replace(WELL, requests=1), counts(1)) is GOOD
