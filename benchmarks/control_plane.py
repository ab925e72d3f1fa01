"""What a pass of the operator over a large base costs: `python benchmarks/control_plane.py [--pods 50] [--adapters 1000]`.

Process time, medians of rounds: pods, API server and sockets are not there, so that only the operator's own work counts.
Every adapter is served, nothing changes but that every pod has said something new ("observe"): one entry has become another
object. "a difference" is what the answer to a write costs that tells of one entry.
"""

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import operator_views as v

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Owner, PodDifference, PodState, Residency, Tier
from lorafleet_contract.names import revision_of
from lorafleet_operator.act.pod_states import PodStates
from lorafleet_operator.cluster.collect import snapshot_of
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.plan import PassMemory, changes_of, plan_of
from lorafleet_operator.decide.remembered import Remembered
from lorafleet_operator.decide.views import ObservedPod

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
KEY = ("team", "base")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    store = store_of(options.pods, options.adapters)
    settle(store)
    rounds = [timed_pass(store) for _ in range(options.rounds)]
    sys.stdout.write(f"{options.adapters} adapters on {options.pods} pods, process time, medians of {options.rounds}\n")
    for stage in rounds[0]:
        sys.stdout.write(f"{stage:24} {statistics.median(one[stage] for one in rounds) * 1000:9.1f} ms\n")
    sys.stdout.write(f"{'a pass':24} {statistics.median(sum(one.values()) for one in rounds) * 1000:9.1f} ms\n")
    document = PODS[0].state.model_dump_json(by_alias=True, exclude_none=True).encode()  # type: ignore[union-attr]
    seconds = statistics.median(timed(lambda: STATES.read(document))[0] for _ in range(options.rounds))
    sys.stdout.write(f"{'a poll, whole':24} {seconds * 1000:9.1f} ms, {len(document)} bytes\n")
    state = STATES.read(document)
    told = PodDifference(**{**dict(state), "adapters": state.adapters[:1]}, since=state.generation)
    difference = told.model_dump_json(by_alias=True, exclude_none=True).encode()
    seconds = statistics.median(timed(lambda: STATES.read_news(difference, state))[0] for _ in range(options.rounds))
    sys.stdout.write(f"{'a difference':24} {seconds * 1000:9.1f} ms, {len(difference)} bytes\n")


PODS: list[ObservedPod] = []
STATES, MEMORY, REMEMBERED = PodStates(), PassMemory(), Remembered()


def store_of(num_pods: int, num_adapters: int) -> Store:
    """A base, its adapters and its pods, as the API server tells of them."""
    store = Store()
    base = v.base(lora={"maxResidentAdapters": 64}, replicas=num_pods).model_dump(mode="json", by_alias=True)
    store.put(Kind.BASE, {**base, "metadata": {**base["metadata"], "resourceVersion": "1"}})
    for number in range(num_adapters):
        name = f"adapter-{number:05}"
        body = v.adapter(name, status=v.served(name)).model_dump(mode="json", by_alias=True, exclude_none=True)
        metadata = {**body["metadata"], "resourceVersion": "1", "finalizers": ["lorafleet.io/unload"]}
        store.put(Kind.ADAPTER, {**body, "metadata": metadata})
    for number in range(num_pods):
        store.put(Kind.POD, pod_body(number))
    return store


def pod_body(number: int) -> dict[str, Any]:
    """A ready pod."""
    owner = {"kind": "ReplicaSet", "name": "base-1", "controller": True}
    return {
        "metadata": {
            "name": f"base-{number:03}",
            "namespace": "team",
            "uid": f"uid-base-{number:03}",
            "resourceVersion": "1",
            "creationTimestamp": (NOW - timedelta(hours=1)).isoformat(),
            "labels": {"lorafleet.io/base": "base", "pod-template-hash": "1"},
            "ownerReferences": [owner],
        },
        "status": {
            "podIP": f"10.0.0.{number}",
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": NOW.isoformat()}],
            "containerStatuses": [{"name": "engine", "started": True, "state": {"running": {}}}],
        },
    }


def settle(store: Store) -> None:
    """Let pods have what they should, and statuses say so."""
    snapshot = snapshot_of(store, KEY, NOW)
    PODS[:] = [v.seen(pod=pod, slots=64, rank_pages=512) for pod in snapshot.pods]
    for _ in range(2):
        plan = plan_of(snapshot, PODS, {})
        for index, pod in enumerate(PODS):
            told = [
                seen(adapter.served_name, is_resident=pod.uid in plan.placement.pods.get(adapter.served_name, ()))
                for adapter in snapshot.adapters
            ]
            PODS[index] = v.seen(*told, pod=pod.pod, slots=64, rank_pages=512)
    for index, pod in enumerate(PODS):
        assert pod.state is not None
        document = pod.state.model_dump_json(by_alias=True, exclude_none=True).encode()
        PODS[index] = ObservedPod(pod.pod, STATES.read(document))
    bodies = {body["metadata"]["uid"]: body for body in store.all(Kind.ADAPTER)}
    for lineup in plan.lineups:
        status = adapter_status(lineup, PODS, plan.placement, now=NOW)
        body = bodies[lineup.intent.adapter.metadata.uid]
        metadata = {**body["metadata"], "resourceVersion": "2"}
        written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        store.put(Kind.ADAPTER, {**body, "metadata": metadata, "status": written})


def seen(name: str, *, is_resident: bool) -> ObservedAdapter:
    """An adapter on a pod."""
    digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    return ObservedAdapter(
        name=name,
        revision=revision_of(digest),
        digest=digest,
        owner=Owner.OPERATOR,
        residency=Residency.RESIDENT if is_resident else Residency.ON_DEMAND,
        stable=True,
        state=AdapterState.READY,
        tier=Tier.DEVICE if is_resident else Tier.DISK,
        rank=8,
        rank_pages=1,
        size_bytes=800,
    )


def timed_pass(store: Store) -> dict[str, float]:
    """Do what a pass does, without its writes; return the seconds of each stage."""
    seconds: dict[str, float] = {}
    seconds["snapshot"], snapshot = timed(lambda: snapshot_of(store, KEY, NOW))
    states = [told_again(pod) for pod in PODS]
    given = list(zip(snapshot.pods, states, PODS, strict=True))
    seconds["observe"], pods = timed(lambda: [ObservedPod(pod, state, before) for pod, state, before in given])
    PODS[:] = pods
    seconds["plan"], plan = timed(lambda: plan_of(snapshot, pods, {}, memory=MEMORY))
    seconds["changes"], changes = timed(lambda: changes_of(plan, snapshot, pods, fence=1, memory=MEMORY))
    assert not changes, changes[0].why
    made = REMEMBERED.begin(KEY, pods, plan.placement)
    seconds["statuses"], statuses = timed(lambda: [made.of(lineup, NOW) for lineup in plan.lineups])
    seconds["what changed"], changed = timed(
        lambda: [s for s, a in zip(statuses, snapshot.adapters, strict=True) if s is not a.status and s != a.status]
    )
    assert not changed, changed[0]
    return seconds


def told_again(pod: ObservedPod) -> PodState:
    """What a pod says when its first entry has changed, and back."""
    assert pod.state is not None
    first, *others = pod.state.adapters
    return pod.state.model_copy(update={"adapters": [first.model_copy(), *others]})


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the process time of some work, and what it returned."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


if __name__ == "__main__":
    main()
