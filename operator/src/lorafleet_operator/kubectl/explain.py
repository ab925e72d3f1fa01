"""What is known of one adapter beside its checks: revisions, pods, base, operator, Events. Pure."""

from collections.abc import Sequence
from datetime import datetime

from lorafleet_common.paths import Json
from lorafleet_contract.base import Wire
from lorafleet_contract.resources import AdapterResource, PlacementStatus
from lorafleet_operator.cluster.lease import DURATION_SECONDS
from lorafleet_operator.decide.conditions import AVAILABLE, RESIDENT, STALLED, SUSPENDED, condition_of
from lorafleet_operator.decide.views import Snapshot
from lorafleet_operator.kubectl.views import AdapterLine, adapter_line, base_line
from lorafleet_operator.kubectl.why import Verdict


class EventLine(Wire):
    """An Event about the adapter."""

    time: datetime | None
    type: str
    reason: str
    message: str


class Explanation(Wire):
    """The answer of `why`."""

    adapter: AdapterLine
    verdict: Verdict
    facts: list[str]
    placements: list[PlacementStatus]
    events: list[EventLine]
    notes: list[str]


def explanation_of(
    adapter: AdapterResource,
    snapshot: Snapshot,
    verdict: Verdict,
    *,
    events: Sequence[Json],
    notes: Sequence[str],
    lease_age_seconds: float | None,
) -> Explanation:
    """Return everything that is known of an adapter."""
    return Explanation(
        adapter=adapter_line(adapter),
        verdict=verdict,
        facts=[*_revisions(adapter), *_conditions(adapter), *_base(snapshot), *_operator(snapshot, lease_age_seconds)],
        placements=adapter.status.placements,
        events=[event_line(event) for event in events],
        notes=list(notes),
    )


def event_line(event: Json) -> EventLine:
    """Read an Event."""
    time = event.get("lastTimestamp") or event.get("eventTime")
    return EventLine(
        time=datetime.fromisoformat(time) if time else None,
        type=event.get("type") or "",
        reason=event.get("reason") or "",
        message=event.get("message") or "",
    )


def _revisions(adapter: AdapterResource) -> list[str]:
    status = adapter.status
    if status.stable_revision is None:
        facts = ["no revision answers"]
    else:
        facts = [f"revision {status.stable_revision} is the stable one: {adapter.served_name} means it"]
    if status.desired_revision not in (None, status.stable_revision):
        facts.append(f"revision {status.desired_revision} is the desired one")
    if (rollout := status.rollout) is not None:
        facts.append(
            f"it has been on its way since {rollout.start_time:%Y-%m-%d %H:%M:%S} UTC, and was ready on up to "
            f"{rollout.ready_pods} pods; last progress {rollout.last_progress_time:%Y-%m-%d %H:%M:%S} UTC"
        )
    if status.placements_truncated:
        facts.append(f"{status.placements_truncated} more placements are not listed in its status")
    return facts


def _conditions(adapter: AdapterResource) -> list[str]:
    facts = []
    for kind in (AVAILABLE, RESIDENT, STALLED, SUSPENDED):
        found = condition_of(adapter.status.conditions, kind)
        if found is not None:
            facts.append(f"{kind} is {found.status}: {found.reason}: {found.message}")
    return facts


def _base(snapshot: Snapshot) -> list[str]:
    if snapshot.base is None:
        return []
    line = base_line(snapshot.base)
    where = f"BaseModelDeployment {line.namespace}/{line.name}"
    facts = [
        f"{where}: Ready is {line.standing.ready}: {line.standing.reason}: {line.standing.message}; "
        f"{line.ready_pods} of {line.pods} pods, {line.assigned_slots} of {line.slots} slots assigned"
    ]
    waiting = [pod for pod in snapshot.pods if not pod.is_ready and not pod.is_leaving]
    return [
        *facts,
        *(f"Pod {pod.name} is not ready: {pod.problem or pod.stage or 'nothing says why'}" for pod in waiting),
    ]


def _operator(snapshot: Snapshot, age_seconds: float | None) -> list[str]:
    if snapshot.base is None:
        return []
    operator = snapshot.base.status.operator
    if not operator:
        return ["no operator works on the base"]
    if age_seconds is None:
        return [f"operator {operator} works on the base"]
    if age_seconds > DURATION_SECONDS:
        silence = f"has not renewed its Lease for {age_seconds:.0f} s by this machine's clock"
        return [f"operator {operator} works on the base, and {silence}: it is away"]
    return [f"operator {operator} works on the base, and renewed its Lease {age_seconds:.0f} s ago"]
