"""`kubectl lorafleet why`: the check that it names is the one by which the operator judged."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import operator_views as v
from support.operator_views import NOW

from lorafleet_contract.admin import AdapterState, Residency, Tier
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, BaseModelResource
from lorafleet_operator.decide.adapter_ready import READINESS, Standing
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.canary import rollout_plan
from lorafleet_operator.decide.checks import first_found
from lorafleet_operator.decide.conditions import READY, condition_of
from lorafleet_operator.decide.intent import ResolveFailure, resolve_key
from lorafleet_operator.decide.plan import plan_of
from lorafleet_operator.decide.progress import is_overdue
from lorafleet_operator.decide.views import Claim, ObservedPod, Snapshot
from lorafleet_operator.kubectl.why import Outcome, Verdict, verdict_of

NEW = v.artifact("french-v2")
P0, P1 = v.pod("p0"), v.pod("p1")
STEPS: list[dict[str, Any]] = [{"setWeight": 5}, {"pause": {"durationSeconds": 60}}, {"setWeight": 25}, {"pause": {}}]
PLAN = rollout_plan(v.adapter(rollout={"steps": STEPS}), None)
assert PLAN is not None
AT_A_STEP = {"stepsHash": PLAN.hash, "stepIndex": 3, "stepStartTime": NOW.isoformat()}
BY_STEPS: list[dict[str, Any]] = [
    {},
    {**AT_A_STEP, "phase": "Progressing", "reason": "CanaryStep"},
    {**AT_A_STEP, "phase": "Paused", "reason": "CanaryPaused"},
    {**AT_A_STEP, "phase": "Paused", "reason": "ProgressDeadlineExceeded"},
    {**AT_A_STEP, "phase": "RolledBack", "reason": "ProgressDeadlineExceeded"},
    {**AT_A_STEP, "phase": "RolledBack", "reason": "Aborted"},
    {**AT_A_STEP, "phase": "Promoting", "reason": "Loading"},
]
"""What the status of a rollout may say beside its times."""
NO_ROOM = {check.expects for check in READINESS if Reason.INSUFFICIENT_SLOTS in check.reasons}


def judged(
    adapter: AdapterResource,
    pods: list[ObservedPod],
    *,
    base: BaseModelResource | None,
    resolutions: dict[Any, Any],
    claims: dict[str, Claim] | None = None,
) -> tuple[AdapterResource, Snapshot, str | None]:
    """The adapter with the status that the operator writes, and what the check expects by which it decided."""
    snapshot = v.snapshot(adapter, base=base, pods=tuple(pod.pod for pod in pods), claims=claims)
    plan = plan_of(snapshot, pods, resolutions)
    lineup = plan.lineups[0]
    status = adapter_status(lineup, pods, plan.placement, now=NOW)
    overdue = is_overdue(adapter, status.rollout, NOW)
    found = first_found(READINESS, Standing(lineup, status.stable_revision, pods, overdue, status.rollout))
    after = adapter.model_copy(update={"status": status})
    return after, v.snapshot(after, base=base, claims=claims), found[0].expects if found is not None else None


@st.composite
def worlds(draw: st.DrawFn) -> tuple[AdapterResource, list[ObservedPod], BaseModelResource | None, dict[Any, Any]]:
    """An adapter, its pods, its base and what pods answered of its source: any mixture."""
    wanted = draw(st.sampled_from(["french", "french-v2"]))
    is_served = draw(st.booleans())
    status = v.served("french") if is_served else None
    if is_served and draw(st.booleans()):
        begun = NOW - timedelta(seconds=draw(st.sampled_from([10, 5000])))
        times = {"startTime": begun.isoformat(), "lastProgressTime": begun.isoformat()}
        status |= {"rollout": {"revision": NEW.revision, **times, "readyPods": 9, **draw(st.sampled_from(BY_STEPS))}}
    adapter = v.adapter(
        status=status,
        deleted=draw(st.booleans() if draw(st.integers(0, 3)) == 0 else st.just(False)),
        suspend=draw(st.integers(0, 4)) == 0,
        placement={"mode": draw(st.sampled_from(["All", "Fixed", "OnDemand"]))},
        rollout={"steps": STEPS} if draw(st.booleans()) else {},
        source={"name": draw(st.sampled_from(["models", "models", "models", "nowhere"])), "path": wanted},
    )
    pods = []
    for pod in (P0, P1)[: draw(st.integers(0, 2))]:
        kind = draw(st.sampled_from(["answers", "answers", "answers", "silent", "drains"]))
        entries = [
            v.entry(
                content,
                state=(state := draw(st.sampled_from(list(AdapterState)))),
                residency=draw(st.sampled_from(list(Residency))),
                stable=draw(st.booleans()),
                tier=draw(st.sampled_from([Tier.DEVICE, Tier.HOST])),
                reason=draw(st.sampled_from(["OutOfMemory", "RankTooHigh", "LoadFailed"]))
                if state is AdapterState.FAILED
                else "",
            )
            for content in draw(st.sets(st.sampled_from(["french", "french-v2"])))
        ]
        entries += [v.entry("other", "other", pinned=True)] * draw(st.integers(0, 1))
        if kind == "silent":
            pods.append(v.silent(pod))
        else:
            pods.append(v.seen(*entries, pod=pod, slots=1 + draw(st.integers(0, 1)), draining=kind == "drains"))
    base = v.base(lora={"loadOnDemand": draw(st.sampled_from(["Enabled", "Disabled"]))})
    answer = draw(
        st.sampled_from(
            [None, "found", ResolveFailure("ArtifactNotFound", "none", False), ResolveFailure("DiskFull", "full", True)]
        )
    )
    key = resolve_key(adapter)
    artifact = v.artifact(wanted)
    resolutions = {} if answer is None else {key: artifact if answer == "found" else answer}
    return adapter, pods, draw(st.sampled_from([base, base, base, None])), resolutions


@given(worlds())
def test_check_that_decided_is_the_one_that_is_named(world: Any) -> None:
    adapter, pods, base, resolutions = world
    after, snapshot, decided = judged(adapter, pods, base=base, resolutions=resolutions)
    verdict = verdict_of(after, snapshot, is_base_hidden=False, is_whole=True)
    ready = condition_of(after.status.conditions, READY)
    assert ready is not None
    failed = [answer for answer in verdict.readiness if answer.outcome is Outcome.FAILED]
    assert verdict.is_ready == (decided is None)
    named = [answer.expects for answer in failed]
    if ready.reason == Reason.INSUFFICIENT_SLOTS and base is not None and base.spec.lora.load_on_demand == "Disabled":
        assert {decided, *named} <= NO_ROOM  # status does not tell these two apart in all cases
        assert len(named) == 1
    else:
        assert named == ([decided] if decided is not None else [])
    assert all((answer.reason, answer.message) == (ready.reason, ready.message) for answer in failed)


def verdict(adapter: AdapterResource, *, base: BaseModelResource | None = None, **known: Any) -> Verdict:
    """What is said of an adapter whose base is there, as somebody sees it who is shown everything."""
    claims = known.pop("claims", None)
    shown = {"is_base_hidden": False, "is_whole": True, **known}
    return verdict_of(adapter, v.snapshot(adapter, base=base or v.base(), claims=claims), **shown)


def failed(verdict: Verdict) -> list[tuple[str | None, str | None]]:
    """Reason and message of each check that failed."""
    answers = [*verdict.acceptance, *verdict.readiness]
    return [(answer.reason, answer.message) for answer in answers if answer.outcome is Outcome.FAILED]


def outcomes(answers: list[Any]) -> set[Outcome]:
    return {answer.outcome for answer in answers}


@pytest.mark.parametrize("mode", ["Enabled", "Disabled"])
def test_two_ways_of_having_no_room_are_told_apart(mode: str) -> None:
    base = v.base(lora={"loadOnDemand": mode})
    state = AdapterState.READY if mode == "Enabled" else AdapterState.PENDING
    entry = v.entry("french", residency=Residency.ON_DEMAND, tier=Tier.HOST, state=state)
    pods = [v.seen(entry, v.entry("other", "other", pinned=True), pod=P0, slots=1)]
    adapter = v.adapter()
    after, snapshot, decided = judged(
        adapter, pods, base=base, resolutions={resolve_key(adapter): v.artifact("french")}
    )
    found = verdict_of(after, snapshot, is_base_hidden=False, is_whole=True)
    assert [answer.expects for answer in found.readiness if answer.outcome is Outcome.FAILED] == [decided]
    assert found.reason == Reason.INSUFFICIENT_SLOTS


def test_all_that_is_wrong_with_the_resources_is_named_at_once() -> None:
    """The operator stops at the first; a person mends all of them."""
    adapter = v.adapter(
        namespace="other", source={"name": "nowhere", "path": "x"}, placement={"mode": "Fixed", "priority": 5}
    )
    found = verdict(adapter)
    reasons = [reason for reason, _ in failed(found)]
    assert reasons == ["BaseNotAllowed", "GuestNotAllowed", "SourceNotAllowed"]
    assert not found.is_ready


def test_without_a_base_nothing_else_is_asked() -> None:
    adapter = v.adapter()
    found = verdict_of(adapter, v.snapshot(adapter, base=None), is_base_hidden=False, is_whole=True)
    assert failed(found) == [("BaseNotFound", "there is no BaseModelDeployment team/base")]
    assert outcomes(found.acceptance[1:]) == {Outcome.SKIPPED}


def with_status(ready: tuple[str, str, str], *, accepted: tuple[str, str] = ("True", "Accepted"), **more: Any) -> Any:
    """An adapter of which the operator says something, at its generation unless `more` says otherwise."""
    conditions = [
        {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW.isoformat()}
        for kind, (status, reason, message) in {"Ready": ready, "Accepted": (*accepted, ready[2])}.items()
    ]
    return v.adapter(status={"observedGeneration": 2, "conditions": conditions, **more})


def test_who_is_not_shown_the_base_is_told_what_the_operator_said() -> None:
    refused = with_status(("False", "GuestNotAllowed", "not that name"), accepted=("False", "GuestNotAllowed"))
    found = verdict_of(refused, v.snapshot(refused, base=None), is_base_hidden=True, is_whole=False)
    assert failed(found) == [("GuestNotAllowed", "not that name")] * 2  # of acceptance, and of readiness
    accepted = with_status(("True", "Serving", "it answers"))
    found = verdict_of(accepted, v.snapshot(accepted, base=None), is_base_hidden=True, is_whole=False)
    assert outcomes(found.acceptance) == {Outcome.OK}
    fresh = v.adapter()
    found = verdict_of(fresh, v.snapshot(fresh, base=None), is_base_hidden=True, is_whole=False)
    assert outcomes(found.acceptance) == {Outcome.UNKNOWN}


def test_name_that_somebody_has_who_is_not_shown_is_known_by_the_operator_only() -> None:
    taken = with_status(("False", "NameConflict", "LoraAdapter x/y has it"), accepted=("False", "NameConflict"))
    assert failed(verdict(taken, is_whole=False))[0] == ("NameConflict", "LoraAdapter x/y has it")
    free = next(a for a in verdict(v.adapter(), is_whole=False).acceptance if "served name, and none" in a.expects)
    assert free.outcome is Outcome.UNKNOWN
    seen = verdict(v.adapter(), claims={"french": Claim("somebody", "LoraAdapter x/y")})
    assert failed(seen) == [("NameConflict", "LoraAdapter x/y has the name french")]


def test_status_of_an_earlier_spec_is_no_answer() -> None:
    found = verdict(with_status(("True", "Serving", "it answers"), observedGeneration=1))
    assert not found.is_ready
    assert not found.is_current
    assert outcomes(found.readiness) == {Outcome.UNKNOWN}


def test_what_a_pod_says_comes_with_what_to_do_about_it() -> None:
    more = {"desiredRevision": NEW.revision}
    found = verdict(with_status(("False", "RankTooHigh", "p0: rank 128"), **more))
    answer = next(answer for answer in found.readiness if answer.outcome is Outcome.FAILED)
    assert answer.hint == "Raise it on the base, or train smaller."
