"""What status says of a base."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from support import operator_views as v
from support.operator_views import NOW

from lorafleet_common.kube.errors import KubeNotFound, KubeRefused
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterCounts, BaseCapacity
from lorafleet_operator.decide.base_ready import (
    ApplyProblem,
    BaseEvidence,
    DeploymentFacts,
    apply_problem,
    deployment_facts,
    workload_facts,
)
from lorafleet_operator.decide.base_status import base_status, capacity_of
from lorafleet_operator.decide.intent import resolve_key
from lorafleet_operator.decide.plan import plan_of
from lorafleet_operator.decide.views import Claim, Pod

UP = DeploymentFacts(is_observed=True, replicas=2, updated=2, available=2)
TWO = (v.pod("p0"), v.pod("p1"))
CRASHING = v.pod("p1", ready=False, problem="CrashLoopBackOff: back-off 10s")


@dataclass
class Case:
    """What is there, and what is said of it."""

    what: str
    ready: str
    message: str
    progress: str | None
    deployment: DeploymentFacts | None = UP
    pods: tuple[Pod, ...] = TWO
    problem: ApplyProblem | None = None
    claim: Claim | None = None
    spec: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("up", "True PodsReady", "2 of 2 pods are ready", None),
    Case("none wanted", "True PodsReady", "0 of 0", None, DeploymentFacts(True, 0, 0, 0), (), spec={"replicas": 0}),
    Case("spec not seen yet", "False RollingOut", "2 of 2 pods", "Reconciling", DeploymentFacts(False, 2, 2, 2)),
    Case("old pods left", "False RollingOut", "and ready, 1 more to go", "Reconciling", DeploymentFacts(True, 3, 2, 2)),
    Case("one is not ready", "False RollingOut", "1 of 2 pods", "Reconciling", pods=(v.pod("p0"),)),
    Case("one crashes", "False RollingOut", "p1: CrashLoopBackOff", "Reconciling", pods=(v.pod("p0"), CRASHING)),
    Case(
        "new pod does not come up",
        "False RollingOut",
        "0 of 1 pods are up to date and ready, 1 more to go; p1: FailedMount: secret",
        "Reconciling",
        DeploymentFacts(True, 2, 1, 1, template="new"),
        (v.pod("p0", built_from="old"), v.pod("p1", ready=False, problem='FailedMount: secret "x" not found')),
        spec={"replicas": 1},
    ),
    Case(
        "pod that ended says why",
        "False RollingOut",
        "0 of 1 pods are up to date and ready; p0: Evicted: the node was low on memory",
        "Reconciling",
        DeploymentFacts(True, 1, 1, 0),
        (
            v.pod("p0", ready=False, leaving=True, has_failed=True, problem="Evicted: the node was low on memory"),
            v.pod("p1", ready=False, stage="loads the base model"),
        ),
        spec={"replicas": 1},
    ),
    Case(
        "what it is doing",
        "False RollingOut",
        "0 of 1 pods are up to date and ready; p0: loads the base model",
        "Reconciling",
        DeploymentFacts(True, 1, 1, 0),
        (v.pod("p0", ready=False, stage="loads the base model"),),
        spec={"replicas": 1},
    ),
    Case("quota", "False RollingOut", "no quota", "Reconciling", DeploymentFacts(True, 0, 0, 0, "no quota"), ()),
    Case("overdue", "False RollingOut", "too late", "Stalled", DeploymentFacts(True, 2, 1, 1, "too late", True)),
    Case(
        "not applied",
        "False ApplyFailed",
        "denied",
        "Stalled",
        None,
        problem=ApplyProblem(Reason.APPLY_FAILED, "denied"),
    ),
    Case("name taken", "False NameConflict", "X a/b has the name", "Stalled", claim=Claim("other", "X a/b")),
    Case("own name", "True PodsReady", "2 of 2", None, claim=Claim("uid-base", "BaseModelDeployment team/base")),
    Case("suspended", "False Suspended", "not applied", None, None, spec={"suspend": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_ready(case: Case) -> None:
    facts = BaseEvidence(case.deployment, case.problem, case.pods, case.claim)
    base = v.base(**{"replicas": 2, **case.spec})
    found = base_status(base, facts, capacity=BaseCapacity(), adapters=AdapterCounts(), now=NOW)
    conditions = {c.type: c for c in found.conditions}
    ready = conditions["Ready"]
    assert f"{ready.status} {ready.reason}" == case.ready
    assert case.message in ready.message
    assert [kind for kind in ("Reconciling", "Stalled") if kind in conditions] == (
        [case.progress] if case.progress else []
    )
    assert ("Suspended" in conditions) == base.spec.suspend
    assert (found.served_name is None) == (case.what == "name taken")
    assert found.selector == "lorafleet.io/base=base"
    assert found.url == "http://base.team.svc"
    assert conditions["Available"].status == str(any(pod.is_ready for pod in case.pods))


FIRST = v.pod("base-0", ready=False, stage="loads the base model")
STUCK = v.pod("base-0-1", ready=False, problem="Unschedulable: 0/8 nodes are available")
CREATED = v.pod("base-0-1", ready=False, stage="its containers are being created: volumes, image")


@pytest.mark.parametrize(
    ("first", "further", "expected"),
    [
        pytest.param(FIRST, (STUCK,), "; base-0-1: Unschedulable: 0/8 nodes are available", id="keeps the first"),
        pytest.param(CRASHING, (STUCK,), "; p1: CrashLoopBackOff: back-off 10s", id="the first has its own problem"),
        pytest.param(FIRST, (CREATED,), f"; base-0-1: {CREATED.stage}", id="the first waits for it"),
        pytest.param(FIRST, (v.pod("base-0-1"),), "; base-0: loads the base model", id="only the first is not ready"),
        pytest.param(
            FIRST,
            (v.pod("base-0-1", ready=False, leaving=True, has_failed=True, problem="Evicted: low on memory"), CREATED),
            "; base-0-1: Evicted: low on memory",
            id="ended",
        ),
        pytest.param(FIRST, (v.pod("base-0-1", ready=False),), "; base-0: loads the base model", id="says nothing"),
    ],
)
def test_of_a_group_any_pod_may_be_what_keeps_it(first: Pod, further: tuple[Pod, ...], expected: str) -> None:
    facts = BaseEvidence(UP, None, (first,), None, further=further)
    assert facts.pod_problem == expected
    assert facts.num_ready == 0, "only first pods count"


@pytest.mark.parametrize(
    ("pods", "updated"),
    [
        ((v.pod("p0", built_from="old"), v.pod("p1", built_from="old")), 0),
        ((v.pod("p0", built_from="old"), v.pod("p1", built_from="new", ready=False)), 1),
        ((v.pod("p0", built_from="new", leaving=True), v.pod("p1", built_from="new")), 1),
    ],
    ids=["just applied", "one comes up", "one is replaced"],
)
def test_updated_never_counts_old_pods(pods: tuple[Pod, ...], updated: int) -> None:
    """A Deployment says two until its controller has seen that its template is another one."""
    said = DeploymentFacts(is_observed=False, replicas=2, updated=2, available=2, template="new")
    facts = BaseEvidence(said, None, pods, None)
    found = base_status(v.base(replicas=2), facts, capacity=BaseCapacity(), adapters=AdapterCounts(), now=NOW)
    assert found.updated_replicas == updated


def test_deployment_is_read_from_the_answer_to_an_apply() -> None:
    body = {"metadata": {"generation": 4}, "status": {"observedGeneration": 4, "replicas": 2, "updatedReplicas": 1}}
    assert deployment_facts(body) == DeploymentFacts(is_observed=True, replicas=2, updated=1, available=0)
    failed = {"type": "ReplicaFailure", "status": "True", "message": "no quota"}
    late = {"type": "Progressing", "status": "False", "message": "timed out"}
    body["status"]["conditions"] = [{"type": "Available", "status": "False"}, failed]
    assert deployment_facts(body).failure == "no quota"
    assert not deployment_facts(body).is_overdue
    body["status"]["conditions"] = [late]
    assert deployment_facts(body).failure == "timed out"
    assert deployment_facts(body).is_overdue
    assert not deployment_facts({"metadata": {"generation": 1}}).is_observed


def test_groups_of_pods_are_read_from_the_answer_to_an_apply() -> None:
    metadata = {"annotations": {"lorafleet.io/template": "abc"}}
    body: dict = {
        "kind": "LeaderWorkerSet",
        "metadata": {"generation": 4},
        "spec": {"leaderWorkerTemplate": {"leaderTemplate": {"metadata": metadata}}},
    }
    assert workload_facts(body) == DeploymentFacts(True, 0, 0, 0, template="abc")
    body["status"] = {"replicas": 3, "updatedReplicas": 2, "readyReplicas": 1}
    assert workload_facts(body) == DeploymentFacts(True, 3, 2, 1, template="abc")
    body["status"]["observedGeneration"] = 3
    assert not workload_facts(body).is_observed, "by a version that says so"
    assert workload_facts({"kind": "Deployment", "metadata": {"generation": 1}}) == DeploymentFacts(False, 0, 0, 0)


def test_a_cluster_without_leader_worker_sets_is_told_what_to_install_and_what_to_allow() -> None:
    base = v.base(engine={"tensorParallelSize": 2, "hosts": 2})
    missing = apply_problem(KubeNotFound(404, "NotFound", "not found"), base)
    assert missing.reason is Reason.API_NOT_FOUND
    assert "install LeaderWorkerSet" in missing.message
    refused = apply_problem(
        KubeRefused(403, "Forbidden", "leaderworkersets.leaderworkerset.x-k8s.io is forbidden"), base
    )
    assert refused.reason is Reason.FORBIDDEN
    assert "operator.leaderWorkerSets of the chart" in refused.message
    assert apply_problem(KubeRefused(403, "Forbidden", "services is forbidden"), base).reason is Reason.APPLY_FAILED
    assert apply_problem(KubeNotFound(404, "NotFound", "not found"), v.base()).reason is Reason.APPLY_FAILED


def test_capacity_counts_pods_that_answer() -> None:
    adapters = (v.adapter("a", placement={"mode": "All"}), v.adapter("b"))
    answers = {resolve_key(a): v.artifact(a.metadata.name, rank=16) for a in adapters}
    pods = [v.seen(pod=TWO[0], slots=4, rank_pages=32), v.silent(v.pod("p1", ready=False))]
    found = capacity_of(plan_of(v.snapshot(*adapters, base=v.base()), pods, answers), pods)
    assert (found.adapter_slots, found.rank_pages) == (4, 32)
    assert found.assigned_adapter_slots in (1, 2)
    assert found.assigned_rank_pages == 2 * found.assigned_adapter_slots
    assert found.catalogue_bytes == 2 * 1600


def test_template_is_read_from_the_answer_too() -> None:
    metadata = {"annotations": {"lorafleet.io/template": "abc"}}
    body = {"metadata": {"generation": 1}, "spec": {"template": {"metadata": metadata}}}
    assert deployment_facts(body).template == "abc"
