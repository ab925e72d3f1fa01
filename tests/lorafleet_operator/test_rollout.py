"""Which revision the bare name means on pods and in status, what history keeps, and when a revision may leave."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from support import operator_views as v
from support.operator_views import NOW

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Residency, Tier
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import ArtifactStatus, HistoryEntry
from lorafleet_contract.rollout import RolloutResult, RolloutStatus, TrafficShare
from lorafleet_operator.decide.accept import Refusal
from lorafleet_operator.decide.canary import rollout_plan
from lorafleet_operator.decide.intent import Intent
from lorafleet_operator.decide.rollout import (
    MAX_HISTORY,
    SWITCH_GRACE,
    history_after,
    leaves_at,
    may_leave,
    obstacle_to_switch,
    published_after,
    target_of,
)
from lorafleet_operator.decide.views import ObservedPod

OLD, NEW, OTHER = v.artifact("french"), v.artifact("french-v2"), v.artifact("odd")
SECOND = timedelta(seconds=1)


def intent(
    *,
    desired: ArtifactStatus | None = NEW,
    stable: ArtifactStatus | None = OLD,
    history: Sequence[tuple[ArtifactStatus, datetime]] = (),
    deleted: bool = False,
    suspend: bool = False,
    **more: Any,
) -> Intent:
    """An adapter of which `stable` is published and `desired` is wanted."""
    entries = [{"revision": a.revision, "digest": a.digest, "since": since.isoformat()} for a, since in history]
    adapter = v.adapter(status={"history": entries}, deleted=deleted, suspend=suspend)
    published = stable.revision if stable is not None else None
    given = {"refusal": None, "published": published, "failure": None, "owns_name": True, **more}
    return Intent(adapter=adapter, desired=desired, stable=stable, **given)


def has(
    *entries: ObservedAdapter, name: str = "p0", fence: int = 1, slots: int = 8, draining: bool = False, **pod: Any
) -> ObservedPod:
    return v.seen(*entries, pod=v.pod(name, **pod), fence=fence, slots=slots, draining=draining)


def old(**more: Any) -> ObservedAdapter:
    return v.entry("french", **more)


def new(**more: Any) -> ObservedAdapter:
    return v.entry("french-v2", **{"stable": False, **more})


def on_demand(**more: Any) -> ObservedAdapter:
    return new(residency=Residency.ON_DEMAND, tier=Tier.DISK, **more)


PINNED = v.entry("pinned", "pinned", pinned=True)
"""With one slot, nothing else is ever loaded on demand beside it."""
BEFORE_IT_BEGINS = {
    "it is ready where it is": ([has(new())], True),
    "it is loading": ([has(new(state=AdapterState.LOADING))], False),
    "it has failed": ([has(new(state=AdapterState.FAILED))], False),
    "an on-demand copy has failed": ([has(new()), has(on_demand(state=AdapterState.FAILED), name="p1")], False),
    "nobody knows it": ([has(old())], False),
    "one does not know it": ([has(new()), has(old(), name="p1")], False),
    "one downloads it for later": ([has(new()), has(on_demand(state=AdapterState.DOWNLOADING), name="p1")], True),
    "all have it for later": ([has(on_demand())], True),
    "nobody has room for it": ([has(PINNED, on_demand(), slots=1)], False),
    "the last has no room for it": ([has(new()), has(PINNED, on_demand(), slots=1, name="p1")], True),
    "the first has no room for it": ([has(PINNED, on_demand(), slots=1), has(new(), name="p1")], True),
    "there is no pod": ([], False),
    "no pod is ready": ([has(new(), ready=False)], False),
    "the only pod is leaving": ([has(new(), leaving=True)], False),
    "one that is not ready does not know it": ([has(new()), has(name="p1", ready=False)], True),
    "one that is leaving does not know it": ([has(new()), has(name="p1", leaving=True)], True),
    "a ready one says nothing": ([has(new()), v.silent(v.pod("p1"))], False),
    "one that drains does not know it": ([has(draining=True), has(new(), name="p1")], True),
    "the only one drains": ([has(new(), draining=True)], False),
    "one that drains, and one that does not know it": ([has(draining=True), has(name="p1"), has(new())], False),
}
OBSTACLES = {
    "it is ready": (has(new()), None),
    "it is there for later": (has(on_demand(state=AdapterState.DOWNLOADING)), None),
    "it drains": (has(old(), draining=True), None),
    "it says nothing": (v.silent(v.pod()), "does not answer the operator"),
    "it does not know it": (has(old()), "has not taken the revision into its catalogue"),
    "it is loading": (has(new(state=AdapterState.LOADING)), "Loading"),
    "it has failed": (
        has(new(state=AdapterState.FAILED, reason="DiskFull", message="no space left")),
        "DiskFull: no space left",
    ),
}


@pytest.mark.parametrize(("pod", "words"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_a_pod_that_is_in_the_way_of_a_switch_says_how(pod: ObservedPod, words: str | None) -> None:
    assert obstacle_to_switch(pod, "french", NEW.revision) == words


MOVED = has(new(stable=True), old(stable=False))
ONCE_IT_HAS_BEGUN = {
    "all have moved": ([MOVED], True),
    "one is behind": ([MOVED, has(new(), old(), name="p1")], True),
    "the first is behind": ([has(new(), old(), name="p1"), MOVED], True),
    "it is loading again somewhere": ([MOVED, has(new(state=AdapterState.LOADING), name="p1")], True),
    "it has failed somewhere": ([MOVED, has(new(state=AdapterState.FAILED), name="p1")], False),
    "one says that it does not know it": ([MOVED, has(old(), name="p1")], False),
    "one says nothing": ([MOVED, v.silent(v.pod("p1"))], True),
    "one has just begun and was told nothing": ([MOVED, has(name="p1", fence=0)], True),
    "one that is not ready does not know it": ([MOVED, has(old(), name="p1", ready=False)], True),
    "one that drains does not know it": ([MOVED, has(old(), name="p1", draining=True)], True),
}


@pytest.mark.parametrize(("pods", "moves"), BEFORE_IT_BEGINS.values(), ids=BEFORE_IT_BEGINS.keys())
def test_the_name_moves_when_every_pod_that_serves_can_answer(pods: list[ObservedPod], moves: bool) -> None:
    assert target_of(intent(), pods) == (NEW if moves else OLD).revision


@pytest.mark.parametrize(("pods", "moves"), ONCE_IT_HAS_BEGUN.values(), ids=ONCE_IT_HAS_BEGUN.keys())
def test_a_switch_that_has_begun_goes_on_unless_a_pod_says_no(pods: list[ObservedPod], moves: bool) -> None:
    assert target_of(intent(), pods) == (NEW if moves else OLD).revision


def test_what_the_name_means_where_there_is_nothing_to_switch() -> None:
    assert target_of(intent(stable=None), []) == NEW.revision, "the first revision needs no pod that is ready"
    assert target_of(intent(desired=None), [MOVED]) == OLD.revision, "what is wanted is not resolved"
    assert target_of(intent(desired=None, stable=None), [MOVED]) is None
    assert target_of(intent(deleted=True), [MOVED]) == OLD.revision
    assert target_of(intent(suspend=True), [MOVED]) == OLD.revision
    assert target_of(intent(suspend=True, stable=None), [MOVED]) is None
    refused = Refusal(Reason.SOURCE_NOT_ALLOWED, "no", keeps_serving=True)
    assert target_of(intent(refusal=refused), [MOVED]) == OLD.revision


STATUS = {
    "it answers everywhere": ([has(new(stable=True))], True),
    "a pod answers the name with the old one": ([has(new(stable=True)), has(new(), old(), name="p1")], False),
    "a pod does not know it": ([has(new(stable=True)), has(old(), name="p1")], False),
    "the first pod does not know it": ([has(old(), name="p1"), has(new(stable=True))], False),
    "it is loading": ([has(new(stable=True, state=AdapterState.LOADING))], False),
    "it answers on one and loads on another": (
        [has(new(stable=True)), has(new(stable=True, state=AdapterState.LOADING), name="p1")],
        True,
    ),
    "it answers by its revision only": ([has(new())], False),
    "nobody serves": ([has(new(stable=True), ready=False)], False),
    "there is no pod": ([], False),
    "one that does not serve does not know it": ([has(new(stable=True)), has(name="p1", ready=False)], True),
}


@pytest.mark.parametrize(("pods", "moves"), STATUS.values(), ids=STATUS.keys())
def test_status_names_a_revision_that_every_serving_pod_gives_the_name(pods: list[ObservedPod], moves: bool) -> None:
    assert published_after(intent(), NEW.revision, pods) == (NEW if moves else OLD).revision


def test_the_first_revision_is_named_as_soon_as_one_pod_answers() -> None:
    first = intent(stable=None)
    answers, loads = has(new(stable=True)), has(new(stable=True, state=AdapterState.LOADING), name="p1")
    assert published_after(first, NEW.revision, [answers, has(name="p2")]) == NEW.revision
    assert published_after(first, NEW.revision, [loads]) is None
    assert published_after(first, None, [answers]) is None
    assert published_after(intent(), None, [answers]) == OLD.revision
    assert published_after(intent(), OLD.revision, []) == OLD.revision


def past(*artifacts: ArtifactStatus) -> list[tuple[ArtifactStatus, datetime]]:
    return [(artifact, NOW - timedelta(hours=number)) for number, artifact in enumerate(artifacts, 1)]


def test_history_has_each_published_revision_once_at_its_head() -> None:
    def after(given: Intent, published: str | None) -> list[HistoryEntry]:
        return history_after(given.adapter, given, published, NOW)

    given = intent(history=past(OLD))
    known = given.adapter.status.history
    head = HistoryEntry(revision=NEW.revision, digest=NEW.digest, since=NOW, source=NEW.source)
    assert after(given, NEW.revision) == [head, *known]
    assert after(given, OLD.revision) == known
    assert after(given, None) == known
    assert after(given, OTHER.revision) == known, "nobody knows what it is made of"
    first = HistoryEntry(revision=OLD.revision, digest=OLD.digest, since=NOW, source=OLD.source)
    assert after(intent(desired=None), OLD.revision) == [first], "of what status says that is stable"
    again = intent(history=past(OLD, NEW))
    assert [entry.revision for entry in after(again, NEW.revision)] == [a.revision for a in (NEW, OLD, NEW)]


def test_history_is_short() -> None:
    given = intent(history=past(*(v.artifact(f"v{number}") for number in range(MAX_HISTORY))))
    longer = history_after(given.adapter, given, NEW.revision, NOW)
    assert [entry.digest for entry in longer] == [NEW.digest, *(v.digest(f"v{number}") for number in range(9))]
    assert MAX_HISTORY == 10


def test_what_is_wanted_or_answers_stays_and_what_else_there_is_goes() -> None:
    assert not may_leave(intent(), OLD.revision, NEW.revision, NOW), "published"
    assert not may_leave(intent(), NEW.revision, NEW.revision, NOW), "the target"
    assert may_leave(intent(), OTHER.revision, NEW.revision, NOW)
    assert not may_leave(intent(desired=None), OTHER.revision, None, NOW), "it may be what is wanted"


@pytest.mark.parametrize("owns_name", [True, False])
def test_an_adapter_that_is_not_served_leaves_if_the_name_is_its_own(owns_name: bool) -> None:
    refused = Refusal(Reason.NAME_CONFLICT, "taken")
    assert may_leave(intent(deleted=True, owns_name=owns_name), OLD.revision, OLD.revision, NOW) == owns_name
    assert may_leave(intent(refusal=refused, owns_name=owns_name), OLD.revision, OLD.revision, NOW) == owns_name


def test_a_replaced_revision_leaves_when_gateways_have_had_time_to_hear_of_it() -> None:
    switched = NOW - 4 * SECOND
    given = {"desired": NEW, "stable": NEW, "history": [(NEW, switched), (OLD, NOW - timedelta(hours=1))]}
    due = switched + SWITCH_GRACE
    assert SWITCH_GRACE == 6 * SECOND
    assert leaves_at(intent(**given), NOW) == due
    assert leaves_at(intent(**{**given, "history": []}), NOW) == NOW
    acknowledged = intent(**given, published_at=switched + SECOND)
    assert leaves_at(acknowledged, NOW) == due + SECOND
    assert leaves_at(intent(**{**given, "history": []}, published_at=switched), NOW) == due
    restarted = intent(**given, published_at=switched - SECOND)
    assert leaves_at(restarted, NOW) == due, "never before status named the new one"
    assert not may_leave(intent(**given), OLD.revision, NEW.revision, due - SECOND)
    assert may_leave(intent(**given), OLD.revision, NEW.revision, due)


def test_it_may_be_lost_which_revision_was_replaced() -> None:
    """Two leaders that write a status in turn may lose history: nothing leaves just after the name has moved."""
    switched = NOW - 4 * SECOND
    given = intent(desired=NEW, stable=NEW, history=[(NEW, switched)])
    for revision in (OLD.revision, OTHER.revision):
        assert not may_leave(given, revision, NEW.revision, NOW)
        assert may_leave(given, revision, NEW.revision, switched + SWITCH_GRACE)


STEPS: list[dict[str, Any]] = [{"setWeight": 5}, {"pause": {}}]


def by_steps(phase: str, content: ArtifactStatus = NEW, **more: Any) -> RolloutStatus:
    """How far a revision is, of a rollout by STEPS."""
    plan = rollout_plan(v.adapter(rollout={"steps": STEPS}), None)
    assert plan is not None
    times = {"start_time": NOW - timedelta(hours=1), "last_progress_time": NOW - timedelta(hours=1)}
    given = {"revision": content.revision, "phase": phase, "steps_hash": plan.hash, **times, **more}
    return RolloutStatus.model_validate(given)


def stepped(
    rollout: RolloutStatus | None,
    *,
    desired: ArtifactStatus | None = NEW,
    artifact: ArtifactStatus = NEW,
    history: Sequence[tuple[ArtifactStatus, datetime]] = (),
    traffic: Sequence[tuple[ArtifactStatus, int]] = (),
    steps: list[dict[str, Any]] | None = None,
    **more: Any,
) -> Intent:
    """An adapter by steps, of which OLD is published; status was written while `artifact` was wanted."""
    entries = [HistoryEntry(revision=a.revision, digest=a.digest, since=since) for a, since in history]
    shares = [TrafficShare(revision=a.revision, weight=weight) for a, weight in traffic]
    adapter = v.adapter(rollout={"steps": STEPS if steps is None else steps})
    status = adapter.status.model_copy(
        update={"rollout": rollout, "artifact": artifact, "history": entries, "traffic": shares or None}
    )
    given = intent(desired=desired, rollout=rollout_plan(adapter, None), **more)
    return replace(given, adapter=adapter.model_copy(update={"status": status}))


@pytest.mark.parametrize("phase", [None, "Loading", "Progressing", "Paused", "RolledBack"])
def test_the_name_moves_by_steps_when_all_are_done(phase: str | None) -> None:
    ready = [has(new())]
    before = by_steps(phase) if phase is not None else None
    assert target_of(stepped(before), ready) == OLD.revision
    assert target_of(stepped(before), [MOVED]) == OLD.revision, "also where a pod has moved already"
    assert target_of(stepped(by_steps("Promoting")), ready) == NEW.revision
    assert target_of(stepped(by_steps("Promoting")), [has(new()), has(old(), name="p1")]) == OLD.revision
    assert target_of(stepped(by_steps("Promoting", OTHER)), ready) == OLD.revision, "another one is promoted"
    assert target_of(stepped(by_steps("Promoting"), steps=[{"pause": {}}]), ready) == OLD.revision, "by other steps"
    assert target_of(stepped(before, steps=[]), ready) == NEW.revision, "the steps were taken away"
    assert target_of(stepped(before, stable=None), ready) == NEW.revision, "there is nothing to compare it with"


def test_what_was_rolled_back_leaves_pods_unless_nothing_else_is_known() -> None:
    back = by_steps("RolledBack")
    assert stepped(back).artifacts == (OLD,)
    assert stepped(back, steps=[]).artifacts == (NEW, OLD)
    assert stepped(by_steps("Paused")).artifacts == (NEW, OLD)
    assert stepped(by_steps("RolledBack", OTHER)).artifacts == (NEW, OLD)
    lost = replace(stepped(back), stable=None)
    assert lost.artifacts == (NEW,), "the stable one is published, and nobody knows yet what it is made of"


def test_a_revision_that_has_a_part_of_the_requests_stays() -> None:
    shared = stepped(by_steps("Paused"), traffic=[(OLD, 95), (OTHER, 5)])
    assert not may_leave(shared, OTHER.revision, OLD.revision, NOW)
    assert may_leave(stepped(None, traffic=[(OLD, 100), (OTHER, 0)]), OTHER.revision, OLD.revision, NOW)
    assert may_leave(stepped(None, traffic=[(OLD, 100)]), OTHER.revision, OLD.revision, NOW)


def ended(given: Intent, published: ArtifactStatus, rollout: RolloutStatus | None) -> list[tuple[str, str | None, Any]]:
    found = history_after(given.adapter, given, published.revision, NOW, rollout)
    return [(entry.revision, entry.result, entry.reason) for entry in found]


AGO = NOW - timedelta(hours=1)
STABLE = (OLD.revision, None, None)


def test_history_says_what_was_promoted() -> None:
    past = {"history": [(OLD, AGO)]}
    promoted = (NEW.revision, "Promoted", None)
    assert ended(stepped(by_steps("Promoting"), **past), NEW, None) == [promoted, STABLE]
    plain = by_steps("Promoting").model_copy(update={"phase": None})
    assert ended(stepped(plain, **past), NEW, None) == [(NEW.revision, None, None), STABLE]
    assert ended(stepped(by_steps("Promoting", OTHER), desired=NEW, artifact=OTHER, **past), NEW, None) == [
        (NEW.revision, None, None),
        (OTHER.revision, "Superseded", None),
        STABLE,
    ]


def test_history_says_once_what_was_rolled_back() -> None:
    past = {"history": [(OLD, AGO)]}
    back = by_steps("RolledBack", reason="Aborted", end_time=NOW - SECOND)
    gone = (NEW.revision, "RolledBack", "Aborted")
    for before in (None, by_steps("Paused"), by_steps("RolledBack", end_time=AGO), by_steps("RolledBack", OTHER)):
        assert ended(stepped(before, **past), OLD, back) == [gone, STABLE]
    assert (
        history_after(stepped(None, **past).adapter, stepped(None, **past), OLD.revision, NOW, back)[0].since
        == NOW - SECOND
    )
    assert ended(stepped(back, **past), OLD, back) == [STABLE], "it has been said"
    assert ended(stepped(None, desired=None, **past), OLD, back) == [STABLE]
    assert ended(stepped(None, desired=OTHER, **past), OLD, back) == [STABLE]
    assert ended(stepped(by_steps("Loading"), **past), OLD, by_steps("Paused", reason="CanaryPaused")) == [STABLE]


@pytest.mark.parametrize("phase", ["Loading", "Progressing", "Paused", "Promoting"])
def test_history_says_what_another_revision_took_the_place_of(phase: str) -> None:
    past = {"history": [(OLD, AGO)]}
    gone = (NEW.revision, "Superseded", None)
    before = by_steps(phase)
    assert ended(stepped(before, desired=OTHER, **past), OLD, by_steps("Loading", OTHER)) == [gone, STABLE]
    assert ended(stepped(before, desired=OLD, **past), OLD, None) == [gone, STABLE], "the stable one is wanted again"
    assert ended(stepped(before, desired=None, **past), OLD, None) == [gone, STABLE], "what is wanted is not resolved"
    assert ended(stepped(before, **past), OLD, before) == [STABLE]
    assert ended(stepped(before, **past), OLD, None) == [STABLE], "it is the same that is wanted"
    assert ended(stepped(before, desired=OTHER, artifact=OTHER, **past), OLD, None) == [STABLE], (
        "nobody knows its digest"
    )
    assert ended(stepped(by_steps("RolledBack"), desired=OTHER, **past), OLD, None) == [STABLE], "that has been said"


def test_history_keeps_the_stable_revision_however_many_were_given_up() -> None:
    given = stepped(None)
    entries = [
        *(
            HistoryEntry(revision=f"{number:012}", digest=NEW.digest, since=AGO, result=RolloutResult.ROLLED_BACK)
            for number in range(MAX_HISTORY - 1)
        ),
        HistoryEntry(revision=OLD.revision, digest=OLD.digest, since=AGO),
    ]
    adapter = given.adapter.model_copy(update={"status": given.adapter.status.model_copy(update={"history": entries})})
    back = by_steps("RolledBack", reason="Aborted", end_time=NOW)
    longer = history_after(adapter, given, OLD.revision, NOW, back)
    assert len(longer) == MAX_HISTORY
    assert (longer[0].revision, longer[-1].revision) == (NEW.revision, OLD.revision)
    assert longer[-1].since == AGO
