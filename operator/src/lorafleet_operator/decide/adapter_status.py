"""What is said of an adapter in its status. Pure: what pods showed, turned into words."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from lorafleet_contract.adapter_spec import PlacementMode
from lorafleet_contract.admin import AdapterState, ObservedAdapter, Residency
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterReplicas, AdapterStatus, ArtifactStatus, PlacementStatus
from lorafleet_contract.rollout import RolloutEvidence
from lorafleet_operator.decide.adapter_ready import Standing, held_back, readiness_of
from lorafleet_operator.decide.canary import traffic_of
from lorafleet_operator.decide.catalogue import AdapterRevisions
from lorafleet_operator.decide.conditions import (
    ACCEPTED,
    AVAILABLE,
    READY,
    RESIDENT,
    SUSPENDED,
    Verdict,
    progress_of,
    said,
    with_times,
)
from lorafleet_operator.decide.place import Placement
from lorafleet_operator.decide.progress import is_overdue, num_serving, rollout_after
from lorafleet_operator.decide.rollout import history_after, published_after
from lorafleet_operator.decide.verify import verify_after
from lorafleet_operator.decide.views import ObservedPod

MAX_PLACEMENTS: Final = 64
MAX_PLACEMENT_MESSAGE: Final = 512
UNKNOWN: Final = "Unknown"
"""State of a placement on a pod that does not say what it has."""


def adapter_status(
    lineup: AdapterRevisions,
    pods: Sequence[ObservedPod],
    placement: Placement,
    *,
    now: datetime,
    window: RolloutEvidence | None = None,
    is_asleep: bool = False,
) -> AdapterStatus:
    """Return the status of an adapter as its pods are now.

    `window` is what gateways counted in one that is over. With `is_asleep` no pod of the base is expected to be ready.
    """
    intent, adapter = lineup.intent, lineup.intent.adapter
    published = published_after(intent, lineup.target, pods)
    if not intent.is_served:
        published = None
    rollout = rollout_after(lineup, published, pods, now, window)
    verdicts = [
        _accepted(lineup),
        _available(lineup, published, pods, is_asleep=is_asleep),
        _resident(lineup, pods, placement, is_asleep=is_asleep),
        *_readiness(Standing(lineup, published, pods, is_overdue(adapter, rollout, now), rollout, is_asleep)),
        *_suspended(lineup),
    ]
    listed = _placements(lineup, pods) if intent.owns_name else []
    num_left_out = max(0, len(listed) - MAX_PLACEMENTS)
    if num_left_out:  # what is wrong somewhere is never what is left out
        listed = sorted(listed, key=_urgency)[:MAX_PLACEMENTS]
    return AdapterStatus(
        observed_generation=adapter.metadata.generation,
        served_name=intent.name if intent.owns_name else None,
        desired_revision=intent.desired.revision if intent.desired is not None else None,
        stable_revision=published,
        artifact=intent.desired,
        stable_artifact=_stable_artifact(lineup, published),
        placements=listed,
        placements_truncated=num_left_out or None,
        replicas=AdapterReplicas(
            desired=_num_desired(lineup, placement), resident=len(_residents(lineup, pods, placement))
        ),
        history=history_after(adapter, intent, published, now, rollout),
        last_used=_last_used(lineup, pods),
        placement=adapter.placement,
        rollout=rollout,
        traffic=traffic_of(intent.rollout, published, rollout) if intent.rollout and published else None,
        verify=verify_after(adapter, intent.desired, intent.verdict, now),
        conditions=with_times(verdicts, adapter.status.conditions, generation=adapter.metadata.generation, now=now),
    )


def _stable_artifact(lineup: AdapterRevisions, published: str | None) -> ArtifactStatus | None:
    intent = lineup.intent
    if published is None or (intent.desired is not None and intent.desired.revision == published):
        return None
    return intent.stable if intent.stable is not None and intent.stable.revision == published else None


def _num_desired(lineup: AdapterRevisions, placement: Placement) -> int:
    placed = placement.pods.get(lineup.name, frozenset()) if lineup.intent.is_served else frozenset()
    return len(placed) + placement.missing.get(lineup.name, 0) if lineup.intent.is_served else 0


def _residents(lineup: AdapterRevisions, pods: Sequence[ObservedPod], placement: Placement) -> list[str]:
    main = lineup.main
    if main is None:
        return []
    placed = placement.pods.get(lineup.name, frozenset())
    entries = [(pod.uid, pod.own(lineup.name, main.revision)) for pod in pods if pod.uid in placed]
    return [uid for uid, entry in entries if entry is not None and _is_resident(entry)]


def _is_resident(entry: ObservedAdapter) -> bool:
    """Told to keep it, and ready; that others on demand have pushed it out for a moment is no drift."""
    return entry.residency is Residency.RESIDENT and entry.state is AdapterState.READY


def _accepted(lineup: AdapterRevisions) -> Verdict:
    intent = lineup.intent
    if intent.refusal is not None:
        return said(ACCEPTED, False, intent.refusal.reason, intent.refusal.message)
    if intent.desired is not None:
        rank = f"rank {intent.desired.rank}, {intent.desired.size_bytes} bytes"
        return said(ACCEPTED, True, Reason.ACCEPTED, f"revision {intent.desired.revision}: {rank}")
    if intent.failure is not None and not intent.failure.retryable:
        return said(ACCEPTED, False, intent.failure.reason, intent.failure.message)
    return said(ACCEPTED, None, Reason.RESOLVING, "the source is not resolved yet")


def _available(
    lineup: AdapterRevisions, published: str | None, pods: Sequence[ObservedPod], *, is_asleep: bool
) -> Verdict:
    if published is None:
        return said(AVAILABLE, False, Reason.PENDING, "no revision has been ready yet")
    if num_serving(lineup.name, published, pods) == 0:
        if any((entry := pod.own(lineup.name, published)) and not pod.has_room_for(entry) for pod in pods):
            message = f"no pod has room for revision {published} beside what is pinned"
            return said(AVAILABLE, False, Reason.INSUFFICIENT_SLOTS, message)
        if is_asleep and not any(pod.is_serving for pod in pods):
            return said(AVAILABLE, True, Reason.SCALED_TO_ZERO, f"revision {published} answers once a pod has started")
        return said(AVAILABLE, False, Reason.NO_READY_PODS, f"no ready pod answers with revision {published}")
    return said(AVAILABLE, True, Reason.SERVING, f"revision {published} answers")


def _resident(
    lineup: AdapterRevisions, pods: Sequence[ObservedPod], placement: Placement, *, is_asleep: bool
) -> Verdict:
    spec = lineup.intent.adapter.placement
    if lineup.main is None:
        return said(RESIDENT, False, Reason.PENDING, "nothing to place yet")
    if spec.mode is PlacementMode.ON_DEMAND:
        return said(RESIDENT, True, Reason.RESIDENT, "loaded on demand: nothing has to stay")
    missing = placement.missing.get(lineup.name, 0)
    desired, resident = _num_desired(lineup, placement), len(_residents(lineup, pods, placement))
    if missing:
        message = f"resident on {resident} of {desired} pods; {missing} have no room left or do not answer"
        return said(RESIDENT, False, Reason.INSUFFICIENT_SLOTS, message)
    if desired == 0 and spec.mode is PlacementMode.AUTO and any(not pod.pod.is_leaving for pod in pods):
        return said(RESIDENT, True, Reason.RESIDENT, "little is asked of it: loaded on demand")
    if desired == 0 and is_asleep:
        return said(RESIDENT, False, Reason.SCALED_TO_ZERO, "no pod runs")
    if desired == 0:
        return said(RESIDENT, False, Reason.NO_READY_PODS, "there is no pod to place it on")
    if resident < desired:
        return said(RESIDENT, False, Reason.LOADING, f"resident on {resident} of {desired} pods")
    if spec.mode is PlacementMode.FIXED and desired < spec.replicas:
        return said(RESIDENT, True, Reason.RESIDENT, f"resident on all pods: {desired}, of {spec.replicas} asked for")
    return said(RESIDENT, True, Reason.RESIDENT, f"resident on {desired} {'pod' if desired == 1 else 'pods'}")


def _readiness(standing: Standing) -> list[Verdict]:
    """Return Ready, and Stalled or Reconciling where true."""
    found = readiness_of(standing)
    ready = said(READY, found.is_ready, found.reason, found.message)
    is_waiting = found.reason is not Reason.SUSPENDED
    return [ready, *progress_of(ready, is_stalled=found.is_stalled, is_waiting=is_waiting)]


def _suspended(lineup: AdapterRevisions) -> list[Verdict]:
    """Return Suspended where it is true, also while no change waits."""
    adapter = lineup.intent.adapter
    if not adapter.spec.suspend:
        return []
    held = held_back(adapter, lineup.intent.desired)
    waits = f"; {', '.join(held)} of spec {'waits' if len(held) == 1 else 'wait'}" if held else ""
    return [said(SUSPENDED, True, Reason.SUSPENDED, f"changes are not acted on{waits}")]


def _placements(lineup: AdapterRevisions, pods: Sequence[ObservedPod]) -> list[PlacementStatus]:
    """Where it is kept, and where it failed; what is only known is not listed.

    What was kept on a pod that does not say now is still listed: so it is known where it was.
    """
    placements: list[PlacementStatus] = []
    name = lineup.name
    for pod in pods:
        if pod.has_been_told:
            entries = [entry for entry in pod.entries_of(name) if _is_worth_listing(entry)]
            placements.extend(_placement(pod, entry) for entry in sorted(entries, key=lambda entry: entry.revision))
        elif not (pod.pod.is_leaving or pod.is_lost):
            before = (p for p in lineup.intent.adapter.status.placements if p.pod_uid == pod.uid)
            placements.extend(
                PlacementStatus(pod=p.pod, pod_uid=p.pod_uid, revision=p.revision, state=UNKNOWN) for p in before
            )
    return placements


def _urgency(placement: PlacementStatus) -> int:
    """Return what comes first: failures, then what is on its way, then what is as it should be."""
    return {str(AdapterState.FAILED): 0, str(AdapterState.READY): 2}.get(placement.state, 1)


def _is_worth_listing(entry: ObservedAdapter) -> bool:
    return entry.residency is Residency.RESIDENT or entry.state in (AdapterState.FAILED, AdapterState.DRAINING)


def _placement(pod: ObservedPod, entry: ObservedAdapter) -> PlacementStatus:
    return PlacementStatus(
        pod=pod.pod.name,
        pod_uid=pod.uid,
        revision=entry.revision,
        state=entry.state,
        tier=entry.tier,
        reason=entry.reason or None,
        message=entry.message[:MAX_PLACEMENT_MESSAGE] or None,
    )


def _last_used(lineup: AdapterRevisions, pods: Sequence[ObservedPod]) -> datetime | None:
    """Return the hour of the last request that any pod tells of: finer times would be a status write a request."""
    before = lineup.intent.adapter.status.last_used
    name = lineup.name
    told = [entry.last_used for pod in pods for entry in pod.entries_of(name) if entry.last_used is not None]
    if not told or not lineup.intent.owns_name:
        return before
    hour = datetime.fromtimestamp(max(told) // 3600 * 3600, UTC)
    return hour if before is None else max(before, hour)
