"""The real cluster: the numerals base on two pods of one rank each, by LeaderWorkerSet's own controller."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from demo.kube import Kube
from demo.profiles import load_profile
from localcluster.leader_worker_sets import NAMESPACE as CONTROLLER
from localcluster.leader_worker_sets import controller, manifests
from numerals.truth import truth
from support.charts import Helm, nested
from support.fleet import NAMESPACE, SYSTEM, Fleet
from support.waiting import wait_for

from lorafleet_operator.cluster.collect import further_pod_of

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
BASE = "numerals-hosts"
PATIENCE_SECONDS = 500
"""What a group takes to start on a machine that does much else."""
RIGHTS = "test-leader-worker-sets"
Json = dict[str, Any]


def base(fleet: Fleet) -> Json:
    """The example's base, in groups of two pods."""
    cluster = os.environ.get("LORAFLEET_TEST_CLUSTER", "test")
    command = [sys.executable, "tools/localcluster", "status", "--name", cluster, "--json"]
    status = json.loads(subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout)
    profile = load_profile({**status, "cluster": "local", "name": cluster})
    made: Json = profile.patch_base(yaml.safe_load((ROOT / "examples" / "numerals" / "base.yaml").read_text()))
    made["metadata"]["name"] = BASE
    made["spec"] |= {"replicas": 1, "drain": {"timeoutSeconds": 5}}
    made["spec"]["engine"] |= {"tensorParallelSize": 2, "hosts": 2}
    made["spec"]["podTemplate"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "100m", "memory": "512Mi"}}
    return made


def adapter() -> Json:
    """One of the example's, by another name."""
    return {
        "apiVersion": "lorafleet.io/v1alpha1",
        "kind": "LoraAdapter",
        "metadata": {"name": "roman-hosts", "namespace": NAMESPACE},
        "spec": {"baseModelRef": {"name": BASE}, "source": {"name": "models", "path": "roman"}},
    }


def condition(kube: Kube, what: str, kind: str = "Ready") -> tuple[str, str]:
    """Status and reason at the current generation."""
    item = kube.get(what, "-n", NAMESPACE)
    found = next((c for c in item["status"]["conditions"] if c["type"] == kind), {})
    if found.get("observedGeneration") != item["metadata"]["generation"]:
        return "", ""
    return found["status"], found["reason"]


def ask(fleet: Fleet, number: int) -> str:
    """Ask the adapter through the gateway."""
    body = {"model": "roman-hosts", "messages": [{"role": "user", "content": str(number)}], "temperature": 0}
    url = f"{fleet.url}/v1/chat/completions"
    answer = httpx.post(url, json={**body, "max_tokens": 96}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def pods(kube: Kube) -> dict[str, str]:
    """uid of all pods of the base by name, those being deleted left out."""
    items = kube.get("pods", "-n", NAMESPACE, "-l", f"lorafleet.io/ranks-of={BASE}")["items"]
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in items if "deletionTimestamp" not in pod["metadata"]
    }


@pytest.fixture(scope="module")
def installed(fleet: Fleet) -> Iterator[Fleet]:
    """The operator has the rights that the chart's value gives; the controller is still to be installed. All goes afterwards."""
    kube = fleet.kube
    rendered = Helm(Path(kube.helm_path)).render(nested("operator.leaderWorkerSets", True))
    rules = rendered.one("ClusterRole", "lorafleet-operator")["rules"]
    api = "rbac.authorization.k8s.io"
    role = {
        "apiVersion": f"{api}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": RIGHTS},
        "rules": [rule for rule in rules if "leaderworkerset" in rule["apiGroups"][0]],
    }
    binding = {
        "apiVersion": f"{api}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": RIGHTS},
        "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": RIGHTS},
        "subjects": [{"kind": "ServiceAccount", "name": "lorafleet-operator", "namespace": SYSTEM}],
    }
    kube.apply(yaml.safe_dump_all([role, binding]))
    yield fleet
    kube.kubectl("delete", "--ignore-not-found", "lora/roman-hosts", f"bmd/{BASE}", "-n", NAMESPACE, "--timeout=120s")
    wait_for("its pods are gone", lambda: not pods(kube), timeout_seconds=120)
    artifact = controller(Path(kube.kubectl_path), print).prepare()
    image = kube.get("deployment/lorafleet-operator", "-n", SYSTEM)["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    kube.kubectl("delete", "--ignore-not-found", "--timeout=120s", "-f", "-", stdin=manifests(artifact, image))
    kube.kubectl("delete", "--ignore-not-found", f"clusterrolebinding/{RIGHTS}", f"clusterrole/{RIGHTS}")


def test_a_base_on_two_pods_answers_and_comes_back_as_a_group(installed: Fleet) -> None:
    fleet, kube = installed, installed.kube
    kube.apply(yaml.safe_dump_all([base(fleet), adapter()]))
    wait_for("it is said", lambda: condition(kube, f"bmd/{BASE}") == ("False", "ApiNotFound"), timeout_seconds=60)
    image = kube.get("deployment/lorafleet-operator", "-n", SYSTEM)["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    artifact = controller(Path(kube.kubectl_path), print).prepare()
    kube.kubectl("apply", "--server-side", "-f", "-", stdin=manifests(artifact, image))
    kube.kubectl("rollout", "status", "deployment/lws-controller-manager", "-n", CONTROLLER, "--timeout=180s")

    def is_up() -> bool:
        return condition(kube, f"bmd/{BASE}") == ("True", "PodsReady")

    wait_for("the base is up", is_up, timeout_seconds=PATIENCE_SECONDS)
    fleet.wait_condition("roman-hosts", "Ready", "True", timeout_seconds=60)
    first = pods(kube)
    assert set(first) == {f"{BASE}-0", f"{BASE}-0-1"}
    (second,) = kube.get("pods", "-n", NAMESPACE, "-l", f"lorafleet.io/ranks-of={BASE},!lorafleet.io/base")["items"]
    known = further_pod_of(second, BASE, datetime.now(UTC))
    assert known is not None, "the operator knows it by what its controller gives to it"
    assert (known.name, known.is_ready, known.problem) == (f"{BASE}-0-1", True, "")
    status = kube.get(f"bmd/{BASE}", "-n", NAMESPACE)["status"]
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    placed = kube.get("lora/roman-hosts", "-n", NAMESPACE)["status"]["placements"]
    assert [one["pod"] for one in placed] == [f"{BASE}-0"]
    for number in (7, 137):
        assert ask(fleet, number) == truth("roman", number)

    kill = "import os, signal\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n"
    kill += " if b'rank_process' in open(f'/proc/{pid}/cmdline', 'rb').read(): os.kill(int(pid), signal.SIGKILL)"
    follow = ["logs", "--follow", f"{BASE}-0", "-n", NAMESPACE]
    with subprocess.Popen(
        [kube.kubectl_path, "--kubeconfig", str(kube.kubeconfig), *follow], stdout=subprocess.PIPE, text=True
    ) as log:
        # its container ends with it, and kubectl may not hear the end
        kube.kubectl("exec", f"{BASE}-0-1", "-n", NAMESPACE, "--", "python3", "-c", kill, check=False)
        said, _ = log.communicate(timeout=PATIENCE_SECONDS)
    assert re.search(rf"rank 1 on {BASE}-0-1 \([0-9.]+\): its process was ended by SIGKILL", said), said
    wait_for(
        "both pods are new",
        lambda: set(now := pods(kube)) == set(first) and not set(now.values()) & set(first.values()),
        timeout_seconds=PATIENCE_SECONDS,
    )
    wait_for("the base is up again", is_up, timeout_seconds=PATIENCE_SECONDS)
    fleet.wait_condition("roman-hosts", "Ready", "True", timeout_seconds=60)
    assert ask(fleet, 41) == truth("roman", 41)
