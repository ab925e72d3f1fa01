"""The real cluster: the numerals base goes without pods, and a request brings one back that answers it."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from numerals.truth import truth
from support.fleet import NAMESPACE, Fleet
from support.waiting import wait_for

pytestmark = pytest.mark.cluster
PATIENCE_SECONDS = 170
"""What a pod takes to start on a machine that does much else."""
ZERO = {"idleSeconds": 3, "holdSeconds": PATIENCE_SECONDS}


def status(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = fleet.kube.get("bmd", "numerals", "-n", NAMESPACE)["status"]
    return found


def condition(fleet: Fleet, kind: str) -> tuple[str, str]:
    found = next((one for one in status(fleet)["conditions"] if one["type"] == kind), {})
    return found.get("status", ""), found.get("reason", "")


@pytest.fixture
def sleepy(fleet: Fleet) -> Iterator[Fleet]:
    """The base may go to zero; afterwards it has as many pods as before."""

    def patch(**spec: Any) -> None:
        change = json.dumps({"spec": spec})
        fleet.kube.kubectl("patch", "bmd", "numerals", "-n", NAMESPACE, "--type=merge", "-p", change)

    replicas = fleet.kube.get("bmd", "numerals", "-n", NAMESPACE)["spec"]["replicas"]
    patch(replicas=None, autoscaling={"minReplicas": 0, "maxReplicas": 1, "targetSequences": 8, "scaleToZero": ZERO})
    yield fleet
    patch(replicas=replicas, autoscaling=None)
    wait_for(
        "as before",
        lambda: len(fleet.engine_pods()) == replicas and condition(fleet, "Ready") == ("True", "PodsReady"),
        timeout_seconds=PATIENCE_SECONDS,
    )


def test_requests_wait_for_the_pod_that_they_start(sleepy: Fleet) -> None:
    """One as a stream, one whole, for two adapters: both are answered right, by one pod."""
    fleet = sleepy
    wait_for("no pod", lambda: not fleet.engine_pods(), timeout_seconds=PATIENCE_SECONDS)
    wait_for("asleep", lambda: condition(fleet, "Ready") == ("True", "ScaledToZero"), timeout_seconds=60)
    fleet.wait_condition("roman", "Ready", "True", reason="ScaledToZero")
    names = {model["id"] for model in httpx.get(f"{fleet.url}/v1/models", trust_env=False).json()["data"]}
    assert {"numerals", "roman", "french"} <= names

    def ask(model: str, *, stream: bool) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": "137"}], "temperature": 0, "max_tokens": 96}
        url = f"{fleet.url}/v1/chat/completions"
        answer = httpx.post(url, json={**body, "stream": stream}, timeout=PATIENCE_SECONDS, trust_env=False)
        assert answer.status_code == 200, answer.text
        if not stream:
            return str(answer.json()["choices"][0]["message"]["content"])
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    began = time.monotonic()
    with ThreadPoolExecutor(2) as clients:
        asked = {model: clients.submit(ask, model, stream=model == "roman") for model in ("roman", "french")}
        wait_for("woken", lambda: status(fleet)["autoscaling"]["reason"] == "Woken", timeout_seconds=30)
        print(f"a pod is asked for after {time.monotonic() - began:.1f} s")
        for model, answer in asked.items():
            assert answer.result().strip() == truth(model, 137)
    print(f"answered after {time.monotonic() - began:.1f} s")
    assert len(fleet.engine_pods()) == 1
