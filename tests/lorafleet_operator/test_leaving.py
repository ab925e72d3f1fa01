"""Of the pods of a base the emptiest goes first, and nothing is written of it at any other time."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from support import operator_views as v
from support.fake_kube import Refused
from support.simulated_fleet import CONFIG, NAMESPACE, Fleet, simulated_fleet, until

from lorafleet_contract.names import ANNOTATION_DELETION_COST
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.leaving import MAX_ALONE, MAX_SEQUENCES, UNKNOWN, deletion_costs

P0, P1, P2 = v.pod("p0"), v.pod("p1"), v.pod("p2")


def costs(*pods: object, **sequences: int) -> dict[str, int]:
    return deletion_costs(pods, {f"uid-{name}": number for name, number in sequences.items()})  # type: ignore[arg-type]


def test_adapters_that_others_have_too_cost_nothing() -> None:
    shared, alone = v.entry("french", "french"), v.entry("roman", "roman")
    found = costs(v.seen(shared, alone, pod=P0), v.seen(shared, pod=P1), p0=0, p1=0)
    assert found == {"uid-p0": 1, "uid-p1": 0}


def test_what_is_on_demand_or_on_a_leaving_pod_does_not_count() -> None:
    leaving = v.seen(v.entry("french", "french"), pod=v.pod("p1", leaving=True))
    on_demand = v.entry("roman", "roman", residency=v.Residency.ON_DEMAND)
    assert costs(v.seen(v.entry("french", "french"), on_demand, pod=P0), leaving, p0=0, p1=9) == {"uid-p0": 1}


def test_who_does_not_say_what_it_runs_goes_last() -> None:
    pods, expected = (v.seen(pod=P0), v.silent(P1)), {"uid-p0": MAX_SEQUENCES * (MAX_ALONE + 1), "uid-p1": UNKNOWN}
    assert costs(*pods, p0=10**9) == costs(*reversed(pods), p0=10**9) == expected


def test_a_pod_that_is_not_ready_goes_first_in_any_case() -> None:
    pods = (v.seen(pod=P0), v.seen(pod=v.pod("p1", ready=False)))
    assert costs(*pods, p0=3) == costs(*reversed(pods), p0=3) == {"uid-p0": 3 * (MAX_ALONE + 1)}


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 5)), min_size=1, max_size=4))
def test_costs_are_ordered_by_sequences_then_by_what_is_there_alone(pods: list[tuple[int, int]]) -> None:
    seen = [
        v.seen(*(v.entry(f"a{i}-{k}", f"a{i}-{k}") for k in range(alone)), pod=v.pod(f"p{i}"))
        for i, (_, alone) in enumerate(pods)
    ]
    found = deletion_costs(seen, {f"uid-p{i}": number for i, (number, _) in enumerate(pods)})
    bounded = [(min(number, MAX_SEQUENCES), alone) for number, alone in pods]
    order = sorted(range(len(pods)), key=lambda i: bounded[i])
    assert sorted(range(len(pods)), key=lambda i: found[f"uid-p{i}"]) == order
    assert all(0 <= cost < UNKNOWN for cost in found.values())


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


async def three(fleet: Fleet) -> None:
    """A base with three pods."""
    fleet.base(replicas=3)
    await fleet.operate(replace(CONFIG, resync_seconds=0.5))
    for _ in range(3):
        await fleet.pod()
    await until("ready", lambda: fleet.base_condition()[0] == "True")


def annotated(fleet: Fleet) -> dict[str, int]:
    """Pod -> what it costs to delete."""
    bodies = (fleet.kube.get(Kind.POD, NAMESPACE, name) for name in fleet.pods)
    found = ((body["metadata"]["name"], body["metadata"].get("annotations", {})) for body in bodies)
    return {name: int(notes[ANNOTATION_DELETION_COST]) for name, notes in found if ANNOTATION_DELETION_COST in notes}


def replicas(fleet: Fleet) -> int:
    number: int = fleet.kube.get("deployments", NAMESPACE, "base")["spec"]["replicas"]
    return number


def written_at(fleet: Fleet, part: str) -> list[str]:
    return [write for write in fleet.kube.writes if part in write]


async def test_the_emptiest_pod_goes(fleet: Fleet) -> None:
    """What each costs stands at the pods when the Deployment is told of fewer, by what they run at that moment."""
    await three(fleet)
    assert annotated(fleet) == {}
    for name, running, waiting in (("base-0", 3, 1), ("base-1", 0, 1), ("base-2", 2, 0)):
        fleet.pods[name].num_running, fleet.pods[name].num_waiting = running, waiting
    seen: list[dict[str, int]] = []

    def look(_event: str, plural: str, body: dict) -> None:
        if plural == "deployments" and body["spec"]["replicas"] == 2:
            seen.append(annotated(fleet))

    fleet.kube.on_change.append(look)
    fleet.base(replicas=2)
    await until("fewer are asked for", lambda: replicas(fleet) == 2)
    assert sorted(seen[0], key=seen[0].__getitem__) == ["base-1", "base-2", "base-0"]
    await fleet.kill(min(seen[0], key=seen[0].__getitem__))
    await until("settled", lambda: fleet.base_condition()[0] == "True")
    assert set(fleet.pods) == {"base-0", "base-2"}


async def test_costs_are_written_once_and_not_for_more_pods_or_none(fleet: Fleet) -> None:
    await three(fleet)
    fleet.base(replicas=2)
    await until("fewer are asked for", lambda: replicas(fleet) == 2)
    await fleet.kill("base-0")
    applied = len(written_at(fleet, "/deployments/"))
    await until("two resyncs", lambda: len(written_at(fleet, "/deployments/")) > applied + 2)
    written = written_at(fleet, "/pods/")
    assert len(written) == 3, written
    for number in (3, 0):
        fleet.base(replicas=number)
        await until("told", lambda number=number: replicas(fleet) == number)
    assert written_at(fleet, "/pods/") == written


async def test_without_the_right_fewer_pods_are_asked_for_all_the_same(fleet: Fleet) -> None:
    await three(fleet)

    def refuse(method: str, path: str) -> None:
        if method == "PATCH" and "/pods/" in path:
            raise Refused(403, "Forbidden")

    fleet.kube.before = refuse
    fleet.base(replicas=1)
    await until("fewer are asked for", lambda: replicas(fleet) == 1)
    assert annotated(fleet) == {}
