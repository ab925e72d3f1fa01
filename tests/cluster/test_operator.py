"""The operator on a real cluster, with pods that keep the admin contract and have no model: what only an API server,
a kubelet and kopf can show."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo.kube import Kube
from demo.profiles import SOURCE_MOUNT, mounts, python_path, volumes
from support.charts import Helm, nested
from support.fleet import SYSTEM, Fleet
from support.inference_crds import POOLS, REWRITES, crd
from support.waiting import wait_for

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "operator-rules"
BASE = "pretend"
Json = dict[str, Any]


def base(**spec: Any) -> Json:
    """A base whose engine is support/fake_pod.py."""
    cluster = os.environ.get("LORAFLEET_TEST_CLUSTER", "test")
    command = [sys.executable, "tools/localcluster", "status", "--name", cluster, "--json"]
    status = json.loads(subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout)
    engine = {
        "name": "engine",
        "command": ["python3", "-m", "support.fake_pod", "serve"],
        "env": [
            {"name": "PYTHONPATH", "value": f"{SOURCE_MOUNT}/tests:{python_path()}"},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
        ],
        "volumeMounts": mounts(),
    }
    template = {"spec": {"containers": [engine], "volumes": volumes(Path(status["operator_dependencies"]))}}
    full = {
        "model": {"huggingFace": {"repo": "acme/none"}},
        "adapterSources": [{"name": "models", "s3": {"bucket": "models"}}],
        "engine": {"image": status["image"], "imagePullPolicy": "Never"},
        "podTemplate": template,
        "drain": {"timeoutSeconds": 1},
        "replicas": 2,
        **spec,
    }
    metadata = {"name": BASE, "namespace": NAMESPACE}
    return {"apiVersion": "lorafleet.io/v1alpha1", "kind": "BaseModelDeployment", "metadata": metadata, "spec": full}


def lora(name: str, path: str | None = None, **spec: Any) -> Json:
    full = {"baseModelRef": {"name": BASE}, "source": {"name": "models", "path": path or name}, **spec}
    metadata = {"name": f"{BASE}-{name}", "namespace": NAMESPACE}
    return {"apiVersion": "lorafleet.io/v1alpha1", "kind": "LoraAdapter", "metadata": metadata, "spec": full}


@pytest.fixture(scope="module")
def kube(fleet: Fleet) -> Iterator[Kube]:
    """A namespace with the base, up, and gone afterwards."""
    fleet.kube.kubectl("create", "namespace", NAMESPACE)
    apply(fleet.kube, base())
    wait_ready(fleet.kube, f"bmd/{BASE}", seconds=120)
    yield fleet.kube
    fleet.kube.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")


def apply(kube: Kube, *documents: Json) -> None:
    kube.apply(yaml.safe_dump_all(documents))


def wait_ready(kube: Kube, what: str, *, seconds: int = 60) -> None:
    kube.kubectl("wait", "--for=condition=Ready", what, "-n", NAMESPACE, f"--timeout={seconds}s")


def condition(kube: Kube, what: str, kind: str = "Ready") -> tuple[str, str]:
    """Status and reason at the current generation."""
    item = kube.get(what, "-n", NAMESPACE)
    found = next((c for c in item["status"]["conditions"] if c["type"] == kind), {})
    if found.get("observedGeneration") != item["metadata"]["generation"]:
        return "", ""
    return found["status"], found["reason"]


def pods(kube: Kube) -> dict[str, Json]:
    items = kube.get("pods", "-n", NAMESPACE, "-l", f"lorafleet.io/base={BASE}")["items"]
    return {item["metadata"]["name"]: item for item in items if "deletionTimestamp" not in item["metadata"]}


def catalogue(kube: Kube, pod: str) -> dict[str, str]:
    """Name -> residency, as the pod has it."""
    ask = ("exec", "-n", SYSTEM, "deploy/lorafleet-operator", "--", "python3", "-m", "lorafleet_operator", "token")
    token = kube.kubectl(*ask, f"{NAMESPACE}/{BASE}").strip()
    code = (
        "import json, urllib.request as r; "
        f"q = r.Request('http://127.0.0.1:8001/admin/v1/state', headers={{'authorization': 'Bearer {token}'}}); "
        "print(json.dumps({a['name']: a['residency'] for a in json.load(r.urlopen(q))['adapters']}))"
    )
    found: dict[str, str] = json.loads(kube.kubectl("exec", "-n", NAMESPACE, pod, "--", "python3", "-c", code))
    return found


def test_objects_belong_to_the_base_and_come_back(kube: Kube) -> None:
    uid = kube.get("bmd", BASE, "-n", NAMESPACE)["metadata"]["uid"]
    for what in (
        f"deployment/{BASE}",
        f"service/{BASE}",
        f"service/{BASE}-pods",
        f"pdb/{BASE}",
    ):
        owner = kube.get(what, "-n", NAMESPACE)["metadata"]["ownerReferences"][0]
        assert (owner["uid"], owner["controller"]) == (uid, True)
    kube.kubectl("delete", f"service/{BASE}-pods", "-n", NAMESPACE)
    kube.kubectl("label", f"deployment/{BASE}", "lorafleet.io/base=other", "--overwrite", "-n", NAMESPACE)
    wait_for(
        "the next resync mends them",
        lambda: (
            f"{BASE}-pods" in kube.kubectl("get", "services", "-n", NAMESPACE, "-o", "name")
            and kube.get(f"deployment/{BASE}", "-n", NAMESPACE)["metadata"]["labels"]["lorafleet.io/base"] == BASE
        ),
        timeout_seconds=60,
        interval_seconds=1,
    )


def test_admin_port_asks_for_the_token(kube: Kube) -> None:
    code = "import urllib.request as r; r.urlopen('http://127.0.0.1:8001/admin/v1/state')"
    pod = min(pods(kube))
    said = kube.kubectl("exec", "-n", NAMESPACE, pod, "--", "sh", "-c", f'python3 -c "{code}" 2>&1 || true')
    assert "401" in said


def test_adapter_is_known_to_all_pods_and_held_by_a_finalizer(kube: Kube) -> None:
    apply(kube, lora("one"))
    wait_ready(kube, f"lora/{BASE}-one")
    assert kube.get(f"lora/{BASE}-one", "-n", NAMESPACE)["metadata"]["finalizers"] == ["lorafleet.io/unload"]
    assert sorted(catalogue(kube, pod)[f"{BASE}-one"] for pod in pods(kube)) == ["OnDemand", "Resident"]


def test_deleted_adapter_leaves_pods_and_then_the_api_server(kube: Kube) -> None:
    apply(kube, lora("leaving"))
    wait_ready(kube, f"lora/{BASE}-leaving")
    kube.kubectl("delete", f"lora/{BASE}-leaving", "-n", NAMESPACE, "--timeout=30s")
    assert all(f"{BASE}-leaving" not in catalogue(kube, pod) for pod in pods(kube))


def test_changed_revision_switches_and_is_told_by_an_event(kube: Kube) -> None:
    apply(kube, lora("turning"))
    wait_ready(kube, f"lora/{BASE}-turning")
    before = kube.get(f"lora/{BASE}-turning", "-n", NAMESPACE)["status"]["stableRevision"]
    apply(kube, lora("turning", "turning-v2"))
    wait_ready(kube, f"lora/{BASE}-turning")
    status = kube.get(f"lora/{BASE}-turning", "-n", NAMESPACE)["status"]
    assert status["stableRevision"] != before
    assert status["observedGeneration"] == 2
    assert status["artifact"]["source"] == {"name": "models", "path": "turning-v2"}
    assert "stableArtifact" not in status

    def told() -> bool:
        events = kube.get("events", "-n", NAMESPACE, "--field-selector", f"involvedObject.name={BASE}-turning")["items"]
        return any(status["stableRevision"] in event["message"] for event in events)

    wait_for("an Event", told)


def test_bad_adapter_is_stalled_with_its_reason(kube: Kube) -> None:
    apply(kube, lora("absent", "missing"))
    wait_for("its reason", lambda: condition(kube, f"lora/{BASE}-absent") == ("False", "ArtifactNotFound"))
    assert condition(kube, f"lora/{BASE}-absent", "Stalled")[0] == "True"
    kube.kubectl("delete", f"lora/{BASE}-absent", "-n", NAMESPACE, "--timeout=30s")


def test_restarted_container_is_told_again(kube: Kube) -> None:
    apply(kube, lora("kept", placement={"mode": "All"}))
    wait_ready(kube, f"lora/{BASE}-kept")
    victim = min(pods(kube))

    def restarts() -> int:
        return int(pods(kube)[victim]["status"]["containerStatuses"][0]["restartCount"])

    before = restarts()
    kube.kubectl("exec", "-n", NAMESPACE, victim, "--", "python3", "-c", "import os; os.kill(1, 15)")
    wait_for("a restart", lambda: restarts() > before, timeout_seconds=60)
    wait_for(
        "ready again",
        lambda: pods(kube)[victim]["status"]["containerStatuses"][0]["ready"],
        timeout_seconds=60,
    )
    assert catalogue(kube, victim)[f"{BASE}-kept"] == "Resident"


def test_scaling_out_places_and_scaling_in_moves(kube: Kube) -> None:
    names = [f"spread{number}" for number in range(6)]
    apply(kube, *(lora(name) for name in names))
    for name in names:
        wait_ready(kube, f"lora/{BASE}-{name}")
    kube.kubectl("scale", f"bmd/{BASE}", "-n", NAMESPACE, "--replicas=1")
    wait_for("one pod", lambda: len(pods(kube)) == 1, timeout_seconds=60)

    only = next(iter(pods(kube)))

    def all_there() -> bool:
        found = kube.get("lora", "-n", NAMESPACE)["items"]
        mine = [item["status"]["placements"] for item in found if "-spread" in item["metadata"]["name"]]
        return all([(p["pod"], p["state"]) for p in placements] == [(only, "Ready")] for placements in mine)

    wait_for("all on the one that is left", all_there, timeout_seconds=60)
    assert {f"{BASE}-{name}" for name in names} <= {
        n for n, residency in catalogue(kube, only).items() if residency == "Resident"
    }
    apply(kube, base())
    wait_ready(kube, f"bmd/{BASE}", seconds=120)


def test_template_that_no_api_server_takes_is_said_and_disturbs_nobody(kube: Kube) -> None:
    good = base()
    bad = base(podTemplate={"spec": {**good["spec"]["podTemplate"]["spec"], "noSuchField": 1}})
    apply(kube, bad)
    wait_for("it is refused", lambda: condition(kube, f"bmd/{BASE}") == ("False", "ApplyFailed"))
    assert condition(kube, f"bmd/{BASE}", "Stalled")[0] == "True"
    assert condition(kube, f"bmd/{BASE}", "Available")[0] == "True"
    apply(kube, lora("meanwhile"))
    wait_ready(kube, f"lora/{BASE}-meanwhile")
    apply(kube, good)
    wait_ready(kube, f"bmd/{BASE}", seconds=120)


def test_suspended_base_is_left_alone_and_its_adapters_are_not(kube: Kube) -> None:
    before = kube.get(f"deployment/{BASE}", "-n", NAMESPACE)["metadata"]["generation"]
    apply(kube, base(suspend=True, drain={"timeoutSeconds": 2}))
    wait_for("suspended", lambda: condition(kube, f"bmd/{BASE}") == ("False", "Suspended"))
    apply(kube, lora("still"))
    wait_ready(kube, f"lora/{BASE}-still")
    assert kube.get(f"deployment/{BASE}", "-n", NAMESPACE)["metadata"]["generation"] == before
    apply(kube, base())
    wait_ready(kube, f"bmd/{BASE}", seconds=120)


@pytest.fixture
def rights_on_pools(kube: Kube) -> Iterator[str]:
    """What operator.inferencePools of the chart adds to the operator's rights, to be applied; taken away afterwards."""
    rendered = Helm(Path(kube.helm_path)).render(nested("operator.inferencePools", True))
    rules = rendered.one("ClusterRole", "lorafleet-operator")["rules"]
    api, name = "rbac.authorization.k8s.io", "operator-rules-pools"
    role = {
        "apiVersion": f"{api}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [rule for rule in rules if "inference" in rule["apiGroups"][0]],
    }
    binding = {
        "apiVersion": f"{api}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "lorafleet-operator", "namespace": SYSTEM}],
    }
    yield yaml.safe_dump_all([role, binding])
    kube.kubectl("delete", "--ignore-not-found", f"clusterrolebinding/{name}", f"clusterrole/{name}")


@pytest.fixture
def crds_of_pools(kube: Kube) -> Iterator[str]:
    """The real CRDs, to be applied; taken away afterwards."""
    yield f"{crd(POOLS)}\n---\n{crd(REWRITES)}"
    kube.kubectl("delete", "--ignore-not-found", "--timeout=60s", "crd", POOLS, REWRITES)


def pooled(port: int) -> Json:
    """`spec.routing` with a pool."""
    return {"inferencePool": {"endpointPickerRef": {"name": "epp", "port": port}, "modelRewrite": "Managed"}}


def test_inference_gateways_get_a_pool_and_the_weights_of_rollouts(
    kube: Kube, rights_on_pools: str, crds_of_pools: str
) -> None:
    """Without rights, then without the kinds, then with both; the last is noticed by itself."""

    def said(name: str = BASE) -> list[tuple[str, str]]:
        return [condition(kube, f"bmd/{name}", f"{kind}Applied") for kind in ("InferencePool", "ModelRewrite")]

    def rules() -> list[Json]:
        found: list[Json] = kube.get(f"{REWRITES}/{BASE}", "-n", NAMESPACE)["spec"]["rules"]
        return found

    def weights() -> list[int]:
        status = kube.get(f"lora/{BASE}-weighed", "-n", NAMESPACE)["status"]
        return [share["weight"] for share in status.get("traffic", [])]

    kube.kubectl("delete", f"lora/{BASE}-weighed", "-n", NAMESPACE, "--ignore-not-found")  # of a run before
    apply(kube, lora("weighed", placement={"mode": "All"}))
    apply(kube, base(routing=pooled(9001)))
    wait_for("it is said that there are no rights", lambda: said() == [("False", "Forbidden")] * 2)
    kube.apply(rights_on_pools)
    apply(kube, base(routing=pooled(9002)))
    wait_for("it is said that there are no such kinds", lambda: said() == [("False", "ApiNotFound")] * 2)
    wait_ready(kube, f"bmd/{BASE}")
    kube.apply(crds_of_pools)
    wait_for("they are made", lambda: said() == [("True", "Applied")] * 2, timeout_seconds=90)

    uid = kube.get("bmd", BASE, "-n", NAMESPACE)["metadata"]["uid"]
    pool = kube.get(f"{POOLS}/{BASE}", "-n", NAMESPACE)
    assert pool["metadata"]["ownerReferences"][0]["uid"] == uid
    assert pool["spec"] == {
        "selector": {"matchLabels": {"lorafleet.io/base": BASE}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {
            "group": "",
            "kind": "Service",
            "name": "epp",
            "port": {"number": 9002},
            "failureMode": "FailClose",
        },
    }
    assert rules() == []
    spare = base(replicas=0, routing=pooled(9002))
    apply(kube, {**spare, "metadata": {**spare["metadata"], "name": "spare"}})
    wait_for("another base has its own", lambda: said("spare") == [("True", "Applied")] * 2)
    kube.kubectl("delete", "bmd/spare", "-n", NAMESPACE, "--timeout=60s")

    wait_ready(kube, f"lora/{BASE}-weighed")
    apply(
        kube,
        lora("weighed", "weighed-v2", placement={"mode": "All"}, rollout={"steps": [{"setWeight": 20}, {"pause": {}}]}),
    )
    wait_for("a fifth goes to the new one", lambda: weights() == [80, 20], timeout_seconds=60)
    new = kube.get(f"lora/{BASE}-weighed", "-n", NAMESPACE)["status"]["traffic"][1]["revision"]
    targets = [
        {"modelRewrite": f"{BASE}-weighed", "weight": 80},
        {"modelRewrite": f"{BASE}-weighed@{new}", "weight": 20},
    ]
    told = [{"matches": [{"model": {"type": "Exact", "value": f"{BASE}-weighed"}}], "targets": targets}]
    wait_for("pickers are told", lambda: rules() == told)
    kube.kubectl("annotate", f"lora/{BASE}-weighed", "-n", NAMESPACE, f"lorafleet.io/promote={new}")
    wait_for("all go to it by the bare name", lambda: rules() == [] and weights() in ([], [100]), timeout_seconds=60)

    apply(kube, base())
    wait_for("both are taken away", lambda: said() == [("", "")] * 2)

    def left() -> str:
        return kube.kubectl("get", f"{POOLS},{REWRITES}", "-n", NAMESPACE, "-o", "name")

    wait_for("the other base's went with it", lambda: left() == "", timeout_seconds=120)


def test_base_goes_before_its_adapters(kube: Kube) -> None:
    kube.kubectl("delete", f"bmd/{BASE}", "-n", NAMESPACE, "--timeout=60s")
    wait_for("adapters wait", lambda: condition(kube, f"lora/{BASE}-one") == ("False", "BaseNotFound"))
    kube.kubectl("delete", "lora", "--all", "-n", NAMESPACE, "--timeout=60s")
