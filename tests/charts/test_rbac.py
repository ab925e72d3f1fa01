"""Nobody may do more than its page says, and the page says it in the words of the chart."""

import re
from pathlib import Path

import pytest
from support.charts import Helm, Json, Rendered, merged, nested

ROOT = Path(__file__).resolve().parents[2]
Right = tuple[str, str, str, str]
"""apiGroup, resource, resourceName or nothing, verb."""


def rights(role: Json) -> set[Right]:
    """What a role allows, one by one."""
    return {
        (group, resource, name, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def rights_of_page(component: str, number: int) -> set[Right]:
    """The rights in the RBAC tables of a README: the first is cluster-wide, the second of the own namespace."""
    section = (ROOT / component / "README.md").read_text().partition("## RBAC")[2].partition("\n## ")[0]
    tables = re.findall(r"((?:^\|.*\n)+)", section, re.MULTILINE)
    found: set[Right] = set()
    for line in tables[number].splitlines()[2:]:
        groups, resources, *names, verbs = [cell.replace("`", "").strip() for cell in line.strip("|").split("|")]
        name = names[0] if names else ""
        group = "" if groups == "core" else groups
        found |= {
            (group, resource.strip(), name, verb.strip())
            for resource in resources.split(",")
            for verb in verbs.split(",")
        }
    return found


@pytest.fixture(scope="module")
def plain(helm: Helm) -> Rendered:
    """The chart with no value set."""
    return helm.render()


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_cluster_role_is_that_of_the_page(plain: Rendered, component: str) -> None:
    assert rights(plain.one("ClusterRole", f"lorafleet-{component}")) == rights_of_page(component, 0)


def test_own_role_of_the_operator_is_that_of_the_page(plain: Rendered) -> None:
    assert rights(plain.one("Role", "lorafleet-operator-own")) == rights_of_page("operator", 1)


def test_nobody_reads_secrets_of_others(plain: Rendered) -> None:
    for role in [*plain.of("ClusterRole"), *plain.of("Role")]:
        for _, resource, name, verb in rights(role):
            assert "*" not in (resource, verb)
            if resource == "secrets":
                assert role["metadata"].get("namespace") == "lorafleet-system"
                assert (verb, name) in {
                    ("get", "lorafleet-operator-key"),
                    ("create", ""),
                    ("delete", "lorafleet-operator-key"),  # after the end
                }


def test_rights_on_inference_pools_come_with_their_value(helm: Helm, plain: Rendered) -> None:
    given = helm.render(nested("operator.inferencePools", True)).one("ClusterRole", "lorafleet-operator")
    more = rights(given) - rights(plain.one("ClusterRole", "lorafleet-operator"))
    pools = ("inference.networking.k8s.io", "inferencepools", "")
    rewrites = ("inference.networking.x-k8s.io", "inferencemodelrewrites", "")
    assert more == {(*what, verb) for what in (pools, rewrites) for verb in ("create", "patch", "delete")}


def test_rights_on_leader_worker_sets_come_with_their_value(helm: Helm, plain: Rendered) -> None:
    given = helm.render(nested("operator.leaderWorkerSets", True)).one("ClusterRole", "lorafleet-operator")
    more = rights(given) - rights(plain.one("ClusterRole", "lorafleet-operator"))
    assert more == {("leaderworkerset.x-k8s.io", "leaderworkersets", "", verb) for verb in ("create", "patch")}


def test_watched_namespaces_get_roles_instead(helm: Helm, plain: Rendered) -> None:
    values = merged({"watchNamespaces": ["team-a", "team-b"]}, nested("rbac.kindsEverywhere", False))
    rendered = helm.render(values)
    own = [
        item
        for item in [*rendered.of("ClusterRole"), *rendered.of("ClusterRoleBinding")]
        if "aggregate" not in str(item) and "post-delete" not in str(item)
    ]
    assert not own
    for component in ("operator", "gateway"):
        everywhere = rights(plain.one("ClusterRole", f"lorafleet-{component}"))
        roles = [item for item in rendered.of("Role") if item["metadata"]["name"] == f"lorafleet-{component}"]
        bindings = [item for item in rendered.of("RoleBinding") if item["metadata"]["name"] == f"lorafleet-{component}"]
        assert [item["metadata"]["namespace"] for item in roles] == ["team-a", "team-b"]
        assert [item["metadata"]["namespace"] for item in bindings] == ["team-a", "team-b"]
        assert all(rights(item) == everywhere for item in roles)


def test_rights_on_both_kinds_do_not_go_with_a_namespace(helm: Helm, plain: Rendered) -> None:
    """A Role ends together with the adapters of its namespace, whose finalizer is then nobody's to take off."""
    rendered = helm.render({"watchNamespaces": ["team-a", "team-b"]})
    for component in ("operator", "gateway"):
        name = f"lorafleet-{component}"
        everywhere = rights(plain.one("ClusterRole", name))
        kinds = rights(rendered.one("ClusterRole", f"lorafleet-system-{name}"))
        names = {right for right in kinds if right[1] == "namespaces"}
        assert {group for group, *_ in kinds - names} - {"coordination.k8s.io"} == {"lorafleet.io"}
        assert {(name, verb) for _, _, name, verb in names} <= {("team-a", "get"), ("team-b", "get")}
        assert bool(names) == (component == "operator")
        binding = rendered.one("ClusterRoleBinding", f"lorafleet-system-{name}")
        assert binding["roleRef"]["name"] == f"lorafleet-system-{name}"
        roles = [item for item in rendered.of("Role") if item["metadata"]["name"] == name]
        assert [item["metadata"]["namespace"] for item in roles] == ["team-a", "team-b"]
        assert all(rights(item) == everywhere - kinds for item in roles)


def test_bindings_bind_the_service_accounts(helm: Helm) -> None:
    rendered = helm.render(nested("operator.serviceAccount.name", "someone"))
    account = {"kind": "ServiceAccount", "name": "someone", "namespace": "lorafleet-system"}
    assert rendered.one("ServiceAccount", "someone")["automountServiceAccountToken"] is False
    assert rendered.pod("operator")["serviceAccountName"] == "someone"
    for binding in (
        rendered.one("ClusterRoleBinding", "lorafleet-operator"),
        rendered.one("RoleBinding", "lorafleet-operator-own"),
    ):
        assert binding["subjects"] == [account]
        roles = [*rendered.of("ClusterRole"), *rendered.of("Role")]
        assert binding["roleRef"]["name"] in [
            role["metadata"]["name"] for role in roles if role["kind"] == binding["roleRef"]["kind"]
        ]


@pytest.mark.parametrize(("role", "writes"), [("view", False), ("edit", True), ("admin", True)])
def test_our_kinds_join_the_roles_of_the_cluster(plain: Rendered, role: str, writes: bool) -> None:
    found = plain.one("ClusterRole", f"lorafleet-{role}")
    assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
    for resource in ("basemodeldeployments", "loraadapters"):
        verbs = {verb for _, named, _, verb in rights(found) if named == resource}
        assert {"get", "list", "watch"} <= verbs
        assert ("create" in verbs) == ("delete" in verbs) == writes
    assert not {verb for _, named, _, verb in rights(found) if named.endswith("/status")} - {"get"}


def test_rbac_can_be_left_to_others(helm: Helm) -> None:
    rendered = helm.render(nested("rbac.create", False))
    assert not [item for item in rendered.objects if "Role" in item["kind"]]


def test_operator_is_kept_to_its_own_objects_unless_switched_off(helm: Helm, plain: Rendered) -> None:
    policy = plain.one("ValidatingAdmissionPolicy", "lorafleet-system-lorafleet-operator")["spec"]
    writes = {(resource, verb) for _, resource, _, verb in rights(plain.one("ClusterRole", "lorafleet-operator"))}
    narrowed = {resource for rule in policy["matchConstraints"]["resourceRules"] for resource in rule["resources"]}
    written = {resource for resource, verb in writes if verb in {"create", "patch"} and "/" not in resource}
    assert written - narrowed == {"events"}
    assert "system:serviceaccount:lorafleet-system:lorafleet-operator" in policy["matchConditions"][0]["expression"]
    assert plain.one("ValidatingAdmissionPolicyBinding", "lorafleet-system-lorafleet-operator")
    off = helm.render(nested("admission.restrictOperator", False))
    assert not [item for item in off.objects if "Admission" in item["kind"]]
