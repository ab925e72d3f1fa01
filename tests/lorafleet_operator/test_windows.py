"""Windows of analysis: when they begin, begin anew, go on, and until when they tell what came of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lorafleet_contract.evidence import Evidence, Latency, RevisionEvidence
from lorafleet_contract.rollout import (
    Analysis,
    Judgement,
    PrometheusQuery,
    RolloutEvidence,
    RolloutPhase,
    RolloutStatus,
)
from lorafleet_operator.decide.evidence import Hearing, RowKey, Tally
from lorafleet_operator.decide.measured import Reading
from lorafleet_operator.decide.windows import Pair, Windows

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
PAIR = Pair(RowKey("team", "base", "french", NEW), RowKey("team", "base", "french", OLD))
ANALYSIS = Analysis(window_seconds=60, min_requests=10, max_error_percent=5)
GOOD, BAD, UNCLEAR = Judgement.GOOD, Judgement.BAD, Judgement.INCONCLUSIVE


class Watched:
    """One gateway that counts, one rollout at a step, and who looks."""

    def __init__(self) -> None:
        self.windows, self.tally = Windows(), Tally()
        self.tally.follow({PAIR.canary, PAIR.stable})
        self.silent, self.gateways = 0, 1
        self.boot = "a"
        self.counted: dict[str, dict[str, int]] = {}
        self.rollout = RolloutStatus(
            revision=NEW,
            start_time=NOW,
            last_progress_time=NOW,
            phase=RolloutPhase.PROGRESSING,
            step_index=0,
            step_start_time=NOW,
            steps_hash="h",
        )
        self.count()

    def count(self, new: int = 0, old: int = 0, **errors: int) -> None:
        """Requests that a gateway has seen the end of, all begun to be answered within 2 s; errors are of the new revision."""
        for revision, number, kinds in ((NEW, new, errors), (OLD, old, {})):
            row = self.counted.setdefault(revision, {"requests": 0})
            row["requests"] += number
            for kind, times in kinds.items():
                row[kind] = row.get(kind, 0) + times
        rows = [
            RevisionEvidence(
                namespace="team",
                base="base",
                adapter="french",
                revision=revision,
                began=1,
                num_requests=row["requests"],
                errors={kind: number for kind, number in row.items() if kind != "requests"},
                first_byte=Latency(sum_seconds=0.0, buckets=[row["requests"], 0]),
                whole=Latency(sum_seconds=0.0, buckets=[]),
            )
            for revision, row in self.counted.items()
        ]
        told = Evidence(boot_id=self.boot, sequence=1, bounds_seconds=[2.0], revisions=rows)
        self.tally.take("g0", told, is_whole=True)

    def restart(self) -> None:
        self.boot += "'"
        self.counted = {}
        self.count()

    def look(self, seconds: float, analysis: Analysis = ANALYSIS, pair: Pair = PAIR) -> RolloutEvidence | None:
        hearing = Hearing(self.tally, self.gateways, self.silent)
        now = NOW + timedelta(seconds=seconds)
        return self.windows.look("uid", self.rollout, analysis, hearing, pair=pair, now=now)

    def judgement(self, seconds: float, **more: Any) -> Judgement | None:
        found = self.look(seconds, **more)
        return found.judgement if found is not None else None

    def write(self, found: RolloutEvidence | None, **more: Any) -> None:
        """The status tells it, as it is read back."""
        assert found is not None
        status = self.rollout.model_copy(update={"evidence": found, **more})
        self.rollout = RolloutStatus.model_validate_json(status.model_dump_json(by_alias=True, exclude_none=True))


@pytest.fixture
def it() -> Watched:
    return Watched()


def test_a_window_waits_for_the_answers_to_its_queries(it: Watched) -> None:
    query = {"name": "q", "query": "up", "threshold_range": {"min": 1}}
    analysis = ANALYSIS.model_copy(update={"prometheus": [PrometheusQuery.model_validate(query)]})

    def look(seconds: float, **readings: Reading) -> RolloutEvidence | None:
        hearing, now = Hearing(it.tally, it.gateways, it.silent), NOW + timedelta(seconds=seconds)
        return it.windows.look("uid", it.rollout, analysis, hearing, pair=PAIR, now=now, readings=readings or None)

    assert look(0) is None
    it.count(new=20)
    assert it.windows.over_since("uid", analysis, NOW + timedelta(seconds=59)) is None
    assert it.windows.over_since("uid", analysis, NOW + timedelta(seconds=60)) == NOW
    assert look(61) is None
    found = look(62, q=Reading(None, "no series matches"))
    assert found is not None
    assert (found.judgement, found.message) == (UNCLEAR, "q is not known: no series matches")
    it.write(found)
    assert it.windows.over_since("uid", analysis, NOW + timedelta(seconds=63)) == NOW
    found = look(64, q=Reading(0.5))
    assert found is not None
    assert (found.judgement, found.message) == (BAD, "q is 0.5, and at least 1 is needed")
    assert it.windows.over_since("uid", analysis, NOW + timedelta(seconds=65)) is None


def test_a_window_begins_with_the_first_look(it: Watched) -> None:
    it.count(new=500, old=50, server_error=500)
    assert it.look(100) is None
    it.count(new=20, old=100, server_error=1)
    assert it.look(159.9) is None
    assert it.windows.ends_at("uid", ANALYSIS) == NOW + timedelta(seconds=160)
    found = it.look(160.5)
    assert found is not None
    assert (found.canary.requests, found.canary.faults, found.stable.requests) == (20, 1, 100)
    assert (found.canary.p95_milliseconds, found.stable.p95_milliseconds) == (1900, 1900)
    assert (found.since, found.until) == (NOW + timedelta(seconds=100), NOW + timedelta(seconds=160))
    assert (found.gateways, found.silent_gateways, found.judgement) == (1, 0, GOOD)


def test_what_came_of_it_is_told_until_the_status_tells_it(it: Watched) -> None:
    it.look(0)
    it.count(new=20, server_error=20)
    found = it.look(60)
    it.count(new=500)
    assert it.look(61) == it.look(300) == found
    it.write(found)
    assert it.look(301) is None
    it.count(new=30)
    after = it.look(361)
    assert after is not None
    assert (after.canary.requests, after.judgement) == (30, GOOD)


def test_another_step_begins_anew(it: Watched) -> None:
    it.look(0)
    it.count(new=20)
    found = it.look(60)
    it.write(found, step_index=1, step_start_time=NOW + timedelta(seconds=61))
    assert it.look(61) is None
    assert it.look(120) is None
    assert it.judgement(121) is UNCLEAR


def test_a_step_that_is_left_before_its_window_is_over_begins_anew(it: Watched) -> None:
    it.look(0)
    it.count(new=20)
    it.rollout = it.rollout.model_copy(update={"step_index": 1})
    assert it.look(60) is None
    assert it.judgement(120) is UNCLEAR


def test_another_stable_revision_begins_anew(it: Watched) -> None:
    it.look(0)
    it.count(new=20)
    other = Pair(PAIR.canary, RowKey("team", "base", "french", "cccccccccccc"))
    assert it.look(60, pair=other) is None


def test_a_gateway_that_restarts_begins_it_anew(it: Watched) -> None:
    it.look(0)
    it.count(new=20)
    it.restart()
    it.count(new=15)
    assert it.look(60) is None
    it.count(new=11)
    assert it.look(119) is None
    found = it.look(120)
    assert found is not None
    assert (found.canary.requests, found.judgement) == (11, GOOD)


def test_an_operator_that_restarts_begins_it_anew(it: Watched) -> None:
    it.look(0)
    it.count(new=20, server_error=20)
    it.windows = Windows()
    assert it.look(60) is None
    it.count(new=20)
    assert it.judgement(120) is GOOD


def test_too_few_requests_go_on_and_are_told_once_a_minute(it: Watched) -> None:
    it.look(0)
    it.count(new=6)
    first = it.look(60)
    assert first is not None
    assert (first.judgement, first.message) == (UNCLEAR, "6 requests of 10 that are needed")
    it.count(new=3)
    assert it.look(119) == first
    second = it.look(120)
    assert second is not None
    assert second.canary.requests == 9
    it.count(new=1)
    assert it.judgement(121) is GOOD


def test_a_gateway_that_is_silent_is_never_good_and_nothing_is_lost_when_it_speaks_again(it: Watched) -> None:
    it.look(0)
    it.count(new=20)
    it.silent = 1
    found = it.look(60)
    assert found is not None
    assert (found.judgement, found.gateways, found.silent_gateways) == (UNCLEAR, 1, 1)
    assert it.judgement(5000) is UNCLEAR
    it.silent = 0
    it.count(new=20)
    found = it.look(5001)
    assert found is not None
    assert (found.judgement, found.canary.requests) == (GOOD, 40)


@pytest.mark.parametrize("gateways", [0, 1])
def test_a_window_that_began_with_a_silent_gateway_begins_anew_when_all_are_heard(it: Watched, gateways: int) -> None:
    """What a gateway counted before it was first heard is not known."""
    it.silent, it.gateways = 1, gateways
    it.look(0)
    it.count(new=20)
    assert it.judgement(60) is UNCLEAR
    it.silent, it.gateways = 0, 1
    assert it.look(61) is None
    it.count(new=20)
    assert it.look(120) is None
    assert it.judgement(121) is GOOD


def test_gateways_that_are_all_gone_are_not_heard(it: Watched) -> None:
    it.silent = 1
    it.look(0)
    it.count(new=20)
    it.silent = it.gateways = 0
    found = it.look(60)
    assert found is not None
    assert (found.judgement, found.message) == (UNCLEAR, "no gateway is known")


def test_one_window_of_lost_requests_may_be_a_pod_that_died(it: Watched) -> None:
    it.look(0)
    it.count(new=40, old=40, pod_lost=20)
    found = it.look(60)
    assert found is not None
    assert (found.judgement, found.canary.requests, found.canary.lost) == (UNCLEAR, 40, 20)
    assert "as when a pod dies" in found.message
    it.count(new=40, old=40)
    assert it.look(119) == found
    assert it.judgement(120) is GOOD


def test_a_revision_that_loses_requests_again_is_bad(it: Watched) -> None:
    analysis = ANALYSIS.model_copy(update={"min_requests": 30})
    it.look(0, analysis)
    for seconds, judgement in ((60, UNCLEAR), (120, BAD)):
        it.count(new=40, old=40, stream_broken=20)
        assert it.judgement(seconds, analysis=analysis) is judgement


def test_what_is_not_judged_any_more_is_forgotten(it: Watched) -> None:
    it.look(0)
    it.windows.keep([], ["other"])
    assert it.windows.ends_at("uid", ANALYSIS) is not None
    it.windows.keep(["uid"], ["uid", "other"])
    assert it.windows.ends_at("uid", ANALYSIS) is not None
    it.windows.keep([], ["uid"])
    assert it.windows.ends_at("uid", ANALYSIS) is None
