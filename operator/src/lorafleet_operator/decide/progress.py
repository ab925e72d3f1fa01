"""Whether the rollout of a revision goes on, and what is in its way. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from lorafleet_contract.admin import AdapterState
from lorafleet_contract.names import ANNOTATION_ABORT, ANNOTATION_PROMOTE
from lorafleet_contract.resources import AdapterResource, AdapterStatus
from lorafleet_contract.rollout import RolloutEvidence, RolloutPhase, RolloutStatus
from lorafleet_operator.decide.canary import Given, RolloutPlan, advance, current, look_again_at
from lorafleet_operator.decide.catalogue import AdapterRevisions
from lorafleet_operator.decide.rollout import may_switch, obstacle_to_switch
from lorafleet_operator.decide.views import ObservedPod

MAX_NAMED: Final = 3
"""Pods that a message names; a base may have hundreds."""
MAX_WORDS: Final = 160
"""Characters about one pod."""
LOADING: Final = frozenset({None, RolloutPhase.LOADING, RolloutPhase.PROMOTING})
"""Phases that end when pods have done something; steps have times of their own."""


def rollout_after(
    lineup: AdapterRevisions,
    published: str | None,
    pods: Sequence[ObservedPod],
    now: datetime,
    window: RolloutEvidence | None = None,
) -> RolloutStatus | None:
    """Return how far the desired revision is; None where none is on its way, or nothing could load it.

    The time begins when there is a ready pod: a base that is scaled to zero says so itself. `window` is what gateways
    counted of it in one that is over.
    """
    intent = lineup.intent
    desired, adapter = intent.desired, intent.adapter
    if desired is None or desired.revision == published or not intent.is_served:
        return None
    if intent.rollout is not None and published is not None:
        return _after_steps(lineup, intent.rollout, desired.revision, pods, now=now, window=window)
    if adapter.spec.suspend or not any(pod.is_serving for pod in pods):
        return None
    num_ready = num_serving(intent.name, desired.revision, pods)
    before = adapter.status.rollout
    if before is None or before.revision != desired.revision or before.phase is not None:
        return RolloutStatus(revision=desired.revision, start_time=now, last_progress_time=now, ready_pods=num_ready)
    if num_ready > before.ready_pods:
        return before.model_copy(update={"last_progress_time": now, "ready_pods": num_ready})
    return before


def _after_steps(
    lineup: AdapterRevisions,
    plan: RolloutPlan,
    revision: str,
    pods: Sequence[ObservedPod],
    *,
    now: datetime,
    window: RolloutEvidence | None,
) -> RolloutStatus | None:
    """Return how far a revision is that is rolled out by steps; None where it has not begun and cannot."""
    intent, adapter = lineup.intent, lineup.intent.adapter
    before = current(plan, revision, adapter.status.rollout)
    is_seen = any(pod.is_serving for pod in pods)
    has_begun = before is not None and before.phase is not RolloutPhase.LOADING
    if intent.refusal is not None or not (has_begun or is_seen) or (before is None and adapter.spec.suspend):
        return None
    annotations = adapter.metadata.annotations
    obstacle = None if may_switch(intent.name, revision, pods) else obstacles(intent.name, revision, pods)
    verdict = intent.verdict
    if obstacle is None and verdict is not None and verdict.is_passed is None:
        obstacle = verdict.words
    given = Given(
        plan,
        revision,
        before,
        now,
        num_ready=num_serving(intent.name, revision, pods),
        obstacle=obstacle,
        unverified=verdict.words if verdict is not None and verdict.is_passed is False else None,
        window=window,
        promote=annotations.get(ANNOTATION_PROMOTE, ""),
        abort=annotations.get(ANNOTATION_ABORT, ""),
        is_suspended=adapter.spec.suspend,
        is_idle=all(pod.pod.is_leaving for pod in pods),
    )
    return advance(given)


def num_serving(name: str, revision: str, pods: Sequence[ObservedPod]) -> int:
    """Return how many pods serve a revision."""
    return sum(pod.serves(name, revision) for pod in pods if pod.is_serving)


def deadline_of(adapter: AdapterResource, rollout: RolloutStatus) -> datetime:
    """Return when a rollout that makes no more progress is reported."""
    return rollout.last_progress_time + timedelta(seconds=adapter.spec.rollout.progress_deadline_seconds)


def is_overdue(adapter: AdapterResource, rollout: RolloutStatus | None, now: datetime) -> bool:
    """Whether a rollout has made no progress for too long."""
    return rollout is not None and rollout.phase in LOADING and deadline_of(adapter, rollout) <= now


def next_deadline(statuses: Iterable[tuple[AdapterResource, AdapterStatus]], now: datetime) -> float | None:
    """Return in how many seconds the next rollout is due to be reported; None when none will be."""
    deadlines = [
        deadline_of(adapter, status.rollout)
        for adapter, status in statuses
        if status.rollout is not None and status.rollout.phase in LOADING
    ]
    later = [deadline for deadline in deadlines if deadline > now]
    return (min(later) - now).total_seconds() if later else None


def next_step(rollouts: Iterable[tuple[RolloutPlan | None, RolloutStatus | None]], now: datetime) -> float | None:
    """Return in how many seconds the next step of any rollout may be over by time alone; None when none is timed."""
    found = [look_again_at(plan, status, now) for plan, status in rollouts if plan is not None and status is not None]
    times = [time for time in found if time is not None]
    return (min(times) - now).total_seconds() if times else None


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
