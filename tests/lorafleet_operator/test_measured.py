"""What a Prometheus says of a revision: a table of answers, and what they make of a window."""

from typing import Any

import pytest

from lorafleet_contract.rollout import Analysis, Judgement
from lorafleet_operator.decide.evidence import Counts, Hearing, RowKey, Tally
from lorafleet_operator.decide.judge import judge
from lorafleet_operator.decide.measured import Reading, queries_of, reading_of

CANARY, STABLE = (RowKey("team", "llama", "support/fr", revision) for revision in ("b" * 12, "a" * 12))


def analysis(*ranges: dict[str, float], **more: Any) -> Analysis:
    queries = [{"name": f"q{number}", "query": "up", "threshold_range": limits} for number, limits in enumerate(ranges)]
    return Analysis.model_validate({"min_requests": 10, "prometheus": queries, **more})


def answer(kind: str, result: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}}


def sample(value: str) -> dict[str, Any]:
    return {"metric": {"pod": "p"}, "value": [1.5, value]}


@pytest.mark.parametrize(
    ("document", "value", "problem"),
    [
        (answer("vector", [sample("0.5")]), 0.5, ""),
        (answer("scalar", [1.5, "-2e3"]), -2000.0, ""),
        (answer("vector", []), None, "no series matches"),
        (answer("vector", [sample("1"), sample("2")]), None, "2 series, and one is needed"),
        (answer("vector", [sample("NaN")]), None, "the answer is nan"),
        (answer("vector", [sample("+Inf")]), None, "the answer is inf"),
        (answer("matrix", [{"values": [[1, "1"]]}]), None, "a number is needed, not a matrix"),
        (answer("string", [1.5, "7"]), None, "a number is needed, not a string"),
        (answer("vector", [{"value": [1.5, "x"]}]), None, "its answer is no Prometheus's"),
        (answer("vector", [{"value": [1.5]}]), None, "its answer is no Prometheus's"),
        (answer("scalar", [1.5, 7]), None, "its answer is no Prometheus's"),
        (answer("scalar", [1.5, 10**400]), None, "its answer is no Prometheus's"),
        (answer("vector", ["x"]), None, "its answer is no Prometheus's"),
        (answer("scalar", "12"), None, "its answer is no Prometheus's"),
        (answer("scalar", None), None, "its answer is no Prometheus's"),
        (answer("vector", None), None, "a number is needed, not a vector"),
        ({"status": "error", "error": "parse error"}, None, "Prometheus refuses it: parse error"),
        ({"status": "success"}, None, "its answer is no Prometheus's"),
        ([], None, "its answer is no Prometheus's"),
    ],
    ids=str,
)
def test_an_answer_is_one_finite_number_or_none(document: Any, value: float | None, problem: str) -> None:
    assert reading_of(document) == Reading(value, problem)


def test_variables_of_a_query_are_what_is_rolled_out() -> None:
    text = 'a{m="$(adapter)",b="$(base)",n="$(namespace)",r="$(revision)",s="$(stable)"}[$(window)] $(other)'
    asked = Analysis.model_validate(
        {"prometheus": [{"name": "q", "query": text, "threshold_range": {"max": 1}}], "min_requests": 1}
    )
    expected = f'a{{m="support/fr",b="llama",n="team",r="{"b" * 12}",s="{"a" * 12}"}}[125s] $(other)'
    assert queries_of(asked, canary=CANARY, stable=STABLE, seconds=125) == {"q": expected}


GOOD, BAD, UNCLEAR = Judgement.GOOD, Judgement.BAD, Judgement.INCONCLUSIVE
BOTH = ({"min": 0.9}, {"max": 2.0})
WORDS = "20 requests, 0 errors, 0 lost with their pods"
JUDGED: dict[str, tuple[dict[str, Any], Judgement, str]] = {
    "both within": ({}, GOOD, f"{WORDS}, q0 is 0.95, q1 is 1"),
    "at the limits": ({"q0": Reading(0.9), "q1": Reading(2.0)}, GOOD, f"{WORDS}, q0 is 0.9, q1 is 2"),
    "hardly below": ({"q0": Reading(0.89999)}, BAD, "q0 is 0.89999, and at least 0.9 is needed"),
    "below": ({"q0": Reading(0.89)}, BAD, "q0 is 0.89, and at least 0.9 is needed"),
    "above": ({"q1": Reading(2.5)}, BAD, "q1 is 2.5, and at most 2 is allowed"),
    "one is not known, the other is bad": ({"q0": Reading(None, "x"), "q1": Reading(3.0)}, BAD, "q1 is 3"),
    "one is not known": ({"q0": Reading(None, "no series matches")}, UNCLEAR, "q0 is not known: no series matches"),
    "not asked": ({"q1": None}, UNCLEAR, "q1 is not known: it was not asked"),
    "too few requests": ({"q0": Reading(0.1), "requests": 9}, UNCLEAR, "9 requests of 10 that are needed"),
    "a gateway is silent": ({"silent": 1}, UNCLEAR, "1 of 2 gateways do not answer"),
    "a gateway is silent, and it is bad": ({"silent": 1, "q0": Reading(0.1)}, BAD, "q0 is 0.1"),
    "gateways find it bad": ({"faults": 20, "q0": Reading(0.1)}, BAD, "100.0 % of 20 requests failed"),
}


@pytest.mark.parametrize(("given", "judgement", "words"), JUDGED.values(), ids=JUDGED.keys())
def test_judgement(given: dict[str, Any], judgement: Judgement, words: str) -> None:
    """A query that has no answer is never good, and no excuse for what is bad."""
    readings = {name: given.get(name, default) for name, default in (("q0", Reading(0.95)), ("q1", Reading(1.0)))}
    counts = Counts(given.get("requests", 20), given.get("faults", 0), 0)
    found = judge(
        analysis(*BOTH, max_error_percent=5),
        counts,
        Counts(),
        Hearing(Tally(), 2, given.get("silent", 0)),
        {name: reading for name, reading in readings.items() if reading is not None},
    )
    assert found.judgement is judgement
    assert found.message.startswith(words)
