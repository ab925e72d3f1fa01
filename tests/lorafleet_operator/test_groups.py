"""A base whose replicas are of several pods each: a LeaderWorkerSet has them, and the first of each is all that counts."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest_asyncio
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, OF_SETS, SETS, Fleet, settled, simulated_fleet, until

from lorafleet_contract.names import LABEL_RANKS_OF
from lorafleet_operator.cluster.store import Kind

HOSTS = {"tensorParallelSize": 2, "hosts": 2}
QUICK = replace(CONFIG, resync_seconds=1)


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


def the_set(fleet: Fleet) -> Any:
    return fleet.kube.find(SETS, NAMESPACE, BASE)


def message(fleet: Fleet) -> str:
    conditions = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)["status"]["conditions"]
    return str(next(one["message"] for one in conditions if one["type"] == "Ready"))


async def test_adapters_come_to_the_first_pod_of_each_group_and_these_are_counted(fleet: Fleet) -> None:
    fleet.base(engine=HOSTS, replicas=2)
    await fleet.operate()
    await until("the set is there", lambda: the_set(fleet) is not None)
    assert fleet.kube.find("deployments", NAMESPACE, BASE) is None
    assert the_set(fleet)["spec"]["replicas"] == 2
    other = {"name": f"{BASE}-0-1", "namespace": NAMESPACE, "uid": "other", "labels": {LABEL_RANKS_OF: BASE}}
    fleet.kube.put(Kind.POD, {"metadata": other, "status": {"phase": "Running"}})
    for _ in range(2):
        await fleet.pod()
    fleet.adapter("a", placement={"mode": "All"})
    await until("the base is ready", lambda: fleet.base_condition() == ("True", "PodsReady"))
    await until("the adapter is ready", lambda: fleet.is_ready("a"))
    await until("it is on both", lambda: len(fleet.status("a").get("placements", [])) == 2)
    assert {one["pod"] for one in fleet.status("a")["placements"]} == set(fleet.pods)
    status = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)["status"]
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
    await settled(fleet)
    writes = [write for write in fleet.kube.writes if SETS in write and "dryRun" not in write]
    assert len(writes) <= 4, "it is not applied in each pass"


async def test_a_further_pod_that_keeps_its_group_is_named(fleet: Fleet) -> None:
    fleet.base(engine=HOSTS)
    await fleet.operate(QUICK)
    await until("the set is there", lambda: the_set(fleet) is not None)
    metadata = {
        "name": f"{BASE}-0-1",
        "namespace": NAMESPACE,
        "uid": "further",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {LABEL_RANKS_OF: BASE, f"{OF_SETS}/name": BASE, f"{OF_SETS}/worker-index": "1"},
        "ownerReferences": [{"kind": "StatefulSet", "name": f"{BASE}-0", "uid": "u", "controller": True}],
    }
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    fleet.kube.put(Kind.POD, {"metadata": metadata, "status": {"phase": "Pending", "conditions": [unplaced]}})
    first = await fleet.pod()
    first.hang()
    expected = f"0 of 1 pods are up to date and ready; {BASE}-0-1: Unschedulable: 0/1 nodes"
    await until("it is named", lambda: message(fleet) == expected)
    fleet.kube.delete(Kind.POD, NAMESPACE, f"{BASE}-0-1")
    first.wake()
    await until("the base is ready", lambda: fleet.base_condition() == ("True", "PodsReady"))


async def test_fewer_groups_are_asked_for_without_telling_which(fleet: Fleet) -> None:
    """A LeaderWorkerSet takes those of the highest number."""
    fleet.base(engine=HOSTS, replicas=2)
    await fleet.operate()
    await until("the set is there", lambda: the_set(fleet) is not None)
    for _ in range(2):
        await fleet.pod()
    await until("the base is ready", lambda: fleet.base_condition() == ("True", "PodsReady"))
    body = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)
    fleet.kube.put(Kind.BASE, {**body, "spec": {**body["spec"], "replicas": 1}})
    await until("one is asked for", lambda: the_set(fleet)["spec"]["replicas"] == 1)
    assert not any("/pods/" in write for write in fleet.kube.writes)


async def test_autoscaling_asks_for_groups(fleet: Fleet) -> None:
    fleet.base(engine=HOSTS, autoscaling={"minReplicas": 3, "maxReplicas": 5, "targetSequences": 8})
    await fleet.operate()
    await until("as many as there have to be", lambda: (the_set(fleet) or {}).get("spec", {}).get("replicas") == 3)


async def test_a_cluster_that_does_not_know_the_kind_is_said_to_need_it_and_noticed_when_it_does(fleet: Fleet) -> None:
    fleet.kube.unknown.add(SETS)
    fleet.base(engine=HOSTS)
    await fleet.operate(QUICK)
    await until("it is said", lambda: fleet.base_condition() == ("False", "ApiNotFound"))
    assert "install LeaderWorkerSet" in message(fleet)
    assert fleet.base_condition("Stalled")[0] == "True"
    fleet.kube.unknown.clear()
    await until("it is there", lambda: the_set(fleet) is not None)
    await fleet.pod()
    await until("the base is ready", lambda: fleet.base_condition() == ("True", "PodsReady"))


async def test_an_operator_without_rights_names_the_value_of_the_chart(fleet: Fleet) -> None:
    fleet.kube.forbidden.add((SETS, NAMESPACE))
    fleet.base(engine=HOSTS)
    await fleet.operate(QUICK)
    await until("it is said", lambda: fleet.base_condition() == ("False", "Forbidden"))
    assert "operator.leaderWorkerSets of the chart" in message(fleet)
