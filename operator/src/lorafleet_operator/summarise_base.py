"""What is said of a base model in its status. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import (
    AdapterCounts,
    AdapterStatus,
    BaseCapacity,
    BaseModelResource,
    BaseModelStatus,
)
from lorafleet_operator.catalogue import Lineup
from lorafleet_operator.conditions import (
    ACCEPTED,
    AVAILABLE,
    READY,
    STALLED,
    Verdict,
    condition_of,
    progress_of,
    said,
    with_times,
)
from lorafleet_operator.objects import selector, url_of
from lorafleet_operator.place import Placement, PodBudget
from lorafleet_operator.views import Claim, ObservedPod, Pod


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """What the API server said of the Deployment when it was applied last."""

    is_observed: bool
    """Whether its controller has seen the latest spec."""
    replicas: int
    updated: int
    available: int
    failure: str = ""
    """Why its pods cannot be made, if so."""


@dataclass(frozen=True, slots=True)
class ApplyProblem:
    """Why the objects of a base are not as its spec says."""

    reason: Reason
    message: str
    is_final: bool


def deployment_facts(body: dict[str, Any]) -> DeploymentFacts:
    """Read the answer to an applied Deployment."""
    status = body.get("status") or {}
    failure = next(
        (
            c.get("message", "")
            for c in status.get("conditions") or []
            if (c["type"], c["status"]) in (("ReplicaFailure", "True"), ("Progressing", "False"))
        ),
        "",
    )
    return DeploymentFacts(
        is_observed=status.get("observedGeneration") == body["metadata"].get("generation"),
        replicas=status.get("replicas") or 0,
        updated=status.get("updatedReplicas") or 0,
        available=status.get("availableReplicas") or 0,
        failure=failure,
    )


def base_status(
    base: BaseModelResource,
    deployment: DeploymentFacts | None,
    problem: ApplyProblem | None,
    pods: Sequence[Pod],
    claim: Claim | None,
    *,
    capacity: BaseCapacity,
    adapters: AdapterCounts,
    now: datetime,
) -> BaseModelStatus:
    """Return the status of a base.

    Args:
        base: the resource.
        deployment: None when it has not been applied by this operator (suspended, or refused).
        problem: why it could not be applied.
        pods: its pods.
        claim: who has its served name.
        capacity: what its pods have room for.
        adapters: how its adapters are.
        now: time of the snapshot.
    """
    num_ready = sum(pod.is_ready and not pod.is_leaving for pod in pods)
    owns_name = claim is None or claim.uid == base.metadata.uid
    verdicts = [
        _accepted(base, problem, claim if not owns_name else None),
        _available(num_ready),
        *_readiness(base, deployment, problem, num_ready, None if owns_name else claim),
    ]
    return BaseModelStatus(
        observed_generation=base.metadata.generation,
        served_name=base.served_name if owns_name else None,
        replicas=deployment.replicas if deployment is not None else sum(not pod.is_leaving for pod in pods),
        ready_replicas=num_ready,
        updated_replicas=deployment.updated if deployment is not None else base.status.updated_replicas,
        selector=",".join(f"{label}={value}" for label, value in selector(base).items()),
        url=url_of(base),
        capacity=capacity,
        adapters=adapters,
        conditions=with_times(verdicts, base.status.conditions, generation=base.metadata.generation, now=now),
    )


def capacity_of(
    budgets: Sequence[PodBudget], pods: Sequence[ObservedPod], lineups: Sequence[Lineup], placement: Placement
) -> BaseCapacity:
    """Return what the pods that answer have room for, and what is assigned of it."""
    answering = {pod.uid for pod in pods if pod.state is not None}
    counted = [budget for budget in budgets if budget.uid in answering]
    page_of = {budget.uid: budget.rank_page for budget in counted}
    slots = pages = 0
    for lineup in lineups:
        for artifact, places in ((lineup.main, placement.pods), (lineup.other, placement.beside)):
            if artifact is not None:
                uids = places.get(lineup.name, frozenset()) & page_of.keys()
                slots += len(uids)
                pages += sum(-(-artifact.rank // page_of[uid]) for uid in uids)
    return BaseCapacity(
        adapter_slots=sum(budget.slots for budget in counted),
        assigned_adapter_slots=slots,
        rank_pages=sum(budget.rank_pages for budget in counted),
        assigned_rank_pages=pages,
        catalogue_bytes=sum(artifact.size_bytes for lineup in lineups for artifact in lineup.intent.artifacts),
    )


def counts_of(statuses: Sequence[AdapterStatus]) -> AdapterCounts:
    """Return how the adapters of a base are."""

    def has(status: AdapterStatus, kind: str) -> bool:
        condition = condition_of(status.conditions, kind)
        return condition is not None and condition.status == "True"

    return AdapterCounts(
        desired=len(statuses),
        ready=sum(has(status, READY) for status in statuses),
        failed=sum(has(status, STALLED) for status in statuses),
    )


def _accepted(base: BaseModelResource, problem: ApplyProblem | None, rival: Claim | None) -> Verdict:
    if problem is not None and problem.is_final:
        return said(ACCEPTED, False, problem.reason, problem.message)
    if rival is not None:
        return said(
            ACCEPTED, False, Reason.NAME_CONFLICT, f"{rival.title} is older and has the name {base.served_name}"
        )
    return said(ACCEPTED, True, Reason.ACCEPTED, "")


def _available(num_ready: int) -> Verdict:
    if num_ready == 0:
        return said(AVAILABLE, False, Reason.NO_READY_PODS, "no pod is ready")
    return said(AVAILABLE, True, Reason.MINIMUM_AVAILABLE, "requests are answered")


def _readiness(
    base: BaseModelResource,
    deployment: DeploymentFacts | None,
    problem: ApplyProblem | None,
    num_ready: int,
    rival: Claim | None,
) -> list[Verdict]:
    status, reason, message, is_stalled = _judge(base, deployment, problem, num_ready, rival)
    ready = said(READY, status, reason, message)
    return [ready, *progress_of(ready, is_stalled=is_stalled, is_waiting=reason is not Reason.SUSPENDED)]


def _judge(
    base: BaseModelResource,
    deployment: DeploymentFacts | None,
    problem: ApplyProblem | None,
    num_ready: int,
    rival: Claim | None,
) -> tuple[bool, Reason, str, bool]:
    wanted = base.spec.replicas
    if problem is not None:
        return False, problem.reason, problem.message, problem.is_final
    if rival is not None:
        return False, Reason.NAME_CONFLICT, f"{rival.title} is older and has the name {base.served_name}", True
    if base.spec.suspend:
        is_settled = base.status.observed_generation == base.metadata.generation and _was_ready(base)
        if is_settled and num_ready >= wanted:
            return True, Reason.PODS_READY, f"{num_ready} of {wanted} pods are ready; suspended", False
        return False, Reason.SUSPENDED, "suspended: changes are not acted on", False
    assert deployment is not None
    if deployment.failure:
        return False, Reason.ROLLING_OUT, deployment.failure, False
    done = min(deployment.updated, deployment.available, num_ready)
    is_current = deployment.is_observed and deployment.replicas == wanted
    if not is_current or done < wanted:
        return False, Reason.ROLLING_OUT, f"{min(done, wanted)} of {wanted} pods are up to date and ready", False
    return True, Reason.PODS_READY, f"{wanted} of {wanted} pods are ready", False


def _was_ready(base: BaseModelResource) -> bool:
    condition = condition_of(base.status.conditions, READY)
    return condition is not None and condition.status == "True"
