"""Which revision the public name means, and when a revision may leave. Pure.

A new revision is known to every pod and ready where it is placed before the name moves; the status says so only after
the pods do; the old revision leaves only after gateways have had time to read the status.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from lorafleet_contract.admin import AdapterState, Residency
from lorafleet_contract.resources import AdapterResource, ArtifactStatus, HistoryEntry
from lorafleet_contract.rollout import RolloutPhase, RolloutResult, RolloutStatus
from lorafleet_operator.decide.canary import revisions_of
from lorafleet_operator.decide.intent import Intent
from lorafleet_operator.decide.views import ObservedPod

SWITCH_GRACE: Final = timedelta(seconds=6)
"""How long the old revision stays after the status was seen to name the new one: gateways send the old one until they know."""
MAX_HISTORY: Final = 10


def target_of(intent: Intent, pods: Sequence[ObservedPod]) -> str | None:
    """Return the revision that the bare name should mean on pods."""
    desired = intent.artifacts[0] if intent.artifacts else None
    if desired is None or desired.revision == intent.published or intent.adapter.spec.suspend:
        return intent.published
    has_begun = _has_begun(intent.name, desired.revision, pods)
    if not intent.is_verified and not has_begun:
        return intent.published
    if intent.published is None:
        return desired.revision
    if intent.rollout is not None and intent.phase is not RolloutPhase.PROMOTING:
        return intent.published
    may = _may_go_on if has_begun else may_switch
    return desired.revision if may(intent.name, desired.revision, pods) else intent.published


def _has_begun(name: str, revision: str, pods: Sequence[ObservedPod]) -> bool:
    """Whether some pod answers the bare name with the revision already."""
    return any(_means(pod, name, revision) for pod in pods)


def _means(pod: ObservedPod, name: str, revision: str) -> bool:
    """Whether a pod takes the bare name for the revision."""
    entry = pod.own(name, revision)
    return entry is not None and entry.stable


def _may_go_on(name: str, revision: str, pods: Sequence[ObservedPod]) -> bool:
    """Whether a switch that has begun goes on: only what a pod says turns it back, never that one says nothing."""
    told = [pod for pod in pods if pod.is_serving and pod.has_been_told]
    entries = [pod.own(name, revision) for pod in told]
    return all(entry is not None and entry.state is not AdapterState.FAILED for entry in entries)


def published_after(intent: Intent, target: str | None, pods: Sequence[ObservedPod]) -> str | None:
    """Return the revision that status names: the target once it answers and every serving pod knows it as the stable one."""
    if target is None:
        return intent.published
    serving = [pod for pod in pods if pod.is_serving]
    moved = [pod for pod in serving if _means(pod, intent.name, target)]
    is_answered = any(pod.serves(intent.name, target) for pod in moved)
    if is_answered and (moved == serving or intent.published is None):
        return target
    return intent.published


def may_switch(name: str, revision: str, pods: Sequence[ObservedPod]) -> bool:
    """Whether requests for the bare name can be answered with the revision wherever they arrive."""
    ready = [pod for pod in pods if pod.pod.is_ready and not pod.pod.is_leaving]
    if any(obstacle_to_switch(pod, name, revision) is not None for pod in ready):
        return False
    return any(pod.serves(name, revision) for pod in ready if pod.is_serving)


def obstacle_to_switch(pod: ObservedPod, name: str, revision: str) -> str | None:
    """Return why the bare name cannot mean a revision while a ready pod is as it is, in words; None where it can."""
    if pod.state is None:
        return "does not answer the operator"
    if pod.state.draining:
        return None
    entry = pod.own(name, revision)
    if entry is None:
        return "has not taken the revision into its catalogue"
    if entry.state is AdapterState.FAILED:
        return f"{entry.reason}: {entry.message}"
    if entry.residency is Residency.RESIDENT and entry.state is not AdapterState.READY:
        return str(entry.state)
    return None


def history_after(
    adapter: AdapterResource, intent: Intent, published: str | None, now: datetime, rollout: RolloutStatus | None = None
) -> list[HistoryEntry]:
    """Return the history with what has come to its end at the head: a rollout that was given up, a revision that is stable.

    Args:
        adapter: with the history so far, and the rollout as it was.
        intent: of the adapter.
        published: the stable revision from now on.
        now: the time.
        rollout: as it is from now on.
    """
    history = list(adapter.status.history)
    stable = next((entry for entry in history if entry.was_stable), None)
    if (ended := _given_up(adapter, intent, published, now, rollout)) is not None:
        history.insert(0, ended)
    if published is not None and (stable is None or stable.revision != published):
        artifact = next((a for a in (*intent.artifacts, intent.stable) if a and a.revision == published), None)
        before = adapter.status.rollout
        is_promoted = before is not None and before.phase is not None and before.revision == published
        result = RolloutResult.PROMOTED if is_promoted else None
        if artifact is not None:
            stable = _entry(artifact, now, result)
            history.insert(0, stable)
    kept = history[:MAX_HISTORY]
    return kept if stable is None or stable in kept else [*kept[:-1], stable]


def _given_up(
    adapter: AdapterResource, intent: Intent, published: str | None, now: datetime, rollout: RolloutStatus | None
) -> HistoryEntry | None:
    """Return what is to be remembered of a rollout by steps that ends now, and not as it should."""
    before = adapter.status.rollout
    was_open = before is not None and before.phase not in (None, RolloutPhase.ROLLED_BACK)
    if before is not None and was_open and before.revision != published:
        artifact, desired = adapter.status.artifact, intent.desired
        is_another = desired is None or desired.revision != before.revision
        if is_another and artifact is not None and artifact.revision == before.revision:
            return _entry(artifact, now, RolloutResult.SUPERSEDED)
    if rollout is None or rollout.phase is not RolloutPhase.ROLLED_BACK or intent.desired is None:
        return None
    is_known = before is not None and (before.revision, before.end_time) == (rollout.revision, rollout.end_time)
    if is_known or intent.desired.revision != rollout.revision:
        return None
    return _entry(intent.desired, rollout.end_time or now, RolloutResult.ROLLED_BACK, rollout.reason)


def _entry(
    artifact: ArtifactStatus, since: datetime, result: RolloutResult | None, reason: str | None = None
) -> HistoryEntry:
    return HistoryEntry(
        revision=artifact.revision,
        digest=artifact.digest,
        since=since,
        result=result,
        reason=reason,
        source=artifact.source,
        resolved_revision=artifact.resolved_revision,
    )


def may_leave(intent: Intent, revision: str, target: str | None, now: datetime) -> bool:
    """Whether a revision that is no longer wanted may be removed from pods now."""
    if intent.is_deleted or not intent.is_served:
        return intent.owns_name
    if revision in (intent.published, target) or intent.desired is None:
        return False
    if revision in revisions_of(intent.adapter.status.traffic):
        return False
    return leaves_at(intent, now) <= now


def leaves_at(intent: Intent, now: datetime) -> datetime:
    """Return when revisions that are no longer wanted may be removed: not until gateways know who answers for the name.

    It does not matter which of them was published before: a status that two leaders have written may have lost that.
    """
    history = intent.adapter.status.history
    switched = [history[0].since] if history else []
    if intent.published_at is not None:
        switched.append(intent.published_at)
    return max(switched) + SWITCH_GRACE if switched else now
