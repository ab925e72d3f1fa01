"""`kubectl lorafleet` as a plug-in of the real kubectl, on the fleet of the demo and by real rights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fleet import NAMESPACE, Fleet

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def plugin(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The command, found by kubectl on PATH."""
    folder = tmp_path_factory.mktemp("plugin")
    script = folder / "kubectl-lorafleet"
    packages = ":".join(str(ROOT / name / "src") for name in ("contract", "common", "operator"))
    script.write_text(
        f'#!/bin/sh\nexec env PYTHONPATH={packages} {sys.executable} -m lorafleet_operator.kubectl "$@"\n'
    )
    script.chmod(0o755)

    def run(*words: str, kubeconfig: Path | None = fleet.kube.kubeconfig) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        command = [fleet.kube.kubectl_path, "lorafleet", *words]
        return subprocess.run(command, check=False, text=True, capture_output=True, env=environment)

    return run


@pytest.fixture(scope="module")
def owner(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kubeconfig of somebody who has the rights of docs/install.md for model owners."""
    text = (ROOT / "docs" / "install.md").read_text()
    start = text.index("kind: Role\nmetadata: {name: model-owner")
    role = yaml.safe_load(text[text.rindex("```yaml\n", 0, start) + len("```yaml\n") : text.index("```", start)])
    role["metadata"]["namespace"] = NAMESPACE
    about = {"name": "model-owner", "namespace": NAMESPACE}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": about,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "model-owner"},
        "subjects": [{"kind": "ServiceAccount", **about}],
    }
    fleet.kube.apply(yaml.safe_dump_all([account, role, binding]))
    token = fleet.kube.kubectl("create", "token", "model-owner", "-n", NAMESPACE).strip()
    config = json.loads(fleet.kube.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": "owner", "user": {"token": token}}]
    config["contexts"][0]["context"] |= {"user": "owner", "namespace": NAMESPACE}
    path = tmp_path_factory.mktemp("owner") / "config"
    path.write_text(json.dumps(config))
    yield path
    fleet.kube.kubectl("delete", "rolebinding,role,serviceaccount", "model-owner", "-n", NAMESPACE)


def document(ran: subprocess.CompletedProcess[str]) -> Any:
    assert ran.stderr == ""
    return json.loads(ran.stdout)


def test_status_and_tree_are_what_the_cluster_has(fleet: Fleet, plugin: Run) -> None:
    status = document(plugin("status", "-A", "-o", "json"))
    assert {"ready": "True"}.items() <= status["bases"][0]["standing"].items()
    ready = {line["name"]: line["standing"]["ready"] for line in status["adapters"] if line["namespace"] == NAMESPACE}
    assert ready["french"] == "True"
    tree = document(plugin("tree", "-n", NAMESPACE, "-o", "json"))
    (node,) = [node for node in tree["bases"] if node["base"]["name"] == "numerals"]
    assert {pod["name"] for pod in node["pods"] if pod["isReady"]} == set(fleet.engine_pods())
    kept = {
        (pod["name"], held["revision"]) for pod in node["pods"] for held in pod["adapters"] if held["name"] == "french"
    }
    assert kept == {(one["pod"], one["revision"]) for one in fleet.status("french")["placements"]}
    assert not tree["notes"]


def test_why_tells_ready_from_not_ready_by_its_exit_status(fleet: Fleet, plugin: Run) -> None:
    ran = plugin("why", "french", "-n", NAMESPACE)
    assert ran.returncode == 0, ran.stderr
    assert "  no  " not in ran.stdout
    fleet.adapter("nowhere", {"name": "models", "path": "no-such-folder"})
    fleet.wait_condition("nowhere", "Ready", "False", reason="ArtifactNotFound")
    ran = plugin("why", "nowhere", "-n", NAMESPACE)
    fleet.delete("nowhere")
    assert ran.returncode == 1, ran.stderr
    lines = ran.stdout.splitlines()
    at = lines.index("  no  The source is resolved to a revision.")
    assert lines[at + 1].startswith("      ArtifactNotFound: ")
    assert any("Warning" in line and "ArtifactNotFound" in line for line in lines[at:])
    assert any("renewed its Lease" in line for line in lines)
    assert plugin("why", "frensh", "-n", NAMESPACE).stderr.endswith("there is french\n")


def test_model_owner_with_few_rights_gets_an_answer(plugin: Run, owner: Path) -> None:
    ran = plugin("why", "french", kubeconfig=owner)
    assert ran.returncode == 0, ran.stderr
    assert "basemodeldeployments.lorafleet.io in namespace numerals are not shown" in ran.stdout
    ran = plugin("status", kubeconfig=owner)
    assert ran.returncode == 3
    assert "you lack the verb list on basemodeldeployments.lorafleet.io in namespace numerals: " in ran.stderr
