"""What breaks comes back without help, and what is wrong stays where it is."""

from typing import Any

import pytest
from support.fleet import NAMESPACE, SYSTEM, Fleet
from support.waiting import wait_for

pytestmark = pytest.mark.cluster
STEADY = ["french", "german", "roman"]


def test_changed_revision_is_switched_without_a_failed_request(fleet: Fleet) -> None:
    """The simple switch: loads beside, then moves; in between the old words or the new ones, never an error."""
    fleet.adapter("switching", {"name": "models", "path": "roman"})
    fleet.wait_condition("switching", "Ready", "True")
    first = fleet.status("switching")["stableRevision"]
    assert fleet.ask("switching", 1987).text == "MCMLXXXVII"
    with fleet.traffic(["switching"]) as traffic:
        fleet.adapter("switching", {"name": "models", "path": "roman-v2"})
        fleet.wait_condition("switching", "Ready", "True")
        answer = fleet.ask("switching", 1987)
    assert answer.text == "mcmlxxxvii"
    assert answer.revision == fleet.status("switching")["stableRevision"] != first
    assert traffic.answers
    assert not traffic.failed
    revisions = [a.revision for a in traffic.answers]
    assert set(revisions) <= {first, answer.revision}

    def placed() -> set[str]:
        return {one["revision"] for one in fleet.status("switching")["placements"]}

    wait_for("the old revision is unloaded", lambda: placed() == {answer.revision})
    fleet.delete("switching")
    assert fleet.ask("switching", 1).failure.startswith("404")


def test_bad_adapters_say_why_and_disturb_nobody(fleet: Fleet) -> None:
    """Each ends as a condition with its reason; the others answer all the while."""
    bad = {
        "missing": ({"name": "models", "path": "no-such-folder"}, {}, "ArtifactNotFound"),
        "undeclared": ({"name": "elsewhere", "path": "french"}, {}, "SourceNotAllowed"),
        "pinned-wrong": ({"name": "models", "path": "french"}, {"digest": "sha256:" + "0" * 64}, "DigestMismatch"),
        "not-an-adapter": ({"name": "models", "path": "../numerals"}, {}, None),
        "absent-repo": ({"name": "hub", "repo": "lorafleet/nobody", "revision": "main"}, {}, "ArtifactNotFound"),
        "other-org": ({"name": "hub", "repo": "somebody/french"}, {}, "SourceNotAllowed"),
    }
    with fleet.traffic(STEADY) as traffic:
        for name, (source, spec, reason) in bad.items():
            refused = "invalid" in fleet.adapter(name, source, check=False, **spec) or not fleet.kube.kubectl(
                "get", "lora", name, "-n", NAMESPACE, "--ignore-not-found", "-o", "name"
            )
            assert refused == (reason is None), name
        for name, (_, _, reason) in bad.items():
            if reason is not None:
                ready = fleet.wait_condition(name, "Ready", "False", reason=reason)
                assert ready["message"], name
                assert fleet.condition(name, "Stalled").get("status") == "True", name
                assert fleet.ask(name, 5).failure.startswith(("404", "424")), name
    assert traffic.answers
    assert not traffic.failed
    assert not traffic.wrong
    for name, (_, _, reason) in bad.items():
        if reason is not None:
            fleet.delete(name)


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def test_a_killed_pod_is_replaced_with_its_adapters(fleet: Fleet) -> None:
    """A new pod gets the catalogue and turns Ready only with its adapters; every adapter answers again."""
    victim = min(fleet.engine_pods())
    fleet.kube.kubectl("delete", "pod", victim, "-n", NAMESPACE, "--grace-period=0", "--force")

    def healed() -> bool:
        pods = fleet.engine_pods()
        return victim not in pods and len(pods) == 2 and all(map(is_ready, pods.values()))

    wait_for("two ready pods again", healed, timeout_seconds=120, interval_seconds=1)
    for name in ("french", "german", "japanese", "years", "digits"):
        fleet.wait_condition(name, "Ready", "True")
        assert fleet.ask(name, 1987).right, name


def test_a_restarted_container_gets_its_adapters_back(fleet: Fleet) -> None:
    """The engine process is killed inside its pod: same pod, new boot, same answers."""
    victim = min(fleet.engine_pods())

    def restarts() -> int:
        return int(fleet.engine_pods()[victim]["status"]["containerStatuses"][0]["restartCount"])

    before = restarts()
    kill = "import os, signal; os.kill(1, signal.SIGTERM)"
    fleet.kube.kubectl("exec", "-n", NAMESPACE, victim, "-c", "engine", "--", "python3", "-c", kill)
    wait_for("the container restarted", lambda: restarts() > before, timeout_seconds=90)
    wait_for(
        "its pod is ready again",
        lambda: fleet.engine_pods()[victim]["status"]["containerStatuses"][0]["ready"],
        timeout_seconds=120,
        interval_seconds=1,
    )
    for name in STEADY:
        fleet.wait_condition(name, "Ready", "True")
        assert fleet.ask(name, 1987).right


def test_a_killed_operator_takes_up_where_it_left(fleet: Fleet) -> None:
    """While it is away the fleet answers; an adapter deleted and one applied meanwhile are done when it is back."""
    fleet.adapter("leaving", {"name": "models", "path": "dutch"})
    fleet.wait_condition("leaving", "Ready", "True")
    fleet.kube.kubectl("scale", "deployment/lorafleet-operator", "-n", SYSTEM, "--replicas=0")
    fleet.kube.kubectl(
        "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "-n", SYSTEM, "--timeout=60s"
    )
    fleet.kube.kubectl("delete", "lora", "leaving", "-n", NAMESPACE, "--wait=false")
    fleet.adapter("arriving", {"name": "bucket", "path": "italian"})
    assert all(fleet.ask(name, 1987).right for name in STEADY)
    fleet.kube.kubectl("scale", "deployment/lorafleet-operator", "-n", SYSTEM, "--replicas=1")
    fleet.wait_condition("arriving", "Ready", "True", timeout_seconds=90)
    fleet.kube.kubectl("wait", "--for=delete", "lora/leaving", "-n", NAMESPACE, "--timeout=60s")
    assert fleet.ask("arriving", 8).failure == ""
    fleet.delete("arriving")
