"""Rollouts by steps on the real cluster: what gateways count promotes one revision, and takes another one back."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from support.fleet import NAMESPACE, Fleet
from support.waiting import wait_for

from lorafleet_contract.names import ANNOTATION_PROMOTE

pytestmark = pytest.mark.cluster
ADAPTERS = Path(__file__).resolve().parents[2] / "models" / "numerals-adapters"
ROLLOUT = {
    "steps": [{"setWeight": 40}, {"pause": {}}],
    "analysis": {"windowSeconds": 10, "minRequests": 10, "maxErrorPercent": 5},
}


@pytest.fixture
def overflowing() -> Iterator[str]:
    """An adapter that loads like any other, and whose numbers are none: every request for it fails."""
    folder = ADAPTERS / "overflowing"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ADAPTERS / "roman", folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor * tensor.dtype.type(1e30) for name, tensor in load_file(file).items()}, file)
    file.chmod(0o644)  # pods are another user
    yield folder.name
    shutil.rmtree(folder)


def test_a_good_revision_is_promoted_and_a_bad_one_taken_back(fleet: Fleet, overflowing: str) -> None:
    """No request fails but some of the bad one's, before it is taken back."""

    def rollout() -> dict[str, Any]:
        found: dict[str, Any] = fleet.status("rolling").get("rollout", {})
        return found

    def placed() -> set[str]:
        return {one["revision"] for one in fleet.status("rolling")["placements"]}

    def weights() -> list[int]:
        return [share["weight"] for share in fleet.status("rolling").get("traffic", [])]

    fleet.adapter("rolling", {"name": "models", "path": "roman"}, rollout=ROLLOUT)
    fleet.wait_condition("rolling", "Ready", "True")
    first = fleet.status("rolling")["stableRevision"]
    with fleet.traffic(["rolling"]) as traffic:
        fleet.adapter("rolling", {"name": "models", "path": "roman-v2"}, rollout=ROLLOUT)
        wait_for("a good window", lambda: rollout().get("phase") == "Paused", timeout_seconds=120)
        assert weights() == [60, 40]
        assert rollout()["evidence"]["judgement"] == "Good"
        assert rollout()["evidence"]["gateways"] >= 1
        second = rollout()["revision"]
        assert fleet.status("rolling")["stableRevision"] == first
        promotion = f"{ANNOTATION_PROMOTE}={second}:1"
        fleet.kube.kubectl("annotate", "lora", "rolling", "-n", NAMESPACE, promotion)
        fleet.wait_condition("rolling", "Ready", "True")
    assert fleet.status("rolling")["stableRevision"] == second
    assert not traffic.failed
    assert {answer.revision for answer in traffic.answers} == {first, second}
    assert fleet.status("rolling")["history"][0]["result"] == "Promoted"
    with fleet.traffic(["rolling"]) as traffic:
        fleet.adapter("rolling", {"name": "models", "path": overflowing}, rollout=ROLLOUT)
        fleet.wait_condition("rolling", "Stalled", "True", reason="AnalysisFailed", timeout_seconds=120)
        assert weights() == [100]
    assert fleet.status("rolling")["stableRevision"] == second
    assert rollout()["phase"] == "RolledBack"
    assert rollout()["evidence"]["canary"]["faults"] > 0
    third = rollout()["revision"]
    assert {answer.revision for answer in traffic.failed} == {third}
    assert len(traffic.failed) < len(traffic.answers) / 2
    assert {answer.revision for answer in traffic.answers if not answer.failure} == {second}
    assert fleet.status("rolling")["history"][0]["result"] == "RolledBack"
    with fleet.traffic(["rolling"]) as traffic:
        wait_for("the bad one is unloaded", lambda: third not in placed(), timeout_seconds=30)
    assert not traffic.failed
    fleet.delete("rolling")
