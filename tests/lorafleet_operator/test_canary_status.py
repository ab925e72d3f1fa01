"""What the status of a rollout by steps says at each of its turns, and what comes of a status that says odd things."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support import operator_views as v

from lorafleet_contract.names import ANNOTATION_RETRY
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
    TrafficShare,
)
from lorafleet_operator.decide.canary import (
    Given,
    RolloutPlan,
    advance,
    current,
    is_judged,
    is_step,
    look_again_at,
    revisions_of,
    rollout_plan,
    traffic_of,
    weight_of,
)

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NEW, OLD, OTHER = "bbbbbbbbbbbb", "aaaaaaaaaaaa", "cccccccccccc"
STEPS = (
    Step(set_weight=5),
    Step(pause=Pause(duration_seconds=300)),
    Step(set_weight=25),
    Step(pause=Pause(duration_seconds=None)),
)
PLAN = RolloutPlan(STEPS)
JUDGED = RolloutPlan(STEPS, Analysis(max_error_percent=2))
LONG = "x" * 2000


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def window(judgement: Judgement, message: str = "so it was") -> RolloutEvidence:
    counts = RevisionCounts(requests=100)
    return RolloutEvidence(since=NOW, until=NOW, canary=counts, stable=counts, judgement=judgement, message=message)


def follow(plan: RolloutPlan, before: RolloutStatus | None, seconds: float = 0, **more: Any) -> RolloutStatus:
    """The status that follows at a time."""
    return advance(Given(plan, NEW, before, after(seconds), **more))


def status(phase: RolloutPhase, plan: RolloutPlan = PLAN, **more: Any) -> RolloutStatus:
    """A status of a rollout, whatever it says."""
    given = {"start_time": NOW, "last_progress_time": NOW, "step_index": 0, "steps_hash": plan.hash, **more}
    return RolloutStatus(revision=NEW, phase=phase, **given)


def loading(plan: RolloutPlan = PLAN, **more: Any) -> RolloutStatus:
    return follow(plan, None, obstacle="p1: Loading", **more)


class TestThePlan:
    """Whose steps are taken: an adapter's own, else those of its base, field by field."""

    STEPS = ({"setWeight": 5},)
    BASE = v.base(
        lora={
            "rollout": {"steps": [{"setWeight": 50}], "analysis": {"windowSeconds": 7}, "onFailure": "Pause"},
        }
    )

    def test_without_steps_the_name_moves_at_once(self) -> None:
        assert rollout_plan(v.adapter(), None) is None
        assert rollout_plan(v.adapter(), v.base()) is None
        assert rollout_plan(v.adapter(rollout={"steps": []}), self.BASE) is None

    def test_an_adapter_that_says_nothing_has_what_its_base_says(self) -> None:
        expected = RolloutPlan((Step(set_weight=50),), Analysis(window_seconds=7), OnFailure.PAUSE)
        assert rollout_plan(v.adapter(), self.BASE) == expected

    def test_an_adapters_own_words_come_first(self) -> None:
        own = {"steps": list(self.STEPS), "analysis": {"windowSeconds": 9}, "onFailure": "Rollback"}
        found = rollout_plan(v.adapter(rollout={**own, "progressDeadlineSeconds": 11}), self.BASE)
        expected = RolloutPlan((Step(set_weight=5),), Analysis(window_seconds=9), OnFailure.ROLLBACK)
        assert found == replace(expected, progress_deadline_seconds=11)
        assert rollout_plan(v.adapter(rollout={"steps": list(self.STEPS)}), None) == RolloutPlan((Step(set_weight=5),))

    def test_an_annotation_makes_another_try(self) -> None:
        adapter = v.adapter(rollout={"steps": list(self.STEPS)})
        adapter.metadata.annotations[ANNOTATION_RETRY] = "once more"
        assert rollout_plan(adapter, None) == RolloutPlan((Step(set_weight=5),), retry="once more")


def test_what_an_earlier_operator_wrote_is_the_same_rollout() -> None:
    """A status outlives the operator that wrote it: with another hash all rollouts under way would begin anew."""
    assert PLAN.hash == "e20b7eee440b-e3b0c44298fc"
    assert replace(JUDGED, on_failure=OnFailure.PAUSE, retry="once more").hash == "0b8d0b999bb7-629f49dc4604"


class TestTurns:
    """All that a status says, turn by turn."""

    def test_it_begins(self) -> None:
        assert loading(num_ready=1, promote=f"{NEW}:3") == RolloutStatus(
            revision=NEW,
            start_time=NOW,
            last_progress_time=NOW,
            ready_pods=1,
            phase=RolloutPhase.LOADING,
            reason=Reason.LOADING,
            message=f"pods are loading revision {NEW}",
            step_index=0,
            num_steps=4,
            steps_hash=PLAN.hash,
            spent_promotion=f"{NEW}:3",
            failures=0,
        )

    def test_a_weight_is_entered(self) -> None:
        before = loading(JUDGED)
        expected = {
            "phase": RolloutPhase.PROGRESSING,
            "reason": Reason.CANARY_STEP,
            "message": f"step 1 of 4: 5 % of requests go to revision {NEW} until it is judged good",
            "step_start_time": after(10),
            "last_progress_time": after(10),
        }
        assert follow(JUDGED, before, 10) == before.model_copy(update=expected)

    def test_a_pause_for_a_person_is_entered(self) -> None:
        before = follow(PLAN, loading(), 10)
        expected = {
            "phase": RolloutPhase.PAUSED,
            "reason": Reason.CANARY_PAUSED,
            "message": f"step 4 of 4: 25 % of requests go to revision {NEW} until a person promotes {NEW}:3",
            "step_index": 3,
            "step_start_time": after(310),
            "last_progress_time": after(310),
        }
        assert follow(PLAN, before, 310) == before.model_copy(update=expected)

    def test_it_is_promoted(self) -> None:
        before = follow(PLAN, loading(), 10)
        expected = {
            "phase": RolloutPhase.PROMOTING,
            "reason": Reason.LOADING,
            "message": f"a person promoted it: the name moves to revision {NEW} on all pods",
            "last_progress_time": after(20),
        }
        promoted = follow(PLAN, before, 20, promote=NEW)
        assert promoted == before.model_copy(update=expected)
        assert follow(PLAN, promoted, 30, promote=NEW) == promoted, "it is promoted once"

    def test_all_steps_are_done(self) -> None:
        plan = replace(PLAN, steps=STEPS[:2])
        before = follow(plan, loading(plan))
        expected = {
            "phase": RolloutPhase.PROMOTING,
            "reason": Reason.LOADING,
            "message": f"all steps are done: the name moves to revision {NEW} on all pods",
            "step_index": 2,
            "last_progress_time": after(300),
        }
        assert follow(plan, before, 300) == before.model_copy(update=expected)

    def test_it_is_promoted_after_all(self) -> None:
        """Its steps were given up, so it has no share before all pods have it."""
        before = follow(PLAN, follow(PLAN, loading()), 10, abort=NEW)
        expected = {
            "phase": RolloutPhase.PROMOTING,
            "reason": Reason.LOADING,
            "message": f"a person promoted it: the name moves to revision {NEW} on all pods",
            "step_start_time": None,
            "end_time": None,
            "failures": 0,
            "last_progress_time": after(20),
        }
        assert follow(PLAN, before, 20, promote=NEW) == before.model_copy(update=expected)

    def test_it_is_given_up(self) -> None:
        before = follow(PLAN, loading())
        expected = {
            "phase": RolloutPhase.ROLLED_BACK,
            "reason": Reason.ABORTED,
            "message": f"revision {NEW} was rolled back: a person gave it up",
            "end_time": after(10),
        }
        given_up = follow(PLAN, before, 10, abort=NEW)
        assert given_up == before.model_copy(update=expected)
        assert follow(PLAN, given_up, 20, abort=NEW) == given_up, "it is given up once"

    def test_it_is_judged_bad(self) -> None:
        before, bad = follow(JUDGED, loading(JUDGED)), window(Judgement.BAD, "12 % failed")
        expected = {
            "phase": RolloutPhase.ROLLED_BACK,
            "reason": Reason.ANALYSIS_FAILED,
            "message": f"revision {NEW} was rolled back: 12 % failed",
            "evidence": bad,
            "failures": 1,
            "end_time": after(10),
        }
        assert follow(JUDGED, before, 10, window=bad) == before.model_copy(update=expected)

    def test_a_person_is_asked_about_what_is_bad(self) -> None:
        plan, bad = replace(JUDGED, on_failure=OnFailure.PAUSE), window(Judgement.BAD, "12 % failed")
        before = follow(plan, follow(plan, loading(plan)), 5, window=window(Judgement.GOOD))
        message = (
            f"revision {NEW} keeps its part of the requests until a person promotes {NEW}:1 or gives it up: 12 % failed"
        )
        expected = {
            "phase": RolloutPhase.PAUSED,
            "reason": Reason.ANALYSIS_FAILED,
            "message": message,
            "evidence": bad,
            "failures": 1,
        }
        assert follow(plan, before, 10, window=bad) == before.model_copy(update=expected)

    @pytest.mark.parametrize("on_failure", OnFailure)
    def test_it_is_judged_bad_while_a_person_is_waited_for(self, on_failure: OnFailure) -> None:
        plan = RolloutPlan((Step(pause=Pause(duration_seconds=None)),), Analysis(), on_failure)
        it = follow(plan, follow(plan, loading(plan)), 10, window=window(Judgement.BAD, "12 % failed"))
        assert it.reason == Reason.ANALYSIS_FAILED
        assert (it.message or "").endswith(": 12 % failed")

    def test_a_window_that_is_not_over_changes_nothing(self) -> None:
        plan = replace(JUDGED, analysis=Analysis(failure_limit=1))
        it = follow(plan, follow(plan, loading(plan)), 10, window=window(Judgement.BAD))
        assert follow(plan, it, 20) == it

    def test_without_an_analysis_no_window_is_judged(self) -> None:
        it = follow(PLAN, loading())
        assert follow(PLAN, it, 10, window=window(Judgement.BAD)) == it

    def test_it_is_suspended(self) -> None:
        before = follow(PLAN, loading())
        expected = {
            "phase": RolloutPhase.PAUSED,
            "reason": Reason.SUSPENDED,
            "message": "suspended: no step is taken",
        }
        assert follow(PLAN, before, 10, is_suspended=True) == before.model_copy(update=expected)

    def test_a_step_that_is_done_says_for_what_it_waits(self) -> None:
        before = follow(PLAN, loading())
        waiting = follow(PLAN, before, 300, obstacle="p1: Loading")
        assert waiting == before.model_copy(update={"message": "step 2 of 4 is done, and waits: p1: Loading"})

    def test_a_step_that_makes_no_progress(self) -> None:
        before = follow(PLAN, loading())
        assert follow(PLAN, before, 899.9, obstacle="p1: Loading").phase is RolloutPhase.PROGRESSING
        failed = follow(PLAN, before, 900, obstacle="p1: Loading")
        why = "step 2 was not done within 600 s of its own time: p1: Loading"
        assert (failed.reason, failed.message) == (
            Reason.PROGRESS_DEADLINE_EXCEEDED,
            f"revision {NEW} was rolled back: {why}",
        )


def test_more_ready_pods_than_ever_are_progress() -> None:
    it: RolloutStatus | None = None
    found = []
    for seconds, num_ready in ((0, 1), (10, 1), (20, 3), (30, 2), (40, 3), (50, 4)):
        it = follow(PLAN, it, seconds, num_ready=num_ready, obstacle="p1: Loading")
        found.append((it.ready_pods, it.last_progress_time))
    assert found == [
        (1, NOW), (1, NOW), (3, after(20)), (3, after(20)), (3, after(20)), (4, after(50)),
    ]  # fmt: skip


def test_what_begins_and_goes_no_further_tells_its_ready_pods_too() -> None:
    for more in ({"abort": NEW}, {"is_suspended": True}, {"is_idle": True}):
        assert follow(PLAN, None, num_ready=2, **more).ready_pods == 2, more


@pytest.mark.parametrize("asked", ["promote", "nothing"])
def test_a_revision_that_fails_its_owners_questions_is_given_up(asked: str) -> None:
    more = {"promote": NEW} if asked == "promote" else {}
    it = follow(PLAN, loading(), 10, unverified="2 + 2 was answered 5", **more)
    assert (it.phase, it.reason) == (RolloutPhase.ROLLED_BACK, Reason.VERIFY_FAILED)
    assert it.message == f"revision {NEW} was rolled back: 2 + 2 was answered 5"
    suspended = follow(PLAN, loading(), 10, unverified="2 + 2 was answered 5", is_suspended=True)
    assert suspended.phase is RolloutPhase.LOADING, "nothing is decided of what is suspended"


class TestNoPods:
    """A base that was scaled to none: a step begins anew when there are pods again."""

    def test_a_step_begins_anew(self) -> None:
        before = follow(PLAN, loading())
        expected = {
            "phase": RolloutPhase.PAUSED,
            "reason": Reason.NO_READY_PODS,
            "message": "the base has no pod: the step begins anew when it has one",
        }
        held = follow(PLAN, before, 10, is_idle=True)
        assert held == before.model_copy(update=expected)
        assert not is_judged(JUDGED, held)
        again = follow(PLAN, held, 1000)
        assert (again.phase, again.step_index, again.step_start_time) == (RolloutPhase.PROGRESSING, 1, after(1000))

    def test_why_it_is_held_may_change(self) -> None:
        held = follow(PLAN, follow(PLAN, loading()), 10, is_idle=True)
        assert follow(PLAN, held, 20, is_idle=True, is_suspended=True).reason == Reason.SUSPENDED

    def test_a_pause_for_a_person_comes_back(self) -> None:
        paused = follow(PLAN, follow(PLAN, loading()), 300)
        held = follow(PLAN, paused, 310, is_idle=True)
        assert (held.phase, held.reason) == (RolloutPhase.PAUSED, Reason.NO_READY_PODS)
        assert follow(PLAN, held, 320).reason == Reason.CANARY_PAUSED

    def test_what_is_no_step_stays_as_it_is(self) -> None:
        plan = replace(JUDGED, on_failure=OnFailure.PAUSE)
        progressing = follow(plan, loading(plan))
        bad = follow(plan, progressing, 10, window=window(Judgement.BAD))
        assert bad.reason == Reason.ANALYSIS_FAILED
        for it in (
            loading(plan),
            bad,
            follow(plan, progressing, 10, promote=NEW),
            follow(plan, progressing, 10, abort=NEW),
        ):
            assert follow(plan, it, 20, is_idle=True) == it
            assert follow(plan, it, 20, is_suspended=True) == it

    def test_a_persons_word_is_heard(self) -> None:
        it = follow(PLAN, follow(PLAN, loading()), 10, is_idle=True, promote=NEW)
        assert it.phase is RolloutPhase.PROMOTING


class TestMessagesAreShort:
    """A CRD lets a message have 1,024 characters; a status that is longer could not be written at all."""

    def test_of_what_was_given_up(self) -> None:
        assert len(follow(PLAN, loading(), unverified=LONG).message or "") == 1024

    def test_of_what_a_person_is_asked_about(self) -> None:
        plan = replace(JUDGED, on_failure=OnFailure.PAUSE)
        it = follow(plan, follow(plan, loading(plan)), 10, window=window(Judgement.BAD, "x" * 1024))
        assert len(it.message or "") == 1024

    def test_of_what_waits(self) -> None:
        assert len(follow(PLAN, follow(PLAN, loading()), 300, obstacle=LONG).message or "") == 1024


def test_steps_that_are_promoted_one_by_one_have_names_of_their_own() -> None:
    """The word that ended one pause ends no other; one that is of a step to come, or of the revision without a step, is heard."""
    pause = Step(pause=Pause(duration_seconds=None))
    plan = RolloutPlan((pause, pause, pause))
    first = follow(plan, loading(plan))
    assert (first.step_index, first.phase) == (0, RolloutPhase.PAUSED)
    second = follow(plan, first, 10, promote=f"{NEW}:0")
    assert (second.step_index, second.phase) == (1, RolloutPhase.PAUSED)
    assert follow(plan, second, 20, promote=f"{NEW}:0") == second
    assert follow(plan, second, 20, promote=f"{NEW}:2") == second
    assert follow(plan, second, 20, promote=f"{OTHER}:1") == second
    assert follow(plan, second, 20, promote=f"{NEW}:1").step_index == 2


def test_failures_add_up_and_a_person_takes_them_back() -> None:
    plan = replace(JUDGED, analysis=Analysis(failure_limit=2), on_failure=OnFailure.PAUSE)
    it = follow(plan, loading(plan))
    counted = []
    for seconds, judgement in ((1, Judgement.BAD), (2, Judgement.INCONCLUSIVE), (3, Judgement.BAD), (4, Judgement.BAD)):
        it = follow(plan, it, seconds, window=window(judgement, f"window {seconds}"))
        counted.append((it.failures, it.phase))
    going, paused = RolloutPhase.PROGRESSING, RolloutPhase.PAUSED
    assert counted == [(1, going), (1, going), (2, going), (3, paused)]
    assert follow(plan, it, 5, promote=f"{NEW}:0").failures == 0


def test_what_was_rolled_back_tells_of_the_steps_of_now() -> None:
    rolled_back = follow(PLAN, follow(PLAN, loading()), 10, abort=NEW)
    other = replace(PLAN, steps=STEPS[:2])
    assert current(other, NEW, rolled_back) == rolled_back.model_copy(update={"num_steps": 2, "steps_hash": other.hash})
    assert current(other, OTHER, rolled_back) is None
    assert current(other, NEW, rolled_back.model_copy(update={"steps_hash": None})) is None
    assert current(replace(other, retry="1"), NEW, rolled_back) is None
    assert current(other, NEW, rolled_back.model_copy(update={"steps_hash": PLAN.hash.partition("-")[2]})) is None
    assert current(other, NEW, None) is None


def test_what_a_step_is() -> None:
    """An event is written for another revision, try, phase, reason or step; not for words and times."""
    it = loading()
    assert is_step(None, it)
    assert not is_step(it, None)
    assert not is_step(None, it.model_copy(update={"phase": None}))
    assert not is_step(
        it, it.model_copy(update={"message": "other words", "ready_pods": 9, "last_progress_time": after(9)})
    )
    for other in (
        {"revision": OTHER},
        {"steps_hash": "other"},
        {"phase": RolloutPhase.PROGRESSING},
        {"reason": Reason.SUSPENDED},
        {"step_index": 1},
    ):
        assert is_step(it, it.model_copy(update=other)), other


class TestLooks:
    """When time alone may change a status."""

    def test_a_window_and_the_deadline_behind_it(self) -> None:
        plan = replace(JUDGED, analysis=Analysis(window_seconds=30), progress_deadline_seconds=50)
        it = follow(plan, loading(plan))
        found = [look_again_at(plan, it, after(seconds)) for seconds in (0, 29, 30, 79, 80)]
        assert found == [after(30), after(30), after(80), after(80), None]

    def test_what_is_loading_or_held_changes_with_the_world_alone(self) -> None:
        it = follow(PLAN, loading())
        assert look_again_at(PLAN, it, NOW) == after(300)
        assert look_again_at(PLAN, loading(), NOW) is None
        assert look_again_at(PLAN, follow(PLAN, it, 10, is_suspended=True), NOW) is None
        assert look_again_at(PLAN, it.model_copy(update={"step_start_time": None}), NOW) is None


def test_shares() -> None:
    it = follow(PLAN, loading())
    assert traffic_of(PLAN, OLD, it) == [TrafficShare(revision=OLD, weight=95), TrafficShare(revision=NEW, weight=5)]
    promoting = follow(PLAN, it, 10, promote=NEW)
    assert weight_of(PLAN, promoting) == 5, "until all pods have it"
    assert revisions_of(None) == frozenset()
    assert revisions_of([TrafficShare(revision=OLD, weight=100), TrafficShare(revision=NEW, weight=0)]) == {OLD}


class TestOddStatus:
    """Statuses can be edited. What no operator wrote is taken for the first step, or begins anew, and never fails."""

    @pytest.mark.parametrize("index", [None, -1, 0])
    def test_an_index_of_no_step_has_the_first_ones_weight(self, index: int | None) -> None:
        plan = replace(PLAN, steps=(Step(set_weight=5), Step(set_weight=25)))
        odd = status(RolloutPhase.PROGRESSING, plan, step_index=index, step_start_time=NOW)
        assert weight_of(plan, odd) == 5

    def test_a_step_without_an_index_is_the_first(self) -> None:
        plan = RolloutPlan((Step(pause=Pause(duration_seconds=7)), Step(pause=Pause(duration_seconds=70)), *STEPS))
        odd = status(RolloutPhase.PROGRESSING, plan, step_index=None, step_start_time=NOW)
        assert look_again_at(plan, odd, NOW) == after(7)
        assert follow(plan, odd, 7).step_index == 1
        held = status(RolloutPhase.PAUSED, plan, step_index=None, reason=Reason.SUSPENDED)
        assert follow(plan, held, 9).step_index == 0
        asked = status(RolloutPhase.PAUSED, plan, step_index=None, reason=Reason.CANARY_PAUSED)
        assert follow(plan, asked, 9, promote=f"{NEW}:0").step_index == 1

    def test_a_negative_index_is_the_first_step_where_it_waits(self) -> None:
        held = status(RolloutPhase.PAUSED, JUDGED, step_index=-3, reason=Reason.SUSPENDED)
        assert follow(JUDGED, held).step_index == 0

    def test_what_fails_without_an_index_is_promoted_as_the_first(self) -> None:
        plan = replace(JUDGED, on_failure=OnFailure.PAUSE)
        odd = status(RolloutPhase.PROGRESSING, plan, step_index=None, step_start_time=NOW, failures=None)
        failed = follow(plan, odd, 9, window=window(Judgement.BAD))
        assert f"promotes {NEW}:0 or" in (failed.message or "")
        assert failed.failures == 1

    @pytest.mark.parametrize("index", [0, 3])
    def test_a_step_that_has_no_time_of_its_own_is_over_at_once(self, index: int) -> None:
        odd = status(RolloutPhase.PROGRESSING, step_index=index, step_start_time=NOW)
        assert follow(PLAN, odd).step_index == index + 1
        assert look_again_at(PLAN, odd, NOW) == after(600)

    @pytest.mark.parametrize("odd", [{"step_index": 4}, {"step_index": -1}, {"step_start_time": None}])
    def test_a_step_that_cannot_be_begins_anew(self, odd: dict[str, Any]) -> None:
        before = status(RolloutPhase.PROGRESSING, JUDGED, **{"step_start_time": NOW, **odd})
        assert follow(JUDGED, before, 10) == follow(JUDGED, None, 10, obstacle="p1: Loading")
