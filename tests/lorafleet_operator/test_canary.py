"""The state machine of a rollout by steps: which status follows, and who gets which part of the requests."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_contract.reasons import Reason
from lorafleet_contract.rollout import (
    Analysis,
    Judgement,
    OnFailure,
    Pause,
    RevisionCounts,
    RolloutEvidence,
    RolloutPhase,
    RolloutStatus,
    Step,
)
from lorafleet_operator.decide.canary import (
    Given,
    RolloutPlan,
    advance,
    current,
    is_judged,
    look_again_at,
    revisions_of,
    traffic_of,
    weight_of,
)

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NEW, OLD, OTHER = "bbbbbbbbbbbb", "aaaaaaaaaaaa", "cccccccccccc"
LOADING, PROGRESSING, PAUSED = RolloutPhase.LOADING, RolloutPhase.PROGRESSING, RolloutPhase.PAUSED
PROMOTING, ROLLED_BACK = RolloutPhase.PROMOTING, RolloutPhase.ROLLED_BACK


def weight(percent: int) -> Step:
    return Step(set_weight=percent)


def pause(seconds: int | None = None) -> Step:
    return Step(pause=Pause(duration_seconds=seconds))


STEPS = (weight(5), pause(300), weight(25), pause())
PLAN = RolloutPlan(STEPS)
JUDGED = RolloutPlan(STEPS, Analysis(max_error_percent=2))


def window(judgement: Judgement, message: str = "so it was") -> RolloutEvidence:
    counts = RevisionCounts(requests=100)
    return RolloutEvidence(since=NOW, until=NOW, canary=counts, stable=counts, judgement=judgement, message=message)


GOOD, BAD, UNCLEAR = (window(judgement) for judgement in (Judgement.GOOD, Judgement.BAD, Judgement.INCONCLUSIVE))


class Rollout:
    """A status that follows from itself again and again."""

    def __init__(self, plan: RolloutPlan = PLAN) -> None:
        self.plan = plan
        self.status: RolloutStatus | None = None
        self.given: dict[str, Any] = {}
        """Annotations, as they stay."""

    def at(self, seconds: float, **more: Any) -> tuple[RolloutPhase | None, int | None, int]:
        """Phase, step and weight at a time."""
        now = NOW + timedelta(seconds=seconds)
        self.status = advance(Given(self.plan, NEW, self.status, now, **{**self.given, **more}))
        return self.status.phase, self.status.step_index, weight_of(self.plan, self.status)

    @property
    def reason(self) -> str | None:
        assert self.status is not None
        return self.status.reason

    @property
    def message(self) -> str:
        assert self.status is not None
        return self.status.message or ""


def test_steps_are_taken_one_after_the_other() -> None:
    """Nothing is asked of it before it can answer wherever a request arrives; a weight without a judge takes no time."""
    it = Rollout()
    assert it.at(0, obstacle="loading") == (LOADING, 0, 0)
    assert it.at(100, num_ready=2) == (PROGRESSING, 1, 5)
    assert it.message == f"step 2 of 4: 5 % of requests go to revision {NEW} for 300 s"
    assert it.at(399) == (PROGRESSING, 1, 5)
    assert it.at(400) == (PAUSED, 3, 25)
    assert it.reason == Reason.CANARY_PAUSED
    assert it.message.endswith(f"until a person promotes {NEW}:3")
    assert it.at(100_000) == (PAUSED, 3, 25)
    assert it.at(100_001, promote=f"{NEW}:3") == (PROMOTING, 4, 25)
    assert it.at(200_000, promote=f"{NEW}:3") == (PROMOTING, 4, 25)


def test_a_weight_is_kept_until_a_window_is_good() -> None:
    it = Rollout(JUDGED)
    assert it.at(0) == (PROGRESSING, 0, 5)
    assert it.at(500) == (PROGRESSING, 0, 5)
    assert it.at(510, window=UNCLEAR) == (PROGRESSING, 0, 5)
    assert it.at(520, window=GOOD) == (PROGRESSING, 1, 5)
    assert it.status is not None
    assert it.status.evidence == GOOD


def test_a_step_that_is_done_waits_for_what_is_in_the_way() -> None:
    it = Rollout()
    it.at(0)
    assert it.at(300, obstacle="p1: Loading") == (PROGRESSING, 1, 5)
    assert it.at(310) == (PAUSED, 3, 25)


def test_no_answer_is_never_good_and_ends_at_the_deadline() -> None:
    it = Rollout(JUDGED)
    it.at(0)
    quiet = window(Judgement.INCONCLUSIVE, "1 of 2 gateways do not answer")
    assert it.at(719, window=quiet) == (PROGRESSING, 0, 5)
    assert it.at(720, window=quiet) == (ROLLED_BACK, 0, 0)
    assert it.reason == Reason.PROGRESS_DEADLINE_EXCEEDED
    assert "1 of 2 gateways do not answer" in it.message


def test_a_step_without_a_window_ends_at_the_deadline_too() -> None:
    it = Rollout(replace(JUDGED, progress_deadline_seconds=10))
    it.at(0)
    assert it.at(129) == (PROGRESSING, 0, 5)
    assert it.at(130) == (ROLLED_BACK, 0, 0)
    assert it.message.endswith("no window was judged")


def test_bad_windows_beyond_the_limit_roll_it_back() -> None:
    it = Rollout(replace(JUDGED, analysis=Analysis(failure_limit=1)))
    it.at(0)
    assert it.at(120, window=BAD) == (PROGRESSING, 0, 5)
    assert it.at(121, window=BAD) == (PROGRESSING, 0, 5), "the same window, told once more"
    assert it.at(240, window=window(Judgement.BAD, "12 % failed")) == (ROLLED_BACK, 0, 0)
    assert (it.reason, it.message) == (Reason.ANALYSIS_FAILED, f"revision {NEW} was rolled back: 12 % failed")
    assert it.status is not None
    assert (it.status.failures, it.status.end_time) == (2, NOW + timedelta(seconds=240))
    before = it.status
    it.at(9999, window=GOOD, num_ready=5)
    assert it.status == before


@pytest.mark.parametrize("phase", [PROGRESSING, PAUSED])
def test_what_is_bad_while_it_waits_is_rolled_back_too(phase: RolloutPhase) -> None:
    it = Rollout(replace(JUDGED, steps=(pause(300) if phase is PROGRESSING else pause(),)))
    assert it.at(0)[0] is phase
    assert it.at(10, window=BAD)[0] is ROLLED_BACK


def test_on_failure_pause_keeps_the_weight_and_a_person_goes_past_that_step_only() -> None:
    """What follows is judged again, by a count of failures that begins anew."""
    it = Rollout(replace(JUDGED, on_failure=OnFailure.PAUSE))
    it.at(0)
    assert it.at(120, window=BAD) == (PAUSED, 0, 5)
    assert it.reason == Reason.ANALYSIS_FAILED
    assert it.at(9999, window=GOOD) == (PAUSED, 0, 5)
    assert it.at(10_000, promote=f"{NEW}:0") == (PROGRESSING, 1, 5)
    assert it.status is not None
    assert it.status.failures == 0
    again = window(Judgement.BAD, "again")
    assert it.at(10_100, promote=f"{NEW}:0", window=again) == (PAUSED, 1, 5)


def test_promotion_of_a_revision_goes_past_everything() -> None:
    it = Rollout(JUDGED)
    assert it.at(0, obstacle="loading") == (LOADING, 0, 0)
    assert it.at(1, obstacle="loading", promote=NEW) == (PROMOTING, 0, 0)
    it = Rollout(JUDGED)
    it.at(0)
    assert it.at(1, promote=OTHER) == (PROGRESSING, 0, 5)
    assert it.at(2, promote=NEW) == (PROMOTING, 0, 5)


def test_promotion_after_a_roll_back_gives_no_share_to_what_no_pod_has() -> None:
    it = Rollout(JUDGED)
    it.at(0)
    it.at(1, window=BAD)
    assert it.at(2, promote=NEW) == (PROMOTING, 0, 0)
    assert it.status is not None
    assert (it.status.end_time, it.status.failures) == (None, 0)


def test_abort_wins_and_lasts() -> None:
    it = Rollout()
    it.at(0)
    assert it.at(1, abort=NEW, promote=NEW) == (ROLLED_BACK, 1, 0)
    assert it.reason == Reason.ABORTED
    assert it.at(2) == (ROLLED_BACK, 1, 0)
    it = Rollout()
    assert it.at(0, abort=NEW, is_suspended=True) == (ROLLED_BACK, 0, 0)


def test_a_promotion_that_was_there_before_the_rollout_began_does_not_count() -> None:
    """It answered an earlier try; taken away and given again it is an answer to this one."""
    it = Rollout()
    it.at(0, promote=NEW)
    assert it.at(1, promote=NEW) == (PROGRESSING, 1, 5)
    assert it.at(2) == (PROGRESSING, 1, 5)
    assert it.at(3, promote=NEW) == (PROMOTING, 1, 5)


def test_a_promotion_of_another_revision_is_not_noted() -> None:
    it = Rollout()
    it.at(0, promote=OTHER)
    assert it.status is not None
    assert it.status.spent_promotion is None


def test_a_pause_is_not_passed_by_an_answer_to_an_earlier_try() -> None:
    it = Rollout()
    stale = {"promote": f"{NEW}:3"}
    it.at(0, **stale)
    assert it.at(300, **stale) == (PAUSED, 3, 25)
    assert "of an earlier try" in it.message
    assert it.at(301, promote=f"{NEW}:2") == (PAUSED, 3, 25)
    assert it.at(302, **stale) == (PROMOTING, 4, 25)


def test_a_pause_that_a_person_is_past_already_takes_no_time() -> None:
    it = Rollout()
    it.at(0)
    assert it.at(10, promote=f"{NEW}:3") == (PROGRESSING, 1, 5)
    assert it.at(300, promote=f"{NEW}:3") == (PROMOTING, 4, 25)


def test_suspension_keeps_the_weight_and_the_step_begins_anew() -> None:
    it = Rollout()
    it.at(0)
    assert it.at(10, is_suspended=True) == (PAUSED, 1, 5)
    assert it.reason == Reason.SUSPENDED
    assert it.at(9999, is_suspended=True, promote=NEW) == (PAUSED, 1, 5)
    assert it.at(10_000) == (PROGRESSING, 1, 5)
    assert it.at(10_299) == (PROGRESSING, 1, 5)
    assert it.at(10_300) == (PAUSED, 3, 25)
    it.at(10_301, is_suspended=True)
    assert it.reason == Reason.SUSPENDED
    it.at(10_302)
    assert it.reason == Reason.CANARY_PAUSED


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAN, steps=STEPS[:2]),
        replace(PLAN, analysis=Analysis()),
        replace(PLAN, on_failure=OnFailure.PAUSE),
        replace(PLAN, retry="once more"),
    ],
    ids=["steps", "analysis", "on_failure", "retry"],
)
def test_other_steps_begin_anew(plan: RolloutPlan) -> None:
    it = Rollout()
    it.at(0)
    it.plan = plan
    assert it.at(10, obstacle="p1: Loading") == (LOADING, 0, 0)


def test_a_longer_deadline_is_the_same_rollout() -> None:
    it = Rollout()
    it.at(0)
    it.plan = replace(PLAN, progress_deadline_seconds=1)
    assert it.at(10) == (PROGRESSING, 1, 5)


def test_what_was_rolled_back_stays_so_with_other_steps_until_somebody_asks_for_it() -> None:
    it = Rollout(JUDGED)
    it.at(0)
    it.at(1, window=BAD)
    it.plan = replace(PLAN, steps=(weight(50), pause()))
    assert it.at(2) == (ROLLED_BACK, 0, 0)
    assert it.at(3, promote=NEW) == (PROMOTING, 0, 0)
    assert it.at(4, promote=NEW) == (PROMOTING, 0, 0), "the status is that of the steps of now"
    it = Rollout(JUDGED)
    it.at(0)
    it.at(1, window=BAD)
    it.plan = replace(JUDGED, retry="1")
    assert it.at(2) == (PROGRESSING, 0, 5)


def test_a_field_at_its_default_is_no_other_rollout() -> None:
    """So that a later version, which has one more, begins none anew."""
    plain, said = replace(PLAN, analysis=Analysis()), replace(PLAN, analysis=Analysis(window_seconds=120))
    assert plain.hash == said.hash != PLAN.hash


def test_a_status_without_steps_is_of_no_rollout_by_steps() -> None:
    plain = RolloutStatus(revision=NEW, start_time=NOW, last_progress_time=NOW)
    assert current(PLAN, NEW, plain) is None
    assert weight_of(PLAN, plain) == 0


def test_times_to_look_again() -> None:
    it = Rollout(replace(PLAN, progress_deadline_seconds=50))
    it.at(0)
    assert it.status is not None
    for seconds, expected in ((0, 300), (299, 300), (300, 350), (349, 350), (350, None)):
        found = look_again_at(it.plan, it.status, NOW + timedelta(seconds=seconds))
        assert found == (NOW + timedelta(seconds=expected) if expected is not None else None)
    it.at(300)
    assert look_again_at(it.plan, it.status, NOW) is None, "a person is waited for"


def test_what_is_judged_is_what_has_requests_and_can_still_fail() -> None:
    it = Rollout(replace(JUDGED, steps=(weight(5), pause()), on_failure=OnFailure.PAUSE))
    it.at(0, obstacle="loading")
    assert not is_judged(it.plan, it.status)
    it.at(1)
    assert is_judged(it.plan, it.status)
    assert not is_judged(PLAN, it.status)
    it.at(2, window=GOOD)
    assert it.reason == Reason.CANARY_PAUSED
    assert is_judged(it.plan, it.status)
    it.at(3, window=BAD)
    assert not is_judged(it.plan, it.status)


def test_traffic_names_the_stable_revision_first_and_the_new_one_only_with_a_share() -> None:
    it = Rollout()
    it.at(0, obstacle="loading")
    shares = traffic_of(PLAN, OLD, it.status)
    assert [(share.revision, share.weight) for share in shares] == [(OLD, 100)]
    it.at(1)
    shares = traffic_of(PLAN, OLD, it.status)
    assert [(share.revision, share.weight) for share in shares] == [(OLD, 95), (NEW, 5)]
    assert revisions_of(shares) == {OLD, NEW}
    assert [share.weight for share in traffic_of(PLAN, NEW, it.status)] == [100], "it has become the stable one"
    assert traffic_of(PLAN, OLD, None) == traffic_of(PLAN, OLD, RolloutStatus.model_construct(revision=NEW, phase=None))


STEP = st.one_of(st.integers(1, 99).map(weight), st.sampled_from([None, 1, 300]).map(pause))
PLANS = st.builds(
    RolloutPlan,
    steps=st.lists(STEP, max_size=4).map(tuple),
    analysis=st.none() | st.builds(Analysis, failure_limit=st.integers(0, 1)),
    on_failure=st.sampled_from(OnFailure),
    progress_deadline_seconds=st.integers(1, 600),
    retry=st.sampled_from(["", "1"]),
)
NUMBERS = st.none() | st.integers(-2, 20)
TIMES = st.integers(-1000, 1000).map(lambda seconds: NOW + timedelta(seconds=seconds))
VALUES = st.sampled_from(["", NEW, OLD, f"{NEW}:0", f"{NEW}:1", f"{NEW}:x", ":", "?"])
WINDOWS = st.none() | st.sampled_from([GOOD, BAD, UNCLEAR])


@st.composite
def situations(draw: st.DrawFn) -> Given:
    """Whatever a status may say, also what we never write."""
    plan = draw(PLANS)
    before = draw(
        st.none()
        | st.builds(
            RolloutStatus,
            revision=st.sampled_from([NEW, NEW, OTHER]),
            start_time=TIMES,
            last_progress_time=TIMES,
            ready_pods=st.integers(0, 3),
            phase=st.none() | st.sampled_from(RolloutPhase),
            reason=st.sampled_from([None, Reason.SUSPENDED, Reason.CANARY_PAUSED, Reason.ANALYSIS_FAILED, "Odd"]),
            step_index=NUMBERS,
            num_steps=NUMBERS,
            step_start_time=st.none() | TIMES,
            steps_hash=st.sampled_from([plan.hash, plan.hash, "other", None]),
            spent_promotion=st.none() | VALUES,
            failures=NUMBERS,
            evidence=WINDOWS,
        )
    )
    return Given(
        plan,
        NEW,
        before,
        draw(TIMES),
        num_ready=draw(st.integers(0, 3)),
        obstacle=draw(st.sampled_from([None, "p1: Loading"])),
        window=draw(WINDOWS),
        promote=draw(VALUES),
        abort=draw(VALUES),
        is_suspended=draw(st.booleans()),
    )


def _weights(plan: RolloutPlan, status: RolloutStatus) -> Sequence[int]:
    return [share.weight for share in traffic_of(plan, OLD, status)]


@given(situations())
def test_there_is_always_an_answer_and_its_weights_are_a_whole(it: Given) -> None:
    after = advance(it)
    assert after.phase is not None
    assert after.revision == NEW
    assert current(it.plan, NEW, after) == after
    assert sum(_weights(it.plan, after)) == 100
    given_weight = weight_of(it.plan, after)
    assert given_weight == 0 or any(step.set_weight == given_weight for step in it.plan.steps)
    if after.phase in (LOADING, ROLLED_BACK):
        assert given_weight == 0
    if it.abort == NEW:
        assert after.phase is ROLLED_BACK
    look_again_at(it.plan, after, it.now)


@given(situations())
def test_the_same_look_twice_changes_nothing(it: Given) -> None:
    """Time apart: a status that was written is not written again."""
    after = advance(it)
    again = advance(replace(it, before=after, window=None))
    assert advance(replace(it, before=again, window=None)) == again


@given(situations())
def test_what_was_lost_begins_without_a_request(it: Given) -> None:
    after = advance(replace(it, before=None, obstacle="p1: Loading", abort=""))
    assert (after.phase, after.step_index) == (LOADING, 0)
    assert weight_of(it.plan, after) == 0


@given(situations())
def test_nothing_but_a_good_window_goes_on_from_a_weight_that_is_judged(it: Given) -> None:
    """Unless a person says so."""
    before = current(it.plan, NEW, it.before)
    if before is None or it.plan.analysis is None or before.phase is not PROGRESSING or before.step_start_time is None:
        return
    index = before.step_index or 0
    if not 0 <= index < len(it.plan.steps) or it.plan.steps[index].set_weight is None or it.window is GOOD:
        return
    after = advance(replace(it, promote=""))
    is_further = after.phase is PROMOTING or (after.step_index or 0) > index
    assert not is_further
