"""When tokens came, and what that means in numbers that people compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(slots=True)
class Timeline:
    """One request: times in seconds of one clock."""

    sent: float
    events: list[float] = field(default_factory=list)
    """When each piece of text came."""
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """One run of a workload; latencies are None where the system does not stream."""

    tokens_per_second: float
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    gap_p50_ms: float | None = None
    gap_p95_ms: float | None = None
    gap_p99_ms: float | None = None
    gap_max_ms: float | None = None


def figures(timelines: Sequence[Timeline]) -> Figures:
    """Sum up a run: answered tokens by the time from the first request to the last piece."""
    took = max(one.events[-1] for one in timelines) - min(one.sent for one in timelines)
    firsts = [one.events[0] - one.sent for one in timelines]
    between = [gap for one in timelines for gap in gaps(one)]
    return Figures(
        tokens_per_second=sum(one.num_tokens for one in timelines) / took,
        ttft_p50_ms=_ms(firsts, 0.5),
        ttft_p95_ms=_ms(firsts, 0.95),
        gap_p50_ms=_ms(between, 0.5),
        gap_p95_ms=_ms(between, 0.95),
        gap_p99_ms=_ms(between, 0.99),
        gap_max_ms=_ms(between, 1.0),
    )


def gaps(timeline: Timeline) -> list[float]:
    """Return the seconds between neighbouring pieces."""
    return [after - before for before, after in zip(timeline.events, timeline.events[1:], strict=False)]


def middle(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the runs."""
    columns: dict[str, Any] = {}
    for name in Figures.__dataclass_fields__:
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        columns[name] = median(values) if values else None
    return Figures(**columns)


def _ms(seconds: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values does not exceed."""
    if not seconds:
        return None
    return 1e3 * sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]
