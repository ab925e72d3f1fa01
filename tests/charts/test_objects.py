"""What the chart makes, as the programs, the kubelet and an auditor read it."""

import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support.charts import CHART, Helm, Json, Rendered, nested

from lorafleet_contract.names import ADMIN_PORT, LABEL_BASE, LABEL_RANKS_OF, PUBLIC_PORT
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.config import read_config as read_gateway_config
from lorafleet_operator.config import OperatorConfig
from lorafleet_operator.config import read_config as read_operator_config

COMPONENTS = ("operator", "gateway")


@pytest.fixture(scope="module")
def plain(helm: Helm) -> Rendered:
    """The chart with no value set."""
    return helm.render()


def started(container: Json) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment that a container's program sees; fields of the pod stand for themselves."""
    environment = {
        variable["name"]: variable.get("value") or variable["valueFrom"]["fieldRef"]["fieldPath"]
        for variable in container.get("env", [])
    }
    return container["args"][1:], environment


def test_operator_is_started_with_options_that_it_has(plain: Rendered) -> None:
    container = plain.container("operator")
    assert [*container["command"], container["args"][0]] == ["python3", "-m", "lorafleet_operator", "run"]
    assert read_operator_config(*started(container)) == OperatorConfig(
        engine_image="lorafleet/inference:0.1.0",
        namespace="metadata.namespace",
        pod_name="metadata.name",
        gateway_selector=",".join(
            f"app.kubernetes.io/{name}" for name in ("name=lorafleet", "instance=lorafleet", "component=gateway")
        ),
        log_format="json",
    )


def test_gateway_is_started_with_options_that_it_has(plain: Rendered) -> None:
    container = plain.container("gateway")
    assert [*container["command"], container["args"][0]] == ["python3", "-m", "lorafleet_gateway", "serve"]
    assert read_gateway_config(*started(container)) == GatewayConfig(
        port=8000, drain_grace_seconds=5, drain_timeout_seconds=120, log_format="json"
    )


def test_values_reach_the_programs(helm: Helm) -> None:
    rendered = helm.render(
        {
            "imageRegistry": "registry.example.com/team/",
            "watchNamespaces": ["team-a", "team-b"],
            "fullnameOverride": "lorafleet",
            "operator": {
                "resyncSeconds": 7.5,
                "workers": 9,
                "keySecret": "own-key",
                "logLevel": "debug",
                "extraArgs": ["--lease=other"],
            },
            "gateway": {"drainTimeoutSeconds": 300, "extraEnv": [{"name": "LORAFLEET_MAX_IN_FLIGHT", "value": "7"}]},
        }
    )
    operator = read_operator_config(*started(rendered.container("operator")))
    assert (operator.resync_seconds, operator.workers, operator.key_secret, operator.log_level) == (
        7.5,
        9,
        "own-key",
        "debug",
    )
    assert (operator.watch_namespaces, operator.lease) == (("team-a", "team-b"), "other")
    assert operator.engine_image == "registry.example.com/team/lorafleet/inference:0.1.0"
    assert rendered.container("operator")["image"] == "registry.example.com/team/lorafleet/operator:0.1.0"
    gateway = read_gateway_config(*started(rendered.container("gateway")))
    assert (gateway.watch_namespaces, gateway.max_in_flight) == (("team-a", "team-b"), 7)
    assert rendered.pod("gateway")["terminationGracePeriodSeconds"] == 5 + 300 + 5


def test_operator_hears_the_gateways_of_its_release_and_no_other_pod(helm: Helm) -> None:
    rendered = helm.render(nested("nameOverride", "fleet"))
    config = read_operator_config(*started(rendered.container("operator")))
    wanted = dict(term.split("=") for term in config.gateway_selector.split(","))
    labels = {
        component: rendered.one("Deployment", f"lorafleet-{component}")["spec"]["template"]["metadata"]["labels"]
        for component in ("operator", "gateway")
    }
    assert wanted.items() <= labels["gateway"].items()
    assert not wanted.items() <= labels["operator"].items()
    assert wanted == rendered.one("Deployment", "lorafleet-gateway")["spec"]["selector"]["matchLabels"]
    ports = [port["containerPort"] for port in rendered.container("gateway")["ports"] if port["name"] == "metrics"]
    assert ports == [config.gateway_port]


def test_image_digest_wins(helm: Helm) -> None:
    digest = "sha256:" + "a" * 64
    rendered = helm.render(
        nested("gateway.image", {"repository": "r.example.com:5000/gateway", "tag": "v1", "digest": digest})
    )
    assert rendered.container("gateway")["image"] == f"r.example.com:5000/gateway@{digest}"


@pytest.mark.parametrize("component", COMPONENTS)
def test_pods_meet_the_restricted_standard(plain: Rendered, component: str) -> None:
    pod, container = plain.pod(component), plain.container(component)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "volumes"} & set(pod)
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_selectors_select_their_own_pods_only(plain: Rendered, component: str) -> None:
    deployment = plain.one("Deployment", f"lorafleet-{component}")
    labels = {
        c: plain.one("Deployment", f"lorafleet-{c}")["spec"]["template"]["metadata"]["labels"] for c in COMPONENTS
    }
    labels["test"] = plain.one("Pod", "lorafleet-test")["metadata"]["labels"]
    assert labels[component]["app.kubernetes.io/component"] == component
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [item["spec"]["selector"] for item in plain.of("Service") if component in item["metadata"]["name"]]
    selectors += [
        item["spec"]["selector"]["matchLabels"]
        for item in plain.of("PodDisruptionBudget")
        if component in item["metadata"]["name"]
    ]
    selectors += [
        entry["labelSelector"]["matchLabels"] for entry in plain.pod(component).get("topologySpreadConstraints", [])
    ]
    assert len(selectors) == {"operator": 1, "gateway": 4}[component]
    for selector in selectors:
        assert [c for c, found in labels.items() if selector.items() <= found.items()] == [component]


def test_only_programs_that_ask_the_api_server_have_a_token(plain: Rendered) -> None:
    assert [plain.pod(component)["automountServiceAccountToken"] for component in COMPONENTS] == [True, True]
    assert plain.one("Pod", "lorafleet-test")["spec"]["automountServiceAccountToken"] is False


def test_a_new_chart_version_alone_restarts_nothing(plain: Rendered) -> None:
    for component in COMPONENTS:
        labels = plain.one("Deployment", f"lorafleet-{component}")["spec"]["template"]["metadata"]["labels"]
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_gateway_service_has_the_address_of_the_documentation(plain: Rendered) -> None:
    service = plain.one("Service", "lorafleet-gateway")
    assert service["metadata"]["namespace"] == "lorafleet-system"
    assert service["spec"]["type"] == "ClusterIP"
    port = service["spec"]["ports"][0]
    assert (port["port"], port["targetPort"]) == (80, "http")
    assert plain.container("gateway")["ports"] == [
        {"name": "http", "containerPort": 8000, "protocol": "TCP"},
        {"name": "metrics", "containerPort": 8002, "protocol": "TCP"},
    ]


@pytest.mark.parametrize(
    ("component", "live", "ready"), [("operator", "/healthz", "/readyz"), ("gateway", "/health", "/ready")]
)
def test_probes_are_those_of_the_programs(plain: Rendered, component: str, live: str, ready: str) -> None:
    container = plain.container(component)
    assert container["livenessProbe"]["httpGet"] == {"path": live, "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": ready, "port": "http"}
    assert f"`{live}`" in (CHART.parents[1] / component / "README.md").read_text()


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_a_slow_start_is_no_reason_to_end_a_program(plain: Rendered, component: str) -> None:
    """On a node without spare CPU, Python takes longer than any bound for programs that run; killed for it, it would never be up."""
    container = plain.container(component)
    probe, live = container["startupProbe"], container["livenessProbe"]
    assert probe["httpGet"] == live["httpGet"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_a_node_that_stalls_does_not_end_what_runs_on_it(plain: Rendered, component: str) -> None:
    """As of engine pods: what does not answer is out of its service in seconds, and ending it helps only where it hangs for good."""
    container = plain.container(component)
    live, ready = container["livenessProbe"], container["readinessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] == 60
    assert ready["periodSeconds"] * ready["failureThreshold"] <= 10


def test_one_stall_takes_no_gateway_out_of_its_service(plain: Rendered) -> None:
    """All gateways stall together under load, and a Service without endpoints refuses everybody."""
    probe = plain.container("gateway")["readinessProbe"]
    assert (probe["failureThreshold"], probe["timeoutSeconds"]) == (3, 2)


@pytest.mark.parametrize(
    ("url", "port"), [("http://prometheus.monitoring:9090/prom", 9090), ("https://thanos.example", 443)]
)
def test_the_prometheus_of_rollouts_is_told_to_the_operator_and_may_be_reached(
    helm: Helm, plain: Rendered, url: str, port: int
) -> None:
    rendered = helm.render(
        {
            "networkPolicy": {"enabled": True, "engineNamespaces": ["models"]},
            "operator": {"prometheus": {"url": url, "tokenFile": "/token", "caFile": "/ca"}},
        }
    )
    told = [one for one in rendered.container("operator")["args"] if one.startswith("--prometheus")]
    assert told == [f"--prometheus-url={url}", "--prometheus-token-file=/token", "--prometheus-ca-file=/ca"]
    assert not any("--prometheus" in one for one in plain.container("operator")["args"])
    policy = next(one for one in rendered.of("NetworkPolicy") if one["metadata"]["name"].endswith("-operator"))
    assert {"ports": [{"port": port, "protocol": "TCP"}]} in policy["spec"]["egress"]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.observability:4318", 4318),
        ("https://spans.example.com/otlp", 443),
        ("http://10.0.0.1/a:9", 80),
    ],
)
def test_spans_are_sent_where_they_are_asked_for(helm: Helm, plain: Rendered, endpoint: str, port: int) -> None:
    values = {
        "networkPolicy": {"enabled": True, "engineNamespaces": ["models"]},
        "gateway": {"tracing": {"endpoint": endpoint}},
    }
    rendered = helm.render(values)
    _, environment = started(rendered.container("gateway"))
    assert environment == {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    assert started(plain.container("gateway"))[1] == {}
    rules = {
        name: [rule for rule in one["spec"]["egress"] if "to" not in rule]
        for one in rendered.of("NetworkPolicy")
        if (name := one["metadata"]["name"]).endswith(("-gateway", "-operator"))
    }
    assert {"ports": [{"port": port, "protocol": "TCP"}]} in next(v for k, v in rules.items() if k.endswith("-gateway"))
    assert {"ports": [{"port": port, "protocol": "TCP"}]} not in next(
        v for k, v in rules.items() if k.endswith("-operator")
    )


def test_keys_are_mounted_as_a_folder_and_asked_for(helm: Helm, plain: Rendered) -> None:
    """A file that is mounted by itself is never renewed."""
    extra = {"extraVolumes": [{"name": "x", "emptyDir": {}}], "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}]}
    keys = {"secretName": "api-keys", "fileName": "mine.json", "forwardToPods": True}
    rendered = helm.render({"gateway": {"keys": keys, **extra}})
    container, pod = rendered.container("gateway"), rendered.pod("gateway")
    config = read_gateway_config(*started(container))
    mount = container["volumeMounts"][0]
    assert config.keys_file == Path(mount["mountPath"]) / "mine.json"
    assert config.forward_authorization
    assert "subPath" not in mount
    assert [volume["name"] for volume in pod["volumes"]] == ["keys", "x"]
    assert pod["volumes"][0]["secret"]["secretName"] == "api-keys"
    assert [one["name"] for one in container["volumeMounts"]] == ["keys", "x"]
    assert read_gateway_config(*started(plain.container("gateway"))).keys_file is None
    assert "volumes" not in plain.pod("gateway")
    assert "keys" not in str(rendered.pod("operator"))


@pytest.mark.parametrize(
    ("secret", "status", "passes"),
    [("", 200, True), ("", 401, False), ("k", 401, True), ("k", 200, False), ("k", 503, False)],
)
def test_the_helm_test_asks_as_an_application(helm: Helm, secret: str, status: int, passes: bool) -> None:
    """Where keys are asked for, a gateway that asks for none has failed."""
    spec = helm.render(nested("gateway.keys.secretName", secret)).one("Pod", "lorafleet-test")["spec"]
    assert "volumes" not in spec
    assert "volumeMounts" not in spec["containers"][0]

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "numerals"}]}')

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/models"
        script, num_urls = re.subn(r"http://\S+/v1/models", url, spec["containers"][0]["args"][0])
        done = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, text=True, env={"no_proxy": "*"}
        )
        server.shutdown()
    assert num_urls == 1
    assert (done.returncode == 0) is passes, done.stderr
    assert not passes or "answers" in done.stdout


def test_autoscaling_owns_the_number_of_gateways(helm: Helm) -> None:
    rendered = helm.render(nested("gateway.autoscaling", {"enabled": True, "minReplicas": 3}))
    assert "replicas" not in rendered.one("Deployment", "lorafleet-gateway")["spec"]
    scaler = rendered.one("HorizontalPodAutoscaler", "lorafleet-gateway")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "lorafleet-gateway"
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 10)


def test_a_single_operator_has_no_budget_that_would_block_a_node(helm: Helm, plain: Rendered) -> None:
    assert [item["metadata"]["name"] for item in plain.of("PodDisruptionBudget")] == ["lorafleet-gateway"]
    two = helm.render(nested("operator.replicas", 2))
    assert {item["metadata"]["name"] for item in two.of("PodDisruptionBudget")} == {
        "lorafleet-gateway",
        "lorafleet-operator",
    }


def test_all_namespaced_objects_name_their_namespace(helm: Helm) -> None:
    """What GitOps tools apply without helm must land where it belongs."""
    for item in helm.render(
        {"monitoring": {"podMonitors": {"enabled": True}, "rules": {"enabled": True}, "dashboard": {"enabled": True}}}
    ).objects:
        if not item["kind"].startswith(("Cluster", "ValidatingAdmissionPolicy")):
            assert item["metadata"]["namespace"] == "lorafleet-system", item["kind"]


def test_release_of_another_name_has_objects_of_its_own(helm: Helm) -> None:
    names = {(item["kind"], item["metadata"]["name"]) for item in helm.render(release="second").objects}
    assert ("Deployment", "second-lorafleet-operator") in names
    assert not names & {(item["kind"], item["metadata"]["name"]) for item in helm.render().objects}


def test_spread_constraints_of_others_keep_their_selector(helm: Helm) -> None:
    own = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"a": "b"}},
    }
    pod = helm.render(nested("gateway.topologySpreadConstraints", [own])).pod("gateway")
    assert pod["topologySpreadConstraints"] == [own]


def test_only_the_operator_reaches_admin_ports(helm: Helm) -> None:
    rendered = helm.render(nested("networkPolicy", {"enabled": True, "engineNamespaces": ["team-a", "team-b"]}))
    policies = [item for item in rendered.of("NetworkPolicy") if item["metadata"]["name"] == "lorafleet-engines"]
    assert [item["metadata"]["namespace"] for item in policies] == ["team-a", "team-b"]
    for policy in policies:
        assert policy["spec"]["podSelector"] == {"matchExpressions": [{"key": LABEL_BASE, "operator": "Exists"}]}
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        by_port = {entry["ports"][0]["port"]: entry["from"] for entry in policy["spec"]["ingress"]}
        assert set(by_port) == {"admin", "http"}
        assert [_component(peer) for peer in by_port["admin"]] == ["operator"]
        assert [_component(peer) for peer in by_port["http"]] == ["gateway", None]
    for component, ports in (("operator", [ADMIN_PORT, PUBLIC_PORT, 8002]), ("gateway", [PUBLIC_PORT])):
        egress = rendered.one("NetworkPolicy", f"lorafleet-{component}")["spec"]["egress"]
        assert [entry["ports"] for entry in egress if "to" in entry] == [
            [{"port": p, "protocol": "TCP"}] for p in ports
        ]


def _component(peer: Json) -> Any:
    """Whose pods a peer of a policy is; None for other peers."""
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    if labels:
        assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "lorafleet-system"}}
    return labels.get("app.kubernetes.io/component")


def test_gateway_is_open_until_its_clients_are_named(helm: Helm) -> None:
    closed = nested(
        "networkPolicy", {"enabled": True, "engineNamespaces": ["a"], "gatewayFrom": [{"namespaceSelector": {}}]}
    )
    opened = nested("networkPolicy", {"enabled": True, "engineNamespaces": ["a"]})
    for given, public in ((opened, {"ports": [{"port": "http"}]}), (closed, None)):
        rules = helm.render(given).one("NetworkPolicy", "lorafleet-gateway")["spec"]["ingress"]
        assert rules[0] == (public or {"ports": [{"port": "http"}], "from": [{"namespaceSelector": {}}]})
        prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        assert rules[1]["ports"] == [{"port": "metrics"}]
        operator, *others = rules[1]["from"]
        assert operator["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "operator"
        assert (others, rules[2:]) == ([prometheus], [])


def test_operator_reads_the_evidence_of_the_gateways(helm: Helm) -> None:
    """Their metrics port, which is open to it also where nobody scrapes."""
    given = nested("networkPolicy", {"enabled": True, "engineNamespaces": ["a"], "metricsFrom": []})
    rendered = helm.render(given)
    (to,) = [
        entry["to"]
        for entry in rendered.one("NetworkPolicy", "lorafleet-operator")["spec"]["egress"]
        if {"port": 8002, "protocol": "TCP"} in entry["ports"]
    ]
    assert to == [{"podSelector": rendered.one("NetworkPolicy", "lorafleet-gateway")["spec"]["podSelector"]}]
    ports = {entry["name"]: entry["containerPort"] for entry in rendered.container("gateway")["ports"]}
    assert ports["metrics"] == 8002
    (rule,) = [
        rule
        for rule in rendered.one("NetworkPolicy", "lorafleet-gateway")["spec"]["ingress"]
        if rule["ports"] == [{"port": "metrics"}]
    ]
    assert rule["from"] == [{"podSelector": rendered.one("NetworkPolicy", "lorafleet-operator")["spec"]["podSelector"]}]


def test_jobs_of_the_removal_reach_the_api_server_under_policies(helm: Helm) -> None:
    given = nested("networkPolicy", {"enabled": True, "engineNamespaces": ["a"], "apiServerPorts": [6443]})
    rendered = helm.render(given)
    for job, policy in (("lorafleet-remaining",) * 2, ("lorafleet-removal",) * 2):
        labels = rendered.one("Job", job)["spec"]["template"]["metadata"]["labels"]
        spec = rendered.one("NetworkPolicy", policy)["spec"]
        assert spec["podSelector"]["matchLabels"].items() <= labels.items()
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in spec
        assert spec["egress"][-1] == {"ports": [{"port": 6443, "protocol": "TCP"}]}
    after = rendered.one("NetworkPolicy", "lorafleet-removal")["metadata"]["annotations"]
    assert after["helm.sh/hook"] == "post-delete"
    assert "annotations" not in rendered.one("NetworkPolicy", "lorafleet-remaining")["metadata"], "there before the Job"


def hooks(rendered: Rendered, when: str) -> list[Json]:
    return [item for item in rendered.objects if item["metadata"].get("annotations", {}).get("helm.sh/hook") == when]


def test_uninstall_looks_what_is_left_first(helm: Helm, plain: Rendered) -> None:
    (job,) = hooks(plain, "pre-delete")
    spec = job["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "lorafleet-operator"
    assert job["spec"]["backoffLimit"] == 0
    container = spec["containers"][0]
    assert container["image"] == plain.container("operator")["image"]
    assert container["args"] == ["remaining", "--namespace=lorafleet-system", "--lease=lorafleet-operator"]
    some = helm.render({"watchNamespaces": ["a", "b"], "removal": {"remaining": "Warn"}})
    (job,) = hooks(some, "pre-delete")
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][-2:] == ["--watch-namespaces=a,b", "--warn"]
    assert not hooks(helm.render(nested("removal.remaining", "Ignore")), "pre-delete")


def test_uninstall_removes_what_the_operator_made(helm: Helm, plain: Rendered) -> None:
    """What the release had is gone by then: account and rights are the hook's own, and there before the Job."""
    made = hooks(plain, "post-delete")
    (job,) = [item for item in made if item["kind"] == "Job"]
    others = [item for item in made if item["kind"] != "Job"]
    assert sorted(item["kind"] for item in others) == [
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ]
    assert all(int(item["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0 for item in others)
    spec = job["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "lorafleet-removal"
    assert spec["containers"][0]["args"] == [
        "clean-up",
        "--namespace=lorafleet-system",
        "--lease=lorafleet-operator",
        "--key-secret=lorafleet-operator-key",
        "--names=lorafleet-operator-names",
    ]
    role = plain.one("Role", "lorafleet-removal")
    assert [(rule["resources"], rule["resourceNames"], rule["verbs"]) for rule in role["rules"]] == [
        (["leases"], ["lorafleet-operator"], ["delete"]),
        (["configmaps"], ["lorafleet-operator-names"], ["delete"]),
        (["secrets"], ["lorafleet-operator-key"], ["delete"]),
    ]
    assert not hooks(helm.render(nested("removal.cleanUp", False)), "post-delete")
    assert not hooks(helm.render(nested("rbac.create", False)), "post-delete")


def test_ranks_are_reached_by_ranks_alone(helm: Helm) -> None:
    egress = {"enabled": True, "rules": []}
    given = nested("networkPolicy", {"enabled": True, "engineNamespaces": ["a"], "engineEgress": egress})
    spec = helm.render(given).one("NetworkPolicy", "lorafleet-ranks")["spec"]
    ranks = {"podSelector": {"matchExpressions": [{"key": LABEL_RANKS_OF, "operator": "Exists"}]}}
    assert spec["podSelector"] == ranks["podSelector"]
    of_ranks, of_operator = spec["ingress"]
    assert of_ranks == {"from": [ranks]}
    (operator,) = of_operator["from"]
    assert operator["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "operator"
    assert operator["namespaceSelector"]["matchLabels"]
    assert of_operator["ports"] == [{"port": "http"}]
    assert spec["egress"][1:] == [{"to": [ranks]}]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_engines_send_nowhere_but_where_they_may(helm: Helm) -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}
    egress = {"enabled": True, "rules": [rule]}
    given = nested("networkPolicy", {"enabled": True, "engineNamespaces": ["a"], "engineEgress": egress})
    spec = helm.render(given).one("NetworkPolicy", "lorafleet-engines")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    assert spec["egress"] == [dns, rule]


def test_names_belong_to_namespaces_where_somebody_says_so(helm: Helm, plain: Rendered) -> None:
    name = "lorafleet-system-lorafleet-served-names"
    assert name not in [item["metadata"]["name"] for item in plain.objects]
    names = [{"namespaces": ["team-a", "b"], "prefixes": ["team-a/", "x"]}, {"namespaces": ["*"], "prefixes": ["lab/"]}]
    rendered = helm.render(nested("admission.servedNames", names))
    spec = rendered.one("ValidatingAdmissionPolicy", name)["spec"]
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["basemodeldeployments", "loraadapters"]
    prefixes = next(variable["expression"] for variable in spec["variables"] if variable["name"] == "prefixes")
    first, second, last = prefixes.split(" :")
    assert first.startswith('request.namespace in ["team-a","b"]')
    assert first.endswith('["team-a/","x"]')
    assert second.endswith('["lab/"]')
    assert last.strip() == "['']"
    assert rendered.one("ValidatingAdmissionPolicyBinding", name)["spec"]["validationActions"] == ["Deny"]
