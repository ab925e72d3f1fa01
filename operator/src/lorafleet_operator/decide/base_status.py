"""What is said of a base model in its status. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import (
    AdapterCounts,
    AdapterStatus,
    BaseCapacity,
    BaseModelResource,
    BaseModelStatus,
)
from lorafleet_operator.decide.conditions import (
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
from lorafleet_operator.decide.objects import selector, url_of
from lorafleet_operator.decide.plan import Plan
from lorafleet_operator.decide.views import Claim, ObservedPod, Pod

MAX_PROBLEM: Final = 300


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
    is_overdue: bool = False
    """Its controller has given up waiting."""

    def is_settled(self, num_wanted: int) -> bool:
        """Whether its pods are what its spec says, as far as its controller knows."""
        return self.is_observed and not self.failure and self.replicas == self.updated == self.available == num_wanted


@dataclass(frozen=True, slots=True)
class ApplyProblem:
    """Why the objects of a base are not as its spec says; only a change of something else mends it."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class BaseEvidence:
    """What a base's status is made of, apart from its adapters."""

    deployment: DeploymentFacts | None
    """None when it has not been applied by this operator: suspended, or refused."""
    problem: ApplyProblem | None
    pods: tuple[Pod, ...]
    claim: Claim | None
    """Who has its served name."""

    @property
    def num_ready(self) -> int:
        """Pods that answer requests."""
        return sum(pod.is_ready and not pod.is_leaving for pod in self.pods)

    @property
    def pod_problem(self) -> str:
        """What keeps the first of the pods that do not come up, in the words of Kubernetes; empty without one."""
        found = next((pod for pod in self.pods if pod.problem and not pod.is_ready and not pod.is_leaving), None)
        return f"; {found.name}: {found.problem[:MAX_PROBLEM]}" if found is not None else ""

    def rival(self, base: BaseModelResource) -> Claim | None:
        """Who has the name instead of the base."""
        return self.claim if self.claim is not None and self.claim.uid != base.metadata.uid else None


def deployment_facts(body: dict[str, Any]) -> DeploymentFacts:
    """Read the answer to an applied Deployment."""
    status = body.get("status") or {}
    conditions = {(c["type"], c["status"]): c.get("message", "") for c in status.get("conditions") or []}
    overdue = conditions.get(("Progressing", "False"))
    return DeploymentFacts(
        is_observed=status.get("observedGeneration") == body["metadata"].get("generation"),
        replicas=status.get("replicas") or 0,
        updated=status.get("updatedReplicas") or 0,
        available=status.get("availableReplicas") or 0,
        failure=conditions.get(("ReplicaFailure", "True")) or overdue or "",
        is_overdue=overdue is not None,
    )


def base_status(
    base: BaseModelResource, facts: BaseEvidence, *, capacity: BaseCapacity, adapters: AdapterCounts, now: datetime
) -> BaseModelStatus:
    """Return the status of a base with what its pods have room for and how its adapters are."""
    deployment, rival = facts.deployment, facts.rival(base)
    verdicts = [_accepted(base, facts.problem, rival), _available(facts.num_ready), *_readiness(base, facts)]
    return BaseModelStatus(
        observed_generation=base.metadata.generation,
        served_name=base.served_name if rival is None else None,
        replicas=deployment.replicas if deployment is not None else sum(not pod.is_leaving for pod in facts.pods),
        ready_replicas=facts.num_ready,
        updated_replicas=deployment.updated if deployment is not None else base.status.updated_replicas,
        selector=",".join(f"{label}={value}" for label, value in selector(base).items()),
        url=url_of(base),
        capacity=capacity,
        adapters=adapters,
        conditions=with_times(verdicts, base.status.conditions, generation=base.metadata.generation, now=now),
    )


def capacity_of(plan: Plan, pods: Sequence[ObservedPod]) -> BaseCapacity:
    """Return what the pods that answer have room for, and what is assigned of it."""
    answering = {pod.uid for pod in pods if pod.state is not None}
    counted = [budget for budget in plan.budgets if budget.uid in answering]
    page_of = {budget.uid: budget.rank_page for budget in counted}
    slots = pages = 0
    for lineup in plan.lineups:
        for artifact, places in ((lineup.main, plan.placement.pods), (lineup.other, plan.placement.beside)):
            if artifact is not None:
                uids = places.get(lineup.name, frozenset()) & page_of.keys()
                slots += len(uids)
                pages += sum(-(-artifact.rank // page_of[uid]) for uid in uids)
    return BaseCapacity(
        adapter_slots=sum(budget.slots for budget in counted),
        assigned_adapter_slots=slots,
        rank_pages=sum(budget.rank_pages for budget in counted),
        assigned_rank_pages=pages,
        catalogue_bytes=sum(artifact.size_bytes for lineup in plan.lineups for artifact in lineup.intent.artifacts),
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
    if problem is not None:
        return said(ACCEPTED, False, problem.reason, problem.message)
    if rival is not None:
        return said(ACCEPTED, False, Reason.NAME_CONFLICT, _conflict(base, rival))
    return said(ACCEPTED, True, Reason.ACCEPTED, "")


def _conflict(base: BaseModelResource, rival: Claim) -> str:
    return f"{rival.title} is older and has the name {base.served_name}"


def _available(num_ready: int) -> Verdict:
    if num_ready == 0:
        return said(AVAILABLE, False, Reason.NO_READY_PODS, "no pod is ready")
    return said(AVAILABLE, True, Reason.MINIMUM_AVAILABLE, "requests are answered")


def _readiness(base: BaseModelResource, facts: BaseEvidence) -> list[Verdict]:
    """Return Ready, and Stalled or Reconciling where true."""
    status, reason, message, is_stalled = _judge(base, facts)
    ready = said(READY, status, reason, message)
    return [ready, *progress_of(ready, is_stalled=is_stalled, is_waiting=reason is not Reason.SUSPENDED)]


def _judge(base: BaseModelResource, facts: BaseEvidence) -> tuple[bool, Reason, str, bool]:
    """Return status, reason and message of Ready, and whether nothing will change by itself."""
    wanted, deployment = base.spec.replicas, facts.deployment
    if facts.problem is not None:
        return False, facts.problem.reason, facts.problem.message, True
    if (rival := facts.rival(base)) is not None:
        return False, Reason.NAME_CONFLICT, _conflict(base, rival), True
    if base.spec.suspend:
        return False, Reason.SUSPENDED, "suspended: what spec says is not applied", False
    assert deployment is not None
    if deployment.failure:
        return False, Reason.ROLLING_OUT, deployment.failure + facts.pod_problem, deployment.is_overdue
    done = min(deployment.updated, deployment.available, facts.num_ready, wanted)
    if not deployment.is_settled(wanted) or done < wanted:
        surplus = f", {deployment.replicas - wanted} more to go" if deployment.replicas > wanted else ""
        message = f"{done} of {wanted} pods are up to date and ready{surplus}{facts.pod_problem}"
        return False, Reason.ROLLING_OUT, message, False
    return True, Reason.PODS_READY, f"{wanted} of {wanted} pods are ready", False
