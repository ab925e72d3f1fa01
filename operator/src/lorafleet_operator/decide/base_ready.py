"""Whether a base model is Ready: a chain of checks over its spec, its Deployment and its pods. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from lorafleet_common.kube.errors import KubeError, KubeNotFound, KubeRefused
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import BaseModelResource
from lorafleet_operator.decide.adapter_ready import Finding
from lorafleet_operator.decide.checks import Chain, Check, first_found
from lorafleet_operator.decide.objects import ANNOTATION_TEMPLATE, GROUPS, KINDS
from lorafleet_operator.decide.views import Claim, Pod

MAX_PROBLEM: Final = 600
ASLEEP: Final = "no pod runs: a request starts one, and waits for it"


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
    template: str = ""
    """Which pod template of this operator it has."""

    def is_settled(self, num_wanted: int) -> bool:
        """Whether its pods are what its spec says, as far as its controller knows."""
        return self.is_observed and not self.failure and self.replicas == self.updated == self.available == num_wanted


@dataclass(frozen=True, slots=True)
class ApplyProblem:
    """Why the objects of a base are not as its spec says; only a change of something else mends it."""

    reason: Reason
    message: str


def apply_problem(error: KubeError, base: BaseModelResource) -> ApplyProblem:
    """Return what it means that the API server took an object of a base not, and will not the next time."""
    if base.spec.engine.hosts > 1:  # the one object that a cluster may not serve, or let the operator write
        api, plural = KINDS[GROUPS]
        if isinstance(error, KubeNotFound):
            words = f"the cluster does not serve {GROUPS} of {api}, which engine.hosts needs: install LeaderWorkerSet"
            return ApplyProblem(Reason.API_NOT_FOUND, f"{words} (https://lws.sigs.k8s.io)")
        if isinstance(error, KubeRefused) and plural in error.message:
            words = f"the operator has no rights on {plural} (operator.leaderWorkerSets of the chart)"
            return ApplyProblem(Reason.FORBIDDEN, f"{words}: {error.message}")
    # an object that was deleted to be made again, or an admission that may change its mind
    return ApplyProblem(Reason.APPLY_FAILED, error.message)


@dataclass(frozen=True, slots=True)
class BaseEvidence:
    """What a base's status is made of, apart from its adapters."""

    deployment: DeploymentFacts | None
    """None when it has not been applied by this operator: suspended, or refused."""
    problem: ApplyProblem | None
    pods: tuple[Pod, ...]
    claim: Claim | None
    """Who has its served name."""
    is_asleep: bool = False
    """No pod is expected to be ready: autoscaling asks for none, or the first is on its way."""
    further: tuple[Pod, ...] = ()
    """Where replicas are of several pods each, those beside the first; not counted, but what keeps them keeps the first."""

    @property
    def num_ready(self) -> int:
        """Pods that answer requests."""
        return sum(pod.is_ready and not pod.is_leaving for pod in self.pods)

    def num_updated(self, template: str) -> int:
        """Pods that were made from a template; a Deployment goes on counting old ones until its controller has seen the new."""
        return sum(not pod.is_leaving and pod.built_from == template for pod in self.pods)

    def num_up_to_date(self, template: str) -> int:
        """Ready pods that were made from a template; neither number of a Deployment is this one."""
        return sum(pod.is_ready and not pod.is_leaving and pod.built_from == template for pod in self.pods)

    @property
    def pod_problem(self) -> str:
        """Why the first of the pods that do not come up does not, or what it is doing; empty when all are ready.

        A first pod of a group that runs already waits for the others, so that what these are doing comes before.
        """
        firsts, further = _waiting(self.pods), _waiting(self.further)
        told = [
            *_problems(self.pods, firsts),
            *_problems(self.further, further),
            *((pod, pod.stage) for pod in (*further, *firsts) if pod.stage),
        ]
        return f"; {told[0][0].name}: {told[0][1][:MAX_PROBLEM]}" if told else ""

    def rival(self, base: BaseModelResource) -> Claim | None:
        """Who has the name instead of the base."""
        return self.claim if self.claim is not None and self.claim.uid != base.metadata.uid else None


def _waiting(pods: Iterable[Pod]) -> list[Pod]:
    return [pod for pod in pods if not pod.is_ready and not pod.is_leaving]


def _problems(pods: Iterable[Pod], waiting: Iterable[Pod]) -> list[tuple[Pod, str]]:
    """Of those that are to come up before those that have ended."""
    named = [*waiting, *(pod for pod in pods if pod.has_failed)]
    return [(pod, pod.problem) for pod in named if pod.problem]


def workload_facts(body: dict[str, Any]) -> DeploymentFacts:
    """Read the answer to what has the pods of a base."""
    return groups_facts(body) if body.get("kind") == GROUPS else deployment_facts(body)


def groups_facts(body: dict[str, Any]) -> DeploymentFacts:
    """Read the answer to an applied LeaderWorkerSet, which counts groups.

    Not all of its versions say which generation they have observed; the pods say which template they are of.
    """
    status = body.get("status") or {}
    generation = body["metadata"].get("generation")
    return DeploymentFacts(
        is_observed=status.get("observedGeneration", generation) == generation,
        replicas=status.get("replicas") or 0,
        updated=status.get("updatedReplicas") or 0,
        available=status.get("readyReplicas") or 0,
        template=_template_of((body.get("spec") or {}).get("leaderWorkerTemplate") or {}, "leaderTemplate"),
    )


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
        template=_template_of(body.get("spec") or {}, "template"),
    )


def _template_of(spec: dict[str, Any], name: str) -> str:
    metadata = (spec.get(name) or {}).get("metadata") or {}
    return str((metadata.get("annotations") or {}).get(ANNOTATION_TEMPLATE, ""))


@dataclass(frozen=True, slots=True)
class BaseStanding:
    """A base and what is known of its objects."""

    base: BaseModelResource
    facts: BaseEvidence

    @property
    def deployment(self) -> DeploymentFacts:
        """Its Deployment; the checks before have found that it was applied."""
        assert self.facts.deployment is not None
        return self.facts.deployment


def readiness_of(standing: BaseStanding) -> Finding:
    """Return what Ready says."""
    found = first_found(READINESS, standing)
    if found is not None:
        return found[1]
    wanted = standing.base.spec.replicas
    if wanted == 0 and standing.facts.is_asleep:
        return Finding(Reason.SCALED_TO_ZERO, ASLEEP, is_ready=True)
    return Finding(Reason.PODS_READY, f"{wanted} of {wanted} pods are ready", is_ready=True)


def conflict(base: BaseModelResource, rival: Claim) -> str:
    """Return how a base that has lost its name says so."""
    return rival.refuses(base.served_name)


def _has_a_problem(given: BaseStanding) -> Finding | None:
    problem = given.facts.problem
    return Finding(problem.reason, problem.message, is_stalled=True) if problem is not None else None


def _name_is_taken(given: BaseStanding) -> Finding | None:
    rival = given.facts.rival(given.base)
    if rival is None:
        return None
    return Finding(Reason.NAME_CONFLICT, conflict(given.base, rival), is_stalled=True)


def _is_suspended(given: BaseStanding) -> Finding | None:
    if not given.base.spec.suspend:
        return None
    return Finding(Reason.SUSPENDED, "suspended: what spec says is not applied")


def _has_failed(given: BaseStanding) -> Finding | None:
    deployment = given.deployment
    if not deployment.failure:
        return None
    message = deployment.failure + given.facts.pod_problem
    return Finding(Reason.ROLLING_OUT, message, is_stalled=deployment.is_overdue)


def _is_rolling_out(given: BaseStanding) -> Finding | None:
    wanted, deployment = given.base.spec.replicas, given.deployment
    done = min(given.facts.num_up_to_date(deployment.template), wanted)
    if deployment.is_settled(wanted) and done >= wanted:
        return None
    surplus = f", {deployment.replicas - wanted} more to go" if deployment.replicas > wanted else ""
    message = f"{done} of {wanted} pods are up to date and ready{surplus}{given.facts.pod_problem}"
    return Finding(Reason.ROLLING_OUT, message)


READINESS: Final[Chain[BaseStanding, Finding]] = (
    Check(
        "Its objects could be built and applied.",
        (Reason.INVALID_SPEC, Reason.APPLY_FAILED, Reason.API_NOT_FOUND, Reason.FORBIDDEN),
        "Correct the field, mend what the API server's message names, or install or allow the kind that it names.",
        _has_a_problem,
    ),
    Check(
        "No other resource holds the served name.",
        (Reason.NAME_CONFLICT,),
        "Set another `servedName`, or delete the resource that holds the name.",
        _name_is_taken,
    ),
    Check(
        "The base is not suspended.",
        (Reason.SUSPENDED,),
        "Set `suspend: false`.",
        _is_suspended,
    ),
    Check(
        "Its Deployment can make pods, and does so in time.",
        (Reason.ROLLING_OUT,),
        "Mend what the message says: quota, admission, or what keeps the pod that it names.",
        _has_failed,
    ),
    Check(
        "As many pods as wanted are made from the latest spec and ready, and no others are left.",
        (Reason.ROLLING_OUT,),
        "Wait; if the message names a pod, mend what keeps it.",
        _is_rolling_out,
    ),
)
"""In this order; the first that finds something decides."""
