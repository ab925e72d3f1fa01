"""What an API server says of the charts, and what they made when the demo installed them."""

import json
from collections.abc import Iterator

import pytest
import yaml
from demo.profiles import CurrentProfile
from support.charts import CHART, Helm, Json, merged, nested
from support.fleet import NAMESPACE, SYSTEM, Fleet
from support.waiting import wait_for

pytestmark = pytest.mark.cluster

EVERYTHING: Json = merged(
    nested("operator", {"replicas": 2, "priorityClassName": "system-cluster-critical", "nodeSelector": {"a": "b"}}),
    nested(
        "operator", {"tolerations": [{"key": "a", "operator": "Exists"}], "extraEnv": [{"name": "A", "value": "b"}]}
    ),
    nested("gateway", {"autoscaling": {"enabled": True}, "extraVolumes": [{"name": "a", "emptyDir": {}}]}),
    nested("gateway", {"extraVolumeMounts": [{"name": "a", "mountPath": "/a"}], "service": {"type": "NodePort"}}),
    nested("networkPolicy", {"enabled": True, "engineNamespaces": [NAMESPACE], "engineFrom": [{"podSelector": {}}]}),
    nested("monitoring.dashboard.enabled", True),
)


@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, {**EVERYTHING, "watchNamespaces": [NAMESPACE]}], ids=["plain", "everything", "watched"]
)
def test_api_server_takes_what_is_rendered(helm: Helm, fleet: Fleet, values: Json) -> None:
    """Every field known, every object legal. Kinds of the Prometheus operator are not there to ask; the test's pod needs its account."""
    objects = [item for item in helm.render(values, release="second").objects if item["kind"] != "Pod"]
    assert len(objects) > 13
    fleet.kube.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(objects)
    )


@pytest.fixture(scope="module")
def restricted(fleet: Fleet) -> Iterator[str]:
    """A namespace that admits restricted pods only."""
    name = "restricted"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    fleet.kube.apply(
        yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    )
    yield name
    fleet.kube.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_pods_are_admitted_where_only_restricted_ones_are(
    helm: Helm, fleet: Fleet, restricted: str, component: str
) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": component, "namespace": restricted}}
    spec = {**helm.render().pod(component), "serviceAccountName": "default"}
    ask = ("create", "--dry-run=server", "-o", "name", "-f", "-")
    assert fleet.kube.kubectl(*ask, stdin=yaml.safe_dump({**pod, "spec": spec})) == f"pod/{component}\n"
    worse = {**spec, "securityContext": {}}
    assert fleet.kube.kubectl(*ask, stdin=yaml.safe_dump({**pod, "spec": worse}), check=False) == "", (
        "the namespace enforces nothing"
    )


@pytest.mark.parametrize(("role", "may_create"), [("view", False), ("edit", True)])
def test_users_of_the_cluster_roles_have_our_kinds(fleet: Fleet, role: str, may_create: bool) -> None:
    user = f"chart-{role}"
    fleet.kube.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", NAMESPACE)

    def may(verb: str) -> bool:
        question = ("auth", "can-i", verb, "loraadapters.lorafleet.io", f"--as={user}", "-n", NAMESPACE)
        return fleet.kube.kubectl(*question, check=False).strip() == "yes"

    wait_for(f"{role} may get", lambda: may("get"))
    assert may("create") == may_create
    fleet.kube.kubectl("delete", "rolebinding", user, "-n", NAMESPACE)


def test_operator_may_do_what_it_must_and_no_more(fleet: Fleet) -> None:
    account = f"system:serviceaccount:{SYSTEM}:lorafleet-operator"

    def may(verb: str, what: str, namespace: str) -> bool:
        return (
            fleet.kube.kubectl("auth", "can-i", verb, what, f"--as={account}", "-n", namespace, check=False).strip()
            == "yes"
        )

    assert may("patch", "deployments.apps", NAMESPACE)
    assert may("get", "secrets/lorafleet-operator-key", SYSTEM)
    for verb in ("get", "list", "create", "patch", "update", "delete"):
        assert not may(verb, "secrets", NAMESPACE)
    assert not may("list", "secrets", SYSTEM)
    assert not may("delete", "pods", NAMESPACE)
    assert not may("patch", "basemodeldeployments.lorafleet.io", NAMESPACE)


def test_admission_keeps_the_operator_to_its_own_objects(fleet: Fleet) -> None:
    """The right to change Deployments is the right to run pods as any account."""
    name, account = "foreign", f"--as=system:serviceaccount:{SYSTEM}:lorafleet-operator"
    owner = {"apiVersion": "lorafleet.io/v1alpha1", "kind": "BaseModelDeployment", "name": "b", "uid": "u"}

    def apply(**metadata: Json | list[Json]) -> str:
        body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE, **metadata}}
        path = f"/api/v1/namespaces/{NAMESPACE}/services"
        ask = ("create", "--raw", f"{path}?dryRun=All", account, "-f", "-")
        return fleet.kube.kubectl(*ask, stdin=json.dumps({**body, "spec": {"ports": [{"port": 80}]}}), check=False)

    assert name in apply(ownerReferences=[owner])
    assert apply() == ""


def test_admission_lets_the_operator_write_of_a_pod_what_it_costs_to_delete(fleet: Fleet) -> None:
    """The right to change pods is the right to change what runs in them."""
    account = f"system:serviceaccount:{SYSTEM}:lorafleet-operator"
    # what kubectl does: it reads before it writes, which the operator may not
    see = ("create", "rolebinding", "patches", "--clusterrole=view", f"--serviceaccount={SYSTEM}:lorafleet-operator")
    fleet.kube.kubectl(*see, "-n", NAMESPACE)

    def pod(name: str, labels: dict[str, str]) -> None:
        metadata = {"name": name, "namespace": NAMESPACE, "labels": labels, "annotations": {"kept": "a"}}
        spec = {
            "containers": [{"name": "engine", "image": "none"}],
            "schedulingGates": [{"name": "lorafleet.io/never"}],
        }
        fleet.kube.apply(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))

    def patch(body: Json, name: str = "ranked") -> bool:
        ask = ("patch", "pod", name, "-n", NAMESPACE, "--type=merge", "--dry-run=server", "-o", "name")
        return bool(fleet.kube.kubectl(*ask, f"--as={account}", "-p", json.dumps(body), check=False))

    def annotate(name: str, value: str | None) -> Json:
        return {"metadata": {"annotations": {name: value}}}

    cost = "controller.kubernetes.io/pod-deletion-cost"
    pod("ranked", {"lorafleet.io/base": "none"})
    pod("foreign", {})
    try:
        wait_for("allowed", lambda: patch(annotate(cost, "1024")))
        assert not patch(annotate("other", "a"))
        assert not patch(annotate("kept", "b"))
        assert not patch(annotate("kept", None))
        assert not patch({"spec": {"containers": [{"name": "engine", "image": "another"}]}})
        assert not patch({"metadata": {"labels": {"lorafleet.io/base": "another"}}})
        assert not patch({"metadata": {"finalizers": ["lorafleet.io/unload"]}})
        assert not patch(annotate(cost, "1024"), "foreign")
    finally:
        fleet.kube.kubectl("delete", "pod", "ranked", "foreign", "-n", NAMESPACE, "--wait=false")
        fleet.kube.kubectl("delete", "rolebinding", "patches", "-n", NAMESPACE)


@pytest.mark.parametrize(
    ("served_name", "is_taken"), [(f"{NAMESPACE}/x", True), ("another/x", False)], ids=["own", "of others"]
)
def test_names_of_others_are_refused(helm: Helm, fleet: Fleet, served_name: str, is_taken: bool) -> None:
    names = [{"namespaces": [NAMESPACE], "prefixes": [f"{NAMESPACE}/"]}]
    objects = helm.render(nested("admission.servedNames", names), release="named").objects
    policy = yaml.safe_dump_all([item for item in objects if item["metadata"]["name"].endswith("served-names")])
    spec = {"servedName": served_name, "baseModelRef": {"name": "b"}, "source": {"name": "m", "path": "x"}}
    metadata = {"name": "named", "namespace": NAMESPACE}
    adapter = {"apiVersion": "lorafleet.io/v1alpha1", "kind": "LoraAdapter", "metadata": metadata, "spec": spec}

    def create() -> str:
        ask = ("create", "--dry-run=server", "-o", "name", "-f", "-")
        return fleet.kube.kubectl(*ask, stdin=yaml.safe_dump(adapter), check=False)

    fleet.kube.apply(policy)
    try:
        wait_for("judged", lambda: bool(create()) == is_taken)
    finally:
        fleet.kube.kubectl("delete", "-f", "-", stdin=policy)


def test_helm_test_passes(fleet: Fleet) -> None:
    printed = fleet.kube.helm("test", "lorafleet", "-n", SYSTEM, "--logs")
    assert "Succeeded" in printed
    assert "/v1/models answers; models: " in printed
    fleet.kube.kubectl("delete", "pod", "lorafleet-test", "-n", SYSTEM)


def test_upgrade_with_the_same_values_changes_no_pod(fleet: Fleet) -> None:
    def pods() -> set[str]:
        return {
            pod["metadata"]["uid"]
            for pod in fleet.kube.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/part-of=lorafleet")["items"]
        }

    before = pods()
    fleet.kube.helm("upgrade", "lorafleet", str(CHART), "-n", SYSTEM, "--reuse-values", "--wait", "--timeout", "60s")
    assert pods() == before


def test_definitions_are_kept_by_helm(fleet: Fleet) -> None:
    for name in ("basemodeldeployments", "loraadapters"):
        crd = fleet.kube.get("crd", f"{name}.lorafleet.io")
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert crd["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def test_notes_lead_on(fleet: Fleet) -> None:
    """What helm printed at the end names objects that are there."""
    notes = fleet.kube.helm("get", "notes", "lorafleet", "-n", SYSTEM)
    assert f"http://lorafleet-gateway.{SYSTEM}.svc/v1" in notes
    assert "rollout status deployment/lorafleet-operator" in notes
    assert "were not found" not in notes  # the definitions are there


def test_manifests_of_the_demo_on_a_cluster_at_hand_are_admitted(fleet: Fleet) -> None:
    """The volume is filled and the servers run from one image; here only the API server is asked."""
    profile = CurrentProfile(name="current", kube=fleet.kube, registry="registry.example.com/team", tag="v1")
    for manifest in profile.support_manifests():
        moved = manifest.replace("namespace: numerals", "namespace: default")
        fleet.kube.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=moved)
