"""Whether the rollout of a revision goes on, and what is in its way. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from lorafleet_contract.admin import AdapterState
from lorafleet_contract.resources import AdapterResource, AdapterStatus
from lorafleet_contract.rollout import RolloutStatus
from lorafleet_operator.decide.catalogue import AdapterRevisions
from lorafleet_operator.decide.rollout import obstacle_to_switch
from lorafleet_operator.decide.views import ObservedPod

MAX_NAMED: Final = 3
"""Pods that a message names; a base may have hundreds."""
MAX_WORDS: Final = 160
"""Characters about one pod."""


def rollout_after(
    lineup: AdapterRevisions, published: str | None, pods: Sequence[ObservedPod], now: datetime
) -> RolloutStatus | None:
    """Return how far the desired revision is; None where none is on its way, or nothing could load it.

    The time begins when there is a ready pod: a base that is scaled to zero says so itself.
    """
    intent = lineup.intent
    desired, adapter = intent.desired, intent.adapter
    if desired is None or desired.revision == published or not intent.is_served or adapter.spec.suspend:
        return None
    if not any(pod.is_serving for pod in pods):
        return None
    num_ready = sum(pod.serves(intent.name, desired.revision) for pod in pods if pod.is_serving)
    before = adapter.status.rollout
    if before is None or before.revision != desired.revision:
        return RolloutStatus(revision=desired.revision, start_time=now, last_progress_time=now, ready_pods=num_ready)
    if num_ready > before.ready_pods:
        return before.model_copy(update={"last_progress_time": now, "ready_pods": num_ready})
    return before


def deadline_of(adapter: AdapterResource, rollout: RolloutStatus) -> datetime:
    """Return when a rollout that makes no more progress is reported."""
    return rollout.last_progress_time + timedelta(seconds=adapter.spec.rollout.progress_deadline_seconds)


def is_overdue(adapter: AdapterResource, rollout: RolloutStatus | None, now: datetime) -> bool:
    """Whether a rollout has made no progress for too long."""
    return rollout is not None and deadline_of(adapter, rollout) <= now


def next_deadline(statuses: Iterable[tuple[AdapterResource, AdapterStatus]], now: datetime) -> float | None:
    """Return in how many seconds the next rollout is due to be reported; None when none will be."""
    deadlines = [deadline_of(adapter, status.rollout) for adapter, status in statuses if status.rollout is not None]
    later = [deadline for deadline in deadlines if deadline > now]
    return (min(later) - now).total_seconds() if later else None


def obstacles(name: str, revision: str, pods: Sequence[ObservedPod]) -> str:
    """Return which ready pods are in the way of a revision, and how, in words; only what is in the way first."""
    ready = [pod for pod in pods if pod.pod.is_ready and not pod.pod.is_leaving]
    for obstacle in (obstacle_to_switch, _obstacle_to_serving, _obstacle_to_publication):
        found = [(pod.pod.name, words) for pod in ready if (words := obstacle(pod, name, revision)) is not None]
        if found:
            named = [f"{pod}: {words[:MAX_WORDS]}" for pod, words in sorted(found)[:MAX_NAMED]]
            if len(found) > MAX_NAMED:
                named.append(f"and {len(found) - MAX_NAMED} more pods")
            return "; ".join(named)
    return "no ready pod is in its way"


def _obstacle_to_serving(pod: ObservedPod, name: str, revision: str) -> str | None:
    entry = pod.own(name, revision)
    if entry is None or pod.serves(name, revision):
        return None
    if entry.state is not AdapterState.READY:
        return str(entry.state)
    return f"no room beside what is pinned: {pod.pinned_words}"


def _obstacle_to_publication(pod: ObservedPod, name: str, revision: str) -> str | None:
    entry = pod.own(name, revision)
    return None if entry is None or entry.stable else "loaded, and does not answer the bare name with it"
