"""What status says of adapters, and that it keeps the rules of the API conventions and of kstatus."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from support import operator_views as v
from support.operator_views import NOW

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Residency, Tier
from lorafleet_contract.resources import (
    AdapterCounts,
    AdapterResource,
    AdapterStatus,
    ArtifactStatus,
    BaseModelResource,
)
from lorafleet_operator.decide.adapter_status import MAX_PLACEMENTS, adapter_status
from lorafleet_operator.decide.base_status import counts_of
from lorafleet_operator.decide.catalogue import entries_for, wants_of
from lorafleet_operator.decide.intent import ResolveFailure, RevisionKey, resolve_key
from lorafleet_operator.decide.plan import changes_of, plan_of, questions_of
from lorafleet_operator.decide.views import Claim, ObservedPod

OLD, NEW = v.artifact("french"), v.artifact("french-v2")
P0, P1 = v.pod("p0"), v.pod("p1")


def status(
    adapter: AdapterResource,
    pods: list[ObservedPod],
    *,
    base: BaseModelResource | None = None,
    has_base: bool = True,
    resolutions: dict | None = None,
    claims: dict[str, Claim] | None = None,
    now: datetime = NOW,
) -> AdapterStatus:
    snapshot = v.snapshot(adapter, base=(base or v.base()) if has_base else None, claims=claims)
    plan = plan_of(snapshot, pods, resolutions or {})
    return adapter_status(plan.lineups[0], pods, plan.placement, now=now)


def said(found: AdapterStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in found.conditions}


def kstatus(found: AdapterStatus, generation: int = 2) -> str:
    """What cli-utils, and so Flux, makes of it."""
    conditions = {c.type: c.status for c in found.conditions}
    if found.observed_generation != generation or conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions["Ready"] == "True" else "InProgress"


PLAIN, SERVED = v.adapter(), v.adapter(status=v.served("french"))
SWITCHING = v.adapter(source={"name": "models", "path": "french-v2"}, status=v.served("french"))
UNDECLARED = v.adapter(source={"name": "x", "path": "y"}, status=v.served("french"))
RESTING = v.adapter(status=v.served("french"), suspend=True)
HELD_BACK = v.adapter(source={"name": "models", "path": "z"}, status=v.served("french"), suspend=True)
DELETED = v.adapter(status=v.served("french"), deleted=True)
RETRYABLE = ResolveFailure("SourceUnavailable", "no route", retryable=True)
LASTING = ResolveFailure("UnsafeFormat", "a pickle", retryable=False)
RIVAL = {"french": Claim("u", "LoraAdapter x/y")}
STRICT = v.base(lora={"loadOnDemand": "Disabled"})

answers = v.entry("french")
answered_before = v.entry("french", stable=False)
on_demand = v.entry("french", residency=Residency.ON_DEMAND)
loads = v.entry("french", state=AdapterState.LOADING)
waits = v.entry("french", residency=Residency.ON_DEMAND, state=AdapterState.PENDING)
new = v.entry("french-v2")
new_beside = v.entry("french-v2", stable=False)
new_loads = v.entry("french-v2", stable=False, state=AdapterState.LOADING)
new_failed = v.entry("french-v2", stable=False, state=AdapterState.FAILED, reason="BaseModelMismatch")
new_failed_for_now = v.entry("french-v2", stable=False, state=AdapterState.FAILED, reason="DiskFull")


@dataclass
class Case:
    """What is there, and what is said of it."""

    what: str
    adapter: AdapterResource
    pods: list[ObservedPod]
    ready: str
    is_available: bool
    kstatus: str
    answer: ArtifactStatus | ResolveFailure | None = None
    has_base: bool = True
    base: BaseModelResource | None = None
    claims: dict[str, Claim] | None = None


def p0(*entries: ObservedAdapter, slots: int = 8) -> ObservedPod:
    return v.seen(*entries, pod=P0, slots=slots)


def p1(*entries: ObservedAdapter) -> ObservedPod:
    return v.seen(*entries, pod=P1)


CASES = [
    Case("no pods yet", PLAIN, [], "False NoReadyPods", False, "InProgress"),
    Case("being resolved", PLAIN, [p0()], "False Resolving", False, "InProgress"),
    Case("the source is away", PLAIN, [p0()], "False SourceUnavailable", False, "InProgress", answer=RETRYABLE),
    Case("it is unsafe", PLAIN, [p0()], "False UnsafeFormat", False, "Failed", answer=LASTING),
    Case("it loads", PLAIN, [p0(loads)], "False Loading", False, "InProgress", answer=OLD),
    Case("it answers", PLAIN, [p0(answers)], "True Serving", True, "Current", answer=OLD),
    Case("one pod is silent", SERVED, [p0(answers), v.silent(P1)], "True Serving", True, "Current"),
    Case("by demand only", SERVED, [p0(on_demand, slots=0)], "True Serving", True, "Current"),
    Case("no pods any more", SERVED, [], "False NoReadyPods", False, "InProgress"),
    Case("all pods are silent", SERVED, [v.silent(P0)], "Unknown NoReadyPods", False, "InProgress"),
    Case("no base", SERVED, [], "False BaseNotFound", False, "InProgress", has_base=False),
    Case("the name is taken", PLAIN, [], "False NameConflict", False, "Failed", claims=RIVAL),
    Case("not declared any more", UNDECLARED, [p0(answers)], "False SourceNotAllowed", True, "Failed"),
    Case("new one: resolving", SWITCHING, [p0(answers)], "False Resolving", True, "InProgress"),
    Case("new one: loads", SWITCHING, [p0(answers, new_loads)], "False Loading", True, "InProgress", answer=NEW),
    Case("new one: fails", SWITCHING, [p0(answers, new_failed)], "False BaseModelMismatch", True, "Failed", answer=NEW),
    Case("retryable", SWITCHING, [p0(answers, new_failed_for_now)], "False DiskFull", True, "InProgress", answer=NEW),
    Case(
        "new one: on one of two",
        SWITCHING,
        [p0(answered_before, new), p1(answers, new_beside)],
        "False Loading",
        True,
        "InProgress",
        answer=NEW,
    ),
    Case("new one: answers", SWITCHING, [p0(answered_before, new)], "True Serving", True, "Current", answer=NEW),
    Case("suspended", RESTING, [p0(answers)], "True Serving", True, "Current"),
    Case("suspended and changed", HELD_BACK, [p0(answers)], "False Suspended", True, "InProgress"),
    Case("being deleted", DELETED, [p0(answers)], "False Draining", False, "InProgress"),
    Case("no room, no demand", SERVED, [p0(waits, slots=0)], "False InsufficientSlots", False, "Failed", base=STRICT),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_ready_and_kstatus(case: Case) -> None:
    answer = {resolve_key(case.adapter): case.answer} if case.answer is not None else {}
    found = status(
        case.adapter, case.pods, base=case.base, has_base=case.has_base, resolutions=answer, claims=case.claims
    )
    conditions = said(found)
    assert " ".join(conditions["Ready"]) == case.ready
    assert conditions["Available"][0] == str(case.is_available)
    assert kstatus(found) == case.kstatus
    # present only when true, never both, and with the reason of Ready
    for kind in {"Stalled", "Reconciling"} & conditions.keys():
        assert conditions[kind] == ("True", conditions["Ready"][1])
    assert not {"Stalled", "Reconciling"} <= conditions.keys()
    assert all(c.observed_generation == found.observed_generation == 2 for c in found.conditions)
    assert all(c.message for c in found.conditions)


def test_published_revision_changes_only_when_every_serving_pod_has_switched() -> None:
    answers = {resolve_key(SWITCHING): NEW}
    half = [
        v.seen(v.entry("french", stable=False), v.entry("french-v2"), pod=P0),
        v.seen(v.entry("french"), v.entry("french-v2", stable=False), pod=P1),
    ]
    found = status(SWITCHING, half, resolutions=answers)
    assert (found.stable_revision, found.desired_revision) == (OLD.revision, NEW.revision)
    assert found.stable_artifact == OLD
    both = [v.seen(v.entry("french", stable=False), v.entry("french-v2"), pod=pod) for pod in (P0, P1)]
    found = status(SWITCHING, both, resolutions=answers)
    assert found.stable_revision == NEW.revision
    assert found.stable_artifact is None
    assert (found.history[0].revision, found.history[0].since) == (NEW.revision, NOW)


def test_summary_of_what_was_written_is_the_same() -> None:
    """Otherwise every pass would write."""
    pods = [v.seen(v.entry("french"), pod=P0)]
    first = status(v.adapter(), pods, resolutions={resolve_key(v.adapter()): OLD})
    wire = first.model_dump(mode="json", by_alias=True, exclude_none=True)
    again = status(v.adapter(status=wire), pods, now=NOW + timedelta(hours=1))
    assert again == first


def test_artifact_in_status_is_enough_to_rebuild_a_catalogue() -> None:
    wire = OLD.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert v.adapter(status={"artifact": wire}).status.artifact.resolved == OLD.resolved


def test_placements_are_bounded() -> None:
    pods = [v.seen(v.entry("french"), pod=v.pod(f"p{number}")) for number in range(MAX_PLACEMENTS + 6)]
    found = status(v.adapter(placement={"mode": "All"}, status=v.served("french")), pods)
    assert len(found.placements) == MAX_PLACEMENTS
    assert found.placements_truncated == 6
    assert found.replicas.resident == MAX_PLACEMENTS + 6


def test_what_is_wrong_on_one_of_many_pods_is_listed() -> None:
    """However many others there are, and wherever the pod stands among them."""
    broken = v.entry("french", state=AdapterState.FAILED, reason="DiskFull")
    states = [*([loads] * MAX_PLACEMENTS), broken, answers, answers]
    pods = [v.seen(entry, pod=v.pod(f"p{number:02}")) for number, entry in enumerate(states)]
    found = status(v.adapter(placement={"mode": "All"}, status=v.served("french")), pods)
    assert (len(found.placements), found.placements_truncated) == (MAX_PLACEMENTS, 3)
    assert [p.pod for p in found.placements if p.state == AdapterState.FAILED] == [f"p{MAX_PLACEMENTS}"]


def test_silent_pod_is_still_listed() -> None:
    placements = [{"pod": "p1", "podUid": "uid-p1", "revision": OLD.revision, "state": "Ready", "tier": "Device"}]
    adapter = v.adapter(status=v.served("french", placements=placements))
    found = status(adapter, [v.seen(v.entry("french", residency=Residency.ON_DEMAND), pod=P0), v.silent(P1)])
    assert [(p.pod, p.state, p.tier) for p in found.placements] == [("p1", "Unknown", None)]
    assert said(found)["Resident"] == ("False", "Loading")
    gone = status(adapter, [v.seen(v.entry("french"), pod=P0)])
    assert [p.pod for p in gone.placements] == ["p0"]


def test_fewer_pods_than_replicas_is_said() -> None:
    found = status(v.adapter(placement={"replicas": 3}, status=v.served("french")), [v.seen(v.entry("french"), pod=P0)])
    resident = next(c for c in found.conditions if c.type == "Resident")
    assert resident.status == "True"
    assert "of 3 asked for" in resident.message


def test_last_use_is_told_by_the_hour() -> None:
    used = NOW.timestamp() + 1234
    pods = [v.seen(v.entry("french", last_used=used), pod=P0), v.seen(v.entry("french", last_used=used - 9e6), pod=P1)]
    found = status(v.adapter(status=v.served("french")), pods)
    assert found.last_used == NOW.replace(minute=0, tzinfo=UTC)
    later = v.adapter(status=v.served("french", lastUsed="2027-01-01T00:00:00Z"))
    assert status(later, pods).last_used == datetime(2027, 1, 1, tzinfo=UTC)


def test_loser_of_a_name_says_nothing_of_its_owner() -> None:
    found = status(v.adapter(), [v.seen(v.entry("french"), pod=P0)], claims={"french": Claim("u", "LoraAdapter x/y")})
    assert (found.served_name, found.stable_revision, found.placements) == (None, None, [])


PINS = [v.entry(f"guest{number}", f"guest{number}", pinned=True, rank=8) for number in range(2)]
PUSHED_OUT = v.entry("french", residency=Residency.ON_DEMAND, tier=Tier.DISK, rank=8)
REFUSED_FOR_NOW = v.entry(
    "french", residency=Residency.ON_DEMAND, tier=Tier.DISK, rank=8, state=AdapterState.FAILED, reason="OutOfMemory"
)


@pytest.mark.parametrize("entry", [PUSHED_OUT, REFUSED_FOR_NOW], ids=["ready on disk", "after a request"])
def test_adapter_that_pins_leave_no_room_for_is_not_ready(entry: ObservedAdapter) -> None:
    """Ready means that a request is answered: what no pod can load any more says so, whether somebody asked or not."""
    found = status(SERVED, [p0(entry, *PINS, slots=2)])
    ready = next(c for c in found.conditions if c.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "InsufficientSlots")
    assert "pinned adapters hold 2 of 2 places and 2 of 64 rank pages of p0" in ready.message
    assert said(found)["Available"] == ("False", "InsufficientSlots")
    assert counts_of([found]) == AdapterCounts(desired=1, ready=0, failed=1)
    assert found.stable_revision == OLD.revision


def test_pins_by_rank_pages_count_too() -> None:
    pods = [v.seen(PUSHED_OUT, *PINS, pod=P0, rank_pages=2)]
    assert said(status(SERVED, pods))["Ready"] == ("False", "InsufficientSlots")
    pods = [v.seen(PUSHED_OUT, *PINS, pod=P0, rank_pages=3)]
    assert said(status(SERVED, pods))["Ready"] == ("True", "Serving")


@pytest.mark.parametrize(
    "pods",
    [
        [p0(PUSHED_OUT, *PINS, slots=3)],
        [p0(PUSHED_OUT, *PINS, slots=2), p1(PUSHED_OUT)],
        [p0(v.entry("french", residency=Residency.ON_DEMAND, rank=8), *PINS, slots=2)],
        [p0(PUSHED_OUT, PINS[0], v.entry("x", "x", rank=8), slots=2)],
    ],
    ids=["a place is left", "another pod has room", "it is on the device", "who is there gives way"],
)
def test_adapter_that_some_pod_can_load_is_ready(pods: list[ObservedPod]) -> None:
    assert said(status(SERVED, pods))["Ready"] == ("True", "Serving")


def test_revision_that_nobody_can_load_is_not_switched_to() -> None:
    cold = v.entry("french-v2", residency=Residency.ON_DEMAND, tier=Tier.DISK, rank=8, stable=False)
    found = status(SWITCHING, [p0(v.entry("french"), cold, *PINS, slots=2)], resolutions={resolve_key(SWITCHING): NEW})
    assert found.stable_revision == OLD.revision
    assert said(found)["Ready"] == ("False", "InsufficientSlots")
    assert said(found)["Available"] == ("True", "Serving")


def test_suspended_adapter_keeps_its_placement_pin_and_priority() -> None:
    """What holds for the source holds for all of spec: nothing moves until it is taken back."""
    before = {"mode": "All", "pin": True, "priority": 7}
    wanted = {"mode": "OnDemand", "pin": False, "priority": 0}
    first = status(v.adapter(status=v.served("french"), placement=before), [p0(answers)])
    wire = first.model_dump(mode="json", by_alias=True, exclude_none=True)
    held = v.adapter(status=wire, placement=wanted, suspend=True)
    snapshot = v.snapshot(held, base=v.base())
    pod = p0(v.entry("french", pinned=True))
    plan = plan_of(snapshot, [pod], {})
    (entry,) = entries_for(pod, plan.lineups, plan.placement)
    assert (entry.residency, entry.pinned) == (Residency.RESIDENT, True)
    assert wants_of(plan.lineups, [pod])[0].priority == 7
    found = status(held, [pod])
    assert said(found)["Ready"] == ("False", "Suspended")
    assert said(found)["Suspended"] == ("True", "Suspended")
    assert any("placement of spec waits" in c.message for c in found.conditions if c.type == "Suspended")
    assert found.placement == first.placement
    acted = status(v.adapter(status=wire, placement=wanted), [p0(on_demand)])
    assert said(acted)["Ready"] == ("True", "Serving")
    assert acted.placement is not None
    assert acted.placement.mode == "OnDemand"


def test_suspended_adapter_whose_status_is_lost_goes_on_with_what_pods_answer() -> None:
    """As after a backup without statuses: nothing of spec is acted on, and what serves is told to new pods all the same."""
    spec = {"source": {"name": "models", "path": "french-v2"}}
    lost = v.adapter(**spec, suspend=True)
    pods = [p0(answers), v.seen(pod=P1, fence=0)]
    plan = plan_of(v.snapshot(lost, base=v.base()), pods, {})
    question = RevisionKey(lost.metadata.uid, "french", OLD.revision)
    assert questions_of(plan, pods) == {question: pods[:1]}, "what spec names is not asked for"
    changes = changes_of(plan, v.snapshot(lost, base=v.base()), pods, fence=1)
    assert [change.pod for change in changes] == pods[1:], "nothing is taken from the pod that has it"

    found = status(lost, pods, resolutions={question: OLD})
    assert (found.desired_revision, found.artifact) == (None, None)
    assert (found.stable_revision, found.stable_artifact) == (OLD.revision, OLD)
    assert said(found)["Ready"] == ("False", "Suspended")
    assert said(found)["Available"] == ("True", "Serving")

    wire = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    known = v.adapter(**spec, suspend=True, status=wire)
    plan = plan_of(v.snapshot(known, base=v.base()), pods, {})
    assert questions_of(plan, pods) == {}, "status has it again"
    assert [(e.digest, e.stable) for e in entries_for(pods[1], plan.lineups, plan.placement)] == [(OLD.digest, True)]
    assert status(known, pods) == found
    resumed = v.adapter(**spec, status=wire)
    assert questions_of(plan_of(v.snapshot(resumed, base=v.base()), pods, {}), pods).keys() == {resolve_key(resumed)}


def test_suspension_is_seen_also_without_changes() -> None:
    found = status(RESTING, [p0(answers)])
    assert said(found)["Ready"] == ("True", "Serving")
    assert said(found)["Suspended"] == ("True", "Suspended")
    assert "Suspended" not in said(status(SERVED, [p0(answers)]))
