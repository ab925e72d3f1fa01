"""What is said of a base model in its status. Pure."""

from collections.abc import Sequence
from datetime import datetime

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import (
    AdapterCounts,
    AdapterStatus,
    BaseCapacity,
    BaseModelResource,
    BaseModelStatus,
    ReservedName,
)
from lorafleet_operator.decide.autoscaling import Scaled
from lorafleet_operator.decide.base_ready import (
    ASLEEP,
    ApplyProblem,
    BaseEvidence,
    BaseStanding,
    conflict,
    readiness_of,
)
from lorafleet_operator.decide.conditions import (
    ACCEPTED,
    AVAILABLE,
    READY,
    SCALING_LIMITED,
    STALLED,
    SUSPENDED,
    Verdict,
    progress_of,
    said,
    with_times,
)
from lorafleet_operator.decide.objects import selector, url_of
from lorafleet_operator.decide.optional_objects import NO_FACTS, POOL, REWRITE, Facts, applied_now, verdicts_of
from lorafleet_operator.decide.plan import Plan
from lorafleet_operator.decide.views import Claim, ObservedPod


def base_status(
    base: BaseModelResource,
    facts: BaseEvidence,
    *,
    capacity: BaseCapacity,
    adapters: AdapterCounts,
    now: datetime,
    reserved: Sequence[ReservedName] = (),
    optional: Facts = NO_FACTS,
    scaled: Scaled | None = None,
) -> BaseModelStatus:
    """Return the status of a base with what its pods have room for and how its adapters are.

    `optional` has what was looked at of the objects that a cluster may not serve. `scaled` None: the number of its pods
    follows its spec.
    """
    deployment, rival = facts.deployment, facts.rival(base)
    updated = facts.num_updated(deployment.template) if deployment is not None else base.status.updated_replicas
    verdicts = [_accepted(base, facts.problem, rival), _available(facts), *_readiness(base, facts)]
    verdicts += verdicts_of(base, optional)
    if scaled is not None and scaled.limit is not None:
        verdicts.append(said(SCALING_LIMITED, True, scaled.limit.reason, scaled.limit.message))
    if base.spec.suspend:
        verdicts.append(said(SUSPENDED, True, Reason.SUSPENDED, "what spec says is not applied"))
    return BaseModelStatus(
        observed_generation=base.metadata.generation,
        operator=base.status.operator,
        served_name=base.served_name if rival is None else None,
        replicas=deployment.replicas if deployment is not None else sum(not pod.is_leaving for pod in facts.pods),
        ready_replicas=facts.num_ready,
        updated_replicas=updated,
        selector=",".join(f"{label}={value}" for label, value in selector(base).items()),
        url=url_of(base),
        autoscaling=scaled.status if scaled is not None else None,
        inference_pool=applied_now(base, POOL, optional),
        model_rewrite=applied_now(base, REWRITE, optional),
        capacity=capacity,
        adapters=adapters,
        reserved_names=list(reserved),
        conditions=with_times(verdicts, base.status.conditions, generation=base.metadata.generation, now=now),
    )


def capacity_of(plan: Plan, pods: Sequence[ObservedPod]) -> BaseCapacity:
    """Return what the pods that answer have room for, and what is assigned of it."""
    answering = {pod.uid for pod in pods if pod.state is not None}
    counted = [budget for budget in plan.budgets if budget.uid in answering]
    paging_of = {budget.uid: budget.paging for budget in counted}
    slots = pages = 0
    for lineup in plan.lineups:
        for artifact, places in ((lineup.main, plan.placement.pods), (lineup.other, plan.placement.beside)):
            if artifact is not None:
                uids = places.get(lineup.name, frozenset()) & paging_of.keys()
                slots += len(uids)
                pages += sum(paging_of[uid].pages_of(artifact.rank, artifact.memory_pages) for uid in uids)
    return BaseCapacity(
        adapter_slots=sum(budget.slots for budget in counted),
        assigned_adapter_slots=slots,
        rank_pages=sum(budget.pages for budget in counted),
        assigned_rank_pages=pages,
        catalogue_bytes=sum(artifact.size_bytes for lineup in plan.lineups for artifact in lineup.intent.artifacts),
    )


def counts_of(statuses: Sequence[AdapterStatus]) -> AdapterCounts:
    """Return how the adapters of a base are."""
    true = [one.type for status in statuses for one in status.conditions if one.status == "True"]
    return AdapterCounts(desired=len(statuses), ready=true.count(READY), failed=true.count(STALLED))


def _accepted(base: BaseModelResource, problem: ApplyProblem | None, rival: Claim | None) -> Verdict:
    if problem is not None:
        return said(ACCEPTED, False, problem.reason, problem.message)
    if rival is not None:
        return said(ACCEPTED, False, Reason.NAME_CONFLICT, conflict(base, rival))
    return said(ACCEPTED, True, Reason.ACCEPTED, "")


def _available(facts: BaseEvidence) -> Verdict:
    if facts.num_ready == 0 and facts.is_asleep:
        return said(AVAILABLE, True, Reason.SCALED_TO_ZERO, ASLEEP)
    if facts.num_ready == 0:
        return said(AVAILABLE, False, Reason.NO_READY_PODS, "no pod is ready")
    return said(AVAILABLE, True, Reason.MINIMUM_AVAILABLE, "requests are answered")


def _readiness(base: BaseModelResource, facts: BaseEvidence) -> list[Verdict]:
    """Return Ready, and Stalled or Reconciling where true."""
    found = readiness_of(BaseStanding(base, facts))
    ready = said(READY, found.is_ready, found.reason, found.message)
    return [ready, *progress_of(ready, is_stalled=found.is_stalled, is_waiting=found.reason is not Reason.SUSPENDED)]
