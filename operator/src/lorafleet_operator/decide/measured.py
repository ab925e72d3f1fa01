"""What a Prometheus says of a revision: which queries it is asked, and what their answers mean. Pure.

A query that fails, or has no one finite number for an answer, makes a window inconclusive; it is never good.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lorafleet_contract.rollout import Analysis, PrometheusQuery
from lorafleet_operator.decide.evidence import RowKey

_VARIABLE: Final = re.compile(r"\$\(([a-z]+)\)")
MAX_PROBLEM: Final = 200
"""Characters of what is said of a query that has no value."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer to a query."""

    value: float | None
    problem: str = ""
    """Why there is no value."""


def queries_of(analysis: Analysis, *, canary: RowKey, stable: RowKey, seconds: int) -> dict[str, str]:
    """Return the queries of an analysis by name, with what their variables mean; `seconds` is how long the window is now."""
    values = {
        "revision": canary.revision,
        "stable": stable.revision,
        "adapter": canary.adapter,
        "base": canary.base,
        "namespace": canary.namespace,
        "window": f"{seconds}s",
    }
    # what names no variable stays, and Prometheus says what is wrong with it
    return {
        query.name: _VARIABLE.sub(lambda found: values.get(found[1], found[0]), query.query)
        for query in analysis.prometheus
    }


def reading_of(document: Any) -> Reading:
    """Read what Prometheus answers to an instant query: a scalar, or a vector of one sample."""
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(document, dict) or document.get("status") != "success" or not isinstance(data, dict):
        error = document.get("error") if isinstance(document, dict) else None
        return Reading(
            None, f"Prometheus refuses it: {error}"[:MAX_PROBLEM] if error else "its answer is no Prometheus's"
        )
    kind, result = data.get("resultType"), data.get("result")
    if kind == "vector" and isinstance(result, list):
        if len(result) != 1:
            return Reading(None, "no series matches" if not result else f"{len(result)} series, and one is needed")
        result = result[0].get("value") if isinstance(result[0], dict) else []
    elif kind != "scalar":
        return Reading(None, f"a number is needed, not a {str(kind)[:20]}")
    try:
        _, text = result if isinstance(result, list) else []
        value = float(text) if isinstance(text, str) else None
    except ValueError:
        value = None
    if value is None:
        return Reading(None, "its answer is no Prometheus's")
    return Reading(value) if math.isfinite(value) else Reading(None, f"the answer is {value}")


def beyond(analysis: Analysis, readings: Mapping[str, Reading]) -> str | None:
    """Return which answer is outside its range, in words; None where none is."""
    for query in analysis.prometheus:
        reading = readings.get(query.name)
        if reading is None or reading.value is None:
            continue
        limits = query.threshold_range
        if limits.min is not None and reading.value < limits.min:
            return f"{_said(query, reading.value)}, and at least {limits.min:g} is needed"
        if limits.max is not None and reading.value > limits.max:
            return f"{_said(query, reading.value)}, and at most {limits.max:g} is allowed"
    return None


def unanswered(analysis: Analysis, readings: Mapping[str, Reading]) -> str | None:
    """Return which query has no number for an answer, and why; None where all have."""
    for query in analysis.prometheus:
        reading = readings.get(query.name, Reading(None, "it was not asked"))
        if reading.value is None:
            return f"{query.name} is not known: {reading.problem}"
    return None


def words(analysis: Analysis, readings: Mapping[str, Reading]) -> str:
    """Return all answers, for the message of a window that is good."""
    known = ((query, readings[query.name].value) for query in analysis.prometheus if query.name in readings)
    return "".join(f", {_said(query, value)}" for query, value in known if value is not None)


def _said(query: PrometheusQuery, value: float) -> str:
    return f"{query.name} is {value:g}"
