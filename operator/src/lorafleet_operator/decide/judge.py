"""Whether a revision does well enough, by what gateways counted within a window. Pure.

Good is said only when every gateway was heard, both revisions had enough requests, and every query has an answer. A
comparison with the stable revision counts only where chance does not explain the difference.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lorafleet_contract.rollout import Analysis, Judgement
from lorafleet_operator.decide.evidence import PERCENTILE, Counts, Hearing
from lorafleet_operator.decide.measured import Reading, beyond, unanswered, words

SIGNIFICANT: Final = 3.0
"""Standard errors that a difference from the stable revision has to exceed."""
NO_READINGS: Final[Mapping[str, Reading]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a window."""

    judgement: Judgement
    message: str
    is_loss: bool = False
    """Bad for nothing but requests that were lost with their pods: one pod that dies does that, whoever killed it."""


def judge(
    analysis: Analysis, canary: Counts, stable: Counts, hearing: Hearing, readings: Mapping[str, Reading] = NO_READINGS
) -> Finding:
    """Return the judgement on a window that is over, and why in words; `readings` answer the queries of the analysis."""
    if canary.requests >= analysis.min_requests:
        if (problem := _problem(analysis, canary, stable)) is not None:
            return problem
        if (outside := beyond(analysis, readings)) is not None:
            return _bad(outside)
    if hearing.num_gateways == 0:
        return _inconclusive(hearing.obstacle or "no gateway is known")
    if hearing.num_silent:
        return _inconclusive(f"{hearing.num_silent} of {hearing.num_gateways} gateways do not answer")
    if canary.requests < analysis.min_requests:
        return _inconclusive(f"{canary.requests} requests of {analysis.min_requests} that are needed")
    if _compares(analysis) and stable.requests < analysis.min_requests:
        needed = f"{stable.requests} requests of {analysis.min_requests} that are needed"
        return _inconclusive(f"the stable revision to compare with has {needed}")
    if (missing := unanswered(analysis, readings)) is not None:
        return _inconclusive(missing)
    message = f"{canary.requests} requests, {canary.faults} errors, {canary.lost} lost with their pods"
    return Finding(Judgement.GOOD, message + words(analysis, readings))


def _inconclusive(message: str) -> Finding:
    return Finding(Judgement.INCONCLUSIVE, message)


def _compares(analysis: Analysis) -> bool:
    over = (analysis.max_error_percent_over_stable, analysis.max_latency_percent_over_stable)
    return any(limit is not None for limit in over)


def _problem(analysis: Analysis, canary: Counts, stable: Counts) -> Finding | None:
    """What is bad, if anything is; what is of the revision itself first."""
    failed = _percent(canary.faults, canary)
    limit, over = analysis.max_error_percent, analysis.max_error_percent_over_stable
    if limit is not None and failed > limit:
        return _bad(f"{failed:.1f} % of {canary.requests} requests failed, and {limit} % may")
    if stable.requests < analysis.min_requests:
        return None
    before = f"{_percent(stable.faults, stable):.1f} % of the stable revision's"
    if over is not None and _exceeds(canary.faults, canary.requests, stable.faults, stable.requests, over / 100):
        return _bad(f"{failed:.1f} % of {canary.requests} requests failed, {before}")
    if (slowness := _slowness(analysis, canary, stable)) is not None:
        return slowness
    allowed = over if over is not None else limit
    if allowed is not None and _exceeds(canary.lost, canary.requests, stable.lost, stable.requests, allowed / 100):
        lost, then = _percent(canary.lost, canary), _percent(stable.lost, stable)
        words = f"{lost:.1f} % of {canary.requests} requests were lost with their pods"
        return _bad(f"{words}, {then:.1f} % of the stable revision's", is_loss=True)
    return None


def _bad(message: str, *, is_loss: bool = False) -> Finding:
    return Finding(Judgement.BAD, message, is_loss)


def _percent(number: int, counts: Counts) -> float:
    return 100 * number / counts.requests


def _exceeds(hits: float, total: int, hits_before: float, total_before: int, allowed: float) -> bool:
    """Whether one part is larger than another by more than is allowed, and by more than chance explains."""
    excess = hits / total - hits_before / total_before
    common = (hits + hits_before) / (total + total_before)
    error = math.sqrt(common * (1 - common) * (1 / total + 1 / total_before))
    return excess > allowed and excess > SIGNIFICANT * error


def _error_of_mean(number: int) -> float:
    """Return by which part of it the mean of so many waiting times may be off by chance; of two means that differ, each by its part."""
    return min(1.0, SIGNIFICANT / math.sqrt(2 * number)) if number else 0.0


def _slowness(analysis: Analysis, canary: Counts, stable: Counts) -> Finding | None:
    """Whether more answers than the one in twenty of the stable revision come later than its 95th percentile allows.

    Of answers beyond the last bound of the buckets only the mean is known, and that not exactly: the canary's is taken as short, and
    the stable revision's as long, as the buckets and chance allow.
    """
    limit, slow, before = analysis.max_latency_percent_over_stable, canary.p95_seconds, stable.p95_seconds
    if limit is None or slow is None or before is None:
        return None
    shortest, longest = canary.excess, stable.excess
    highest = stable.percentile_seconds(longest.most_seconds * (1 + _error_of_mean(longest.number)))
    assert highest is not None, "it has a percentile"
    late = canary.num_slower(
        highest * (1 + limit / 100), shortest.least_seconds * (1 - _error_of_mean(shortest.number))
    )
    if not _exceeds(late, canary.num_timed, (1 - PERCENTILE) * stable.num_timed, stable.num_timed, 0.0):
        return None
    return _bad(
        f"95 % of first bytes came within {1000 * slow:.0f} ms, {1000 * before:.0f} ms of the stable revision's"
    )
