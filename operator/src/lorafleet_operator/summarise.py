"""What is said of an adapter in its status. Pure: what pods showed, turned into words."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Residency
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import (
    AdapterReplicas,
    AdapterStatus,
    ArtifactStatus,
    PlacementMode,
    PlacementStatus,
)
from lorafleet_operator.catalogue import Lineup
from lorafleet_operator.conditions import ACCEPTED, AVAILABLE, READY, RESIDENT, Verdict, progress_of, said, with_times
from lorafleet_operator.diff import RETRIED
from lorafleet_operator.place import Placement
from lorafleet_operator.rollout import history_after, published_after
from lorafleet_operator.views import ObservedPod

MAX_PLACEMENTS: Final = 64
MAX_PLACEMENT_MESSAGE: Final = 512


def adapter_status(
    lineup: Lineup, pods: Sequence[ObservedPod], placement: Placement, *, now: datetime
) -> AdapterStatus:
    """Return the status of an adapter as its pods are now."""
    intent, adapter = lineup.intent, lineup.intent.adapter
    published = published_after(intent, lineup.target, pods)
    if not intent.is_served:
        published = None
    verdicts = [
        _accepted(lineup),
        _available(lineup, published, pods),
        _resident(lineup, pods, placement),
        *_readiness(lineup, published, pods),
    ]
    listed = _placements(lineup, pods) if intent.owns_name else []
    return AdapterStatus(
        observed_generation=adapter.metadata.generation,
        served_name=intent.name if intent.owns_name else None,
        desired_revision=intent.desired.revision if intent.desired is not None else None,
        stable_revision=published,
        artifact=intent.desired,
        stable_artifact=_stable_artifact(lineup, published),
        placements=listed[:MAX_PLACEMENTS],
        placements_truncated=len(listed) - MAX_PLACEMENTS if len(listed) > MAX_PLACEMENTS else None,
        replicas=AdapterReplicas(
            desired=_num_desired(lineup, placement), resident=len(_residents(lineup, pods, placement))
        ),
        history=history_after(adapter, intent, published, now),
        conditions=with_times(verdicts, adapter.status.conditions, generation=adapter.metadata.generation, now=now),
    )


def _stable_artifact(lineup: Lineup, published: str | None) -> ArtifactStatus | None:
    intent = lineup.intent
    if published is None or (intent.desired is not None and intent.desired.revision == published):
        return None
    return intent.stable if intent.stable is not None and intent.stable.revision == published else None


def _num_desired(lineup: Lineup, placement: Placement) -> int:
    placed = placement.pods.get(lineup.name, frozenset()) if lineup.intent.is_served else frozenset()
    return len(placed) + placement.missing.get(lineup.name, 0) if lineup.intent.is_served else 0


def _residents(lineup: Lineup, pods: Sequence[ObservedPod], placement: Placement) -> list[str]:
    main = lineup.main
    if main is None:
        return []
    placed = placement.pods.get(lineup.name, frozenset())
    entries = [(pod.uid, pod.own(lineup.name, main.revision)) for pod in pods if pod.uid in placed]
    return [uid for uid, entry in entries if entry is not None and _is_resident(entry)]


def _is_resident(entry: ObservedAdapter) -> bool:
    """Told to keep it, and ready; that others on demand have pushed it out for a moment is no drift."""
    return entry.residency is Residency.RESIDENT and entry.state is AdapterState.READY


def _accepted(lineup: Lineup) -> Verdict:
    intent = lineup.intent
    if intent.refusal is not None:
        return said(ACCEPTED, False, intent.refusal.reason, intent.refusal.message)
    if intent.desired is not None:
        rank = f"rank {intent.desired.rank}, {intent.desired.size_bytes} bytes"
        return said(ACCEPTED, True, Reason.ACCEPTED, f"revision {intent.desired.revision}: {rank}")
    if intent.failure is not None and not intent.failure.is_passing:
        return said(ACCEPTED, False, intent.failure.reason, intent.failure.message)
    return said(ACCEPTED, None, Reason.RESOLVING, "the source is not resolved yet")


def _available(lineup: Lineup, published: str | None, pods: Sequence[ObservedPod]) -> Verdict:
    if published is None:
        return said(AVAILABLE, False, Reason.PENDING, "no revision has been ready yet")
    num = _num_answering(lineup.name, published, pods)
    if num == 0:
        return said(AVAILABLE, False, Reason.NO_READY_PODS, f"no ready pod answers with revision {published}")
    return said(AVAILABLE, True, Reason.SERVING, f"revision {published} answers")


def _num_answering(name: str, revision: str, pods: Sequence[ObservedPod]) -> int:
    entries = (pod.own(name, revision) for pod in pods if pod.is_serving)
    return sum(entry is not None and entry.state is AdapterState.READY for entry in entries)


def _resident(lineup: Lineup, pods: Sequence[ObservedPod], placement: Placement) -> Verdict:
    spec = lineup.intent.adapter.spec.placement
    if lineup.main is None:
        return said(RESIDENT, False, Reason.PENDING, "nothing to place yet")
    if spec.mode is PlacementMode.ON_DEMAND:
        return said(RESIDENT, True, Reason.RESIDENT, "loaded on demand: nothing has to stay")
    missing = placement.missing.get(lineup.name, 0)
    desired, resident = _num_desired(lineup, placement), len(_residents(lineup, pods, placement))
    if missing:
        message = f"{missing} of {desired} pods have no room left; it is loaded there on demand"
        return said(RESIDENT, False, Reason.INSUFFICIENT_SLOTS, message)
    if desired == 0:
        return said(RESIDENT, False, Reason.NO_READY_PODS, "there is no pod to place it on")
    if resident < desired:
        return said(RESIDENT, False, Reason.LOADING, f"resident on {resident} of {desired} pods")
    return said(RESIDENT, True, Reason.RESIDENT, f"resident on {desired} {'pod' if desired == 1 else 'pods'}")


def _readiness(lineup: Lineup, published: str | None, pods: Sequence[ObservedPod]) -> list[Verdict]:
    """Return Ready, and Stalled or Reconciling where true."""
    status, reason, message, is_stalled = _judge(lineup, published, pods)
    ready = said(READY, status, reason, message)
    is_waiting = reason is not Reason.SUSPENDED
    return [ready, *progress_of(ready, is_stalled=is_stalled, is_waiting=is_waiting)]


def _judge(
    lineup: Lineup, published: str | None, pods: Sequence[ObservedPod]
) -> tuple[bool | None, Reason | str, str, bool]:
    """Return status, reason and message of Ready, and whether nothing will change by itself."""
    intent = lineup.intent
    if intent.is_deleted:
        return False, Reason.DRAINING, "being unloaded", False
    if intent.refusal is not None:
        return False, intent.refusal.reason, intent.refusal.message, intent.refusal.is_final
    if _is_held_back(lineup):
        return False, Reason.SUSPENDED, "suspended: changes are not acted on", False
    desired = intent.desired
    if desired is None:
        return _judge_unresolved(lineup, pods)
    ready = [pod for pod in pods if pod.pod.is_ready and not pod.pod.is_leaving]
    serving = [pod for pod in ready if pod.is_serving]
    if not serving:
        if any(pod.state is None for pod in ready):
            return None, Reason.NO_READY_PODS, "pods are ready and do not answer the operator", False
        return False, Reason.NO_READY_PODS, "the base has no ready pod", False
    entries = [(pod, pod.own(intent.name, desired.revision)) for pod in serving]
    failed = [(pod, entry) for pod, entry in entries if entry is not None and entry.state is AdapterState.FAILED]
    if failed:
        pod, entry = min(failed, key=lambda pair: (pair[1].reason in RETRIED, pair[0].pod.name))
        return False, _word(entry.reason), f"{pod.pod.name}: {entry.message}", entry.reason not in RETRIED
    num_answering = sum(entry is not None and entry.state is AdapterState.READY for _, entry in entries)
    num_knowing = sum(entry is not None and entry.stable for _, entry in entries)
    if published == desired.revision and num_answering and num_knowing == len(serving):
        return True, Reason.SERVING, f"revision {desired.revision} answers", False
    if num_answering == 0 and _can_never_load(lineup, serving):
        return False, Reason.INSUFFICIENT_SLOTS, "no pod has room for it, and loadOnDemand is Disabled", True
    message = f"revision {desired.revision} is ready on {num_answering} of {len(serving)} pods"
    return False, Reason.LOADING, message, False


def _judge_unresolved(lineup: Lineup, pods: Sequence[ObservedPod]) -> tuple[bool | None, Reason | str, str, bool]:
    failure = lineup.intent.failure
    if failure is not None:
        return False, _word(failure.reason), failure.message, not failure.is_passing
    if not any(pod.is_writable for pod in pods):
        return False, Reason.NO_READY_PODS, "the base has no pod yet that could resolve the source", False
    return False, Reason.RESOLVING, "a pod is resolving the source", False


def _is_held_back(lineup: Lineup) -> bool:
    """Whether suspension keeps something from happening."""
    adapter, desired = lineup.intent.adapter, lineup.intent.desired
    if not adapter.spec.suspend:
        return False
    return desired is None or desired.source != adapter.spec.source or adapter.spec.digest not in (None, desired.digest)


def _can_never_load(lineup: Lineup, serving: Sequence[ObservedPod]) -> bool:
    """Whether every pod was told to load it on demand only: with demand refused, it stays out."""
    main = lineup.main
    entries = [pod.own(lineup.name, main.revision) if main is not None else None for pod in serving]
    return lineup.is_on_demand_refused and all(e is not None and e.residency is Residency.ON_DEMAND for e in entries)


def _placements(lineup: Lineup, pods: Sequence[ObservedPod]) -> list[PlacementStatus]:
    """Where it is kept, and where it failed; what is only known is not listed."""
    return [
        PlacementStatus(
            pod=pod.pod.name,
            pod_uid=pod.uid,
            revision=entry.revision,
            state=entry.state,
            tier=entry.tier,
            reason=entry.reason or None,
            message=entry.message[:MAX_PLACEMENT_MESSAGE] or None,
        )
        for pod in pods
        for entry in sorted(pod.entries_of(lineup.name), key=lambda entry: entry.revision)
        if entry.residency is Residency.RESIDENT or entry.state in (AdapterState.FAILED, AdapterState.DRAINING)
    ]


def _word(reason: str) -> str:
    return reason or Reason.LOAD_FAILED
