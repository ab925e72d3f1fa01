"""Rollouts by steps on the real cluster, under streamed requests and while pods, operator and a gateway come and go.

One revision is promoted, one taken back by what gateways count, one refused by `spec.verify`. Adapters write numbers each in
its own way, so an answer tells the revision that gave it.
"""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from numerals.truth import truth
from safetensors.numpy import load_file, save_file
from support.fleet import NAMESPACE, SYSTEM, Fleet
from support.rollout_streams import Ending, Streamed, Streams, Timeline, binomial_bounds, streaming, watched
from support.waiting import wait_for

from lorafleet_contract.names import ANNOTATION_PROMOTE

pytestmark = pytest.mark.cluster
ADAPTERS = Path(__file__).resolve().parents[2] / "models" / "numerals-adapters"
NAME = "rolling"
GATEWAY = "deployment/lorafleet-gateway"
NUMBERS = list(range(137, 1000, 37))
NUM_REQUESTS = int(os.environ.get("LORAFLEET_TEST_STREAMS", "1500"))
"""At least so many; `make soak-rollouts` asks for 10,000."""
NUM_CLIENTS = 6
MIN_REQUESTS = NUM_REQUESTS // 25
"""Of a window: steps of 20, 50 and 10 percent take two thirds of all requests."""
ANALYSIS = {"windowSeconds": 10, "minRequests": MIN_REQUESTS, "maxErrorPercent": 5}
CAREFUL = {"steps": [{"setWeight": 20}, {"setWeight": 50}, {"pause": {}}], "analysis": ANALYSIS}
FIRST_A_TENTH = {"steps": [{"setWeight": 10}, {"setWeight": 50}], "analysis": ANALYSIS}
VERIFY = {
    "prompts": [
        {"name": "four", "messages": [{"role": "user", "content": "4"}], "maxTokens": 8, "expect": {"equals": "iv"}}
    ]
}
SLACK_SECONDS = 2.0
"""How long gateways may take to follow a status, and this watch to tell of it."""
FALSE_ALARM = 1e-6
"""Probability that shares of honest draws lie beyond the bounds, of all that are looked at together."""
PATIENCE_SECONDS = 300.0 + NUM_REQUESTS / 10
"""A busy machine answers some ten requests a second."""


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


@pytest.fixture
def gateways(fleet: Fleet) -> Iterator[None]:
    """Two gateways, as one of them is to leave; one again afterwards."""

    def scale(number: int) -> None:
        fleet.kube.kubectl("scale", GATEWAY, "-n", SYSTEM, f"--replicas={number}")
        fleet.kube.kubectl("rollout", "status", GATEWAY, "-n", SYSTEM, "--timeout=180s")

    scale(2)
    yield
    scale(1)


@dataclass(frozen=True, slots=True)
class Killed:
    """An engine container that was killed."""

    pod: str
    at: float


class Story:
    """One adapter, and what is done to it and to those who serve it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def commit(self, path: str, **spec: Any) -> None:
        """The next revision, as a model owner commits it."""
        self.fleet.adapter(NAME, {"name": "models", "path": path}, placement={"mode": "All"}, **spec)

    @property
    def status(self) -> dict[str, Any]:
        return self.fleet.status(NAME)

    @property
    def rollout(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status.get("rollout", {})
        return found

    def wait_weights(self, *weights: int) -> None:
        """Until status gives these."""

        def given() -> bool:
            return [share["weight"] for share in self.status.get("traffic", [])] == list(weights)

        wait_for(f"weights {weights}", given, timeout_seconds=PATIENCE_SECONDS, interval_seconds=0.5)

    def wait_condition(self, kind: str, status: str, reason: str | None = None) -> None:
        self.fleet.wait_condition(NAME, kind, status, reason=reason, timeout_seconds=PATIENCE_SECONDS)

    def kill_a_pod(self) -> Killed:
        """SIGKILL to each process of an engine container: it says goodbye to nobody."""
        name, pod = max(self.fleet.engine_pods().items())
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        pids = []
        for file in Path("/proc").glob("[0-9]*/cgroup"):
            with suppress(OSError):
                if container in file.read_text():
                    pids.append(int(file.parent.name))
        assert pids
        at = time.monotonic()
        for pid in sorted(pids):  # the first is the container's, and takes the others with it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return Killed(name, at)

    def delete_a_pod_of(self, component: str) -> str:
        """As an eviction or a node's drain does it: SIGTERM, and another one starts."""
        labels = f"app.kubernetes.io/component={component}"
        found = self.fleet.kube.get("pods", "-n", SYSTEM, "-l", labels)["items"]
        name = min(pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"])
        self.fleet.kube.kubectl("delete", "pod", name, "-n", SYSTEM, "--wait=false")
        return str(name)


@dataclass(frozen=True, slots=True)
class Revisions:
    """Of the adapter, in the order in which they were committed."""

    first: str
    promoted: str
    overflowing: str
    refused: str


def three_rollouts(it: Story, overflowing: str, streams: Streams) -> tuple[Revisions, Killed]:
    """One is promoted, one taken back, one refused; return which, and the pod that was killed meanwhile."""
    first = it.status["stableRevision"]
    it.commit("roman-v2", rollout=CAREFUL, verify=VERIFY)
    it.wait_weights(80, 20)
    assert it.status["verify"]["result"] == "Passed"
    killed = it.kill_a_pod()
    it.wait_weights(50, 50)
    assert it.rollout["evidence"]["judgement"] == "Good"
    assert it.rollout["evidence"]["gateways"] == 2
    it.delete_a_pod_of("gateway")
    wait_for("a good window", lambda: it.rollout.get("phase") == "Paused", timeout_seconds=PATIENCE_SECONDS)
    second = it.rollout["revision"]
    assert it.status["stableRevision"] == first
    it.fleet.kube.kubectl("annotate", "lora", NAME, "-n", NAMESPACE, f"{ANNOTATION_PROMOTE}={second}:2")
    it.wait_condition("Ready", "True")
    assert it.status["stableRevision"] == second
    assert it.status["history"][0]["result"] == "Promoted"

    it.commit(overflowing, rollout=FIRST_A_TENTH)
    it.wait_weights(90, 10)
    it.delete_a_pod_of("operator")
    it.wait_condition("Stalled", "True", reason="AnalysisFailed")
    assert it.rollout["phase"] == "RolledBack"
    assert it.rollout["evidence"]["canary"]["faults"] > 0
    assert it.status["history"][0]["result"] == "RolledBack"
    third = it.rollout["revision"]

    it.commit("german", rollout=CAREFUL, verify=VERIFY)
    it.wait_condition("Stalled", "True", reason="VerifyFailed")
    assert it.rollout["phase"] == "RolledBack"
    assert it.status["verify"]["check"] == "four"
    fourth = it.status["verify"]["revision"]
    wait_for("bad ones are unloaded", lambda: {p["revision"] for p in it.status["placements"]} == {second})
    wait_for("requests", lambda: len(streams.ended) >= NUM_REQUESTS, timeout_seconds=PATIENCE_SECONDS)
    assert it.status["stableRevision"] == second
    return Revisions(first, second, third, fourth), killed


def test_three_rollouts_and_no_request_is_dropped(fleet: Fleet, gateways: None, overflowing: str) -> None:
    """Each request ends with the whole answer of a revision that status gave a weight, but for those that cannot.

    Those are the requests that the overflowing revision takes, and the streams that had begun on the pod that is killed: both
    end with an error that names its cause.
    """
    it, streams = Story(fleet), Streams()
    it.commit("roman")
    it.wait_condition("Ready", "True")
    with watched(fleet.kube, NAMESPACE, NAME) as timeline:
        wait_for("the watch", lambda: timeline.said)
        try:
            with streaming(streams, fleet.url, NAME, NUMBERS, num_clients=NUM_CLIENTS):
                revisions, killed = three_rollouts(it, overflowing, streams)
        finally:
            print(told(streams.ended, timeline))
    ended = streams.ended
    assert len({revisions.first, revisions.promoted, revisions.overflowing, revisions.refused}) == 4
    writers = {revisions.first: "roman", revisions.promoted: "roman-v2"}
    assert_answered(ended, writers, revisions.overflowing, killed)
    assert_allowed(ended, timeline)
    assert {answer.revision for answer in ended} - {""} == {*writers, revisions.overflowing}
    assert_shares(ended, timeline, num_weights=3)
    fleet.delete(NAME)


def assert_answered(ended: list[Streamed], writers: dict[str, str], overflowing: str, killed: Killed) -> None:
    """Every request has the whole answer of its revision, or the error that its fate allows."""
    for answer in ended:
        match answer.ending:
            case Ending.WHOLE:
                assert answer.text == truth(writers[answer.revision], answer.number), answer
            case Ending.REFUSED | Ending.ERROR_EVENT if answer.revision == overflowing:
                assert answer.error == "not_finite", answer
            case Ending.ERROR_EVENT | Ending.BROKEN:
                assert answer.pod == killed.pod, answer
                assert answer.sent < killed.at < answer.ended, answer
            case _:
                pytest.fail(f"dropped: {answer}")
    assert sum(answer.pod == killed.pod and answer.sent < killed.at < answer.ended for answer in ended) <= NUM_CLIENTS


def assert_allowed(ended: list[Streamed], timeline: Timeline) -> None:
    """No answer is of a revision that status gave nothing at the time."""
    for answer in ended:
        allowed = timeline.allowed(answer.sent, answer.ended, slack_seconds=SLACK_SECONDS)
        assert answer.revision in allowed or not answer.revision, (answer, allowed)


def shares(ended: list[Streamed], timeline: Timeline) -> Iterator[tuple[int, int, int]]:
    """Yield weight of the canary in percent, requests, and those of the canary, for each time that a weight was given."""
    for begin, end, said in timeline.intervals():
        shared = {r: w for r, w in said.weights.items() if r != said.stable}
        if said.weights.get(said.stable, 0) == 0 or not shared:
            continue  # all of it is one's
        ((canary, weight),) = shared.items()
        within = [it for it in ended if begin + SLACK_SECONDS <= it.sent <= end - SLACK_SECONDS]
        yield weight, len(within), sum(answer.revision == canary for answer in within)


def assert_shares(ended: list[Streamed], timeline: Timeline, *, num_weights: int) -> None:
    """Revisions get their weights, as far as chance allows: all bounds hold but with probability FALSE_ALARM."""
    found = list(shares(ended, timeline))
    assert [weight for weight, _, _ in found] == [20, 50, 10]
    for weight, num, num_canary in found:
        low, high = binomial_bounds(num, weight / 100, FALSE_ALARM / num_weights)
        assert low <= num_canary <= high, (weight, num, num_canary, low, high)
    assert sum(num for _, num, _ in found) >= 3 * MIN_REQUESTS


def told(ended: list[Streamed], timeline: Timeline) -> str:
    """What came of the requests, for people."""
    if not ended:
        return "no request has ended"
    seconds = max(answer.ended for answer in ended) - min(answer.sent for answer in ended)
    counted = Counter(
        (answer.ending.value, answer.error) if answer.error else (answer.ending.value,) for answer in ended
    )
    lines = [f"{len(ended)} requests in {seconds:.0f} s: {dict(counted)}"]
    for weight, num, num_canary in shares(ended, timeline):
        bounds = binomial_bounds(num, weight / 100, FALSE_ALARM / 3)
        lines.append(f"weight {weight}: {num_canary} of {num}, bounds {bounds}")
    return "\n".join(lines)
