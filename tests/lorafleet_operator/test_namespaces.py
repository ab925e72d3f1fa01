"""Several namespaces are served: one that is deleted, or whose rights are taken away, costs itself only."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from support.simulated_fleet import CONFIG, NAMESPACE, SYSTEM, Fleet, simulated_fleet, until

from lorafleet_contract.names import FINALIZER
from lorafleet_operator import metrics
from lorafleet_operator.cluster.store import Kind

OTHER = "other-team"
SEVERAL = replace(CONFIG, watch_namespaces=(NAMESPACE, OTHER), resync_seconds=1)
ALL_KINDS = tuple(Kind)
ROLE = (Kind.POD, "deployments", "services", "poddisruptionbudgets", "events")
"""What the chart's Role in a namespace allows; both kinds are allowed by a ClusterRole."""


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    metrics.NAMESPACE_REFUSED.clear()
    async with simulated_fleet() as it:
        for name in (NAMESPACE, OTHER):
            it.kube.put("namespaces", {"metadata": {"name": name}})
        yield it


def is_refused(namespace: str = OTHER) -> bool:
    return metrics.REGISTRY.get_sample_value("lorafleet_operator_namespace_refused", {"namespace": namespace}) == 1


def lease_events(fleet: Fleet) -> list[str]:
    return [
        f"{body['reason']}: {body['message']}"
        for (kind, place, _), body in fleet.kube.objects.items()
        if kind == "events" and place == SYSTEM and body["involvedObject"]["kind"] == "Lease"
    ]


async def served(fleet: Fleet) -> None:
    """A base and a pod in one namespace, and adapters in both."""
    fleet.base(allowedNamespaces=[OTHER])
    fleet.adapter("french")
    fleet.adapter("dutch", namespace=OTHER, base={"name": "base", "namespace": NAMESPACE})
    await fleet.operate(SEVERAL)
    await fleet.pod()
    await until(
        "both ready",
        lambda: fleet.is_ready("french") and fleet.condition("dutch", namespace=OTHER)[0] == "True",
    )


async def test_namespace_without_rights_costs_itself_only(fleet: Fleet) -> None:
    """What was known of it goes on being served, and it comes back by itself."""
    await served(fleet)
    fleet.kube.forbid(OTHER, *ALL_KINDS)
    await until("said", is_refused)
    await until("an Event", lambda: any("403" in event for event in lease_events(fleet)))
    fleet.adapter("german")
    await until("the other namespace goes on", lambda: fleet.is_ready("german"))
    assert "dutch" in fleet.pods["base-0"].names()
    assert fleet.health.problem() is None
    assert fleet.health.is_ready
    fleet.kube.permit(OTHER)
    fleet.adapter("italian", namespace=OTHER, base={"name": "base", "namespace": NAMESPACE})
    await until("back", lambda: fleet.condition("italian", namespace=OTHER)[0] == "True")
    assert not is_refused()
    assert lease_events(fleet)[-1] == f"NamespaceServed: namespace {OTHER} is served again"


async def test_operator_starts_beside_a_namespace_without_rights(fleet: Fleet) -> None:
    """An adapter that cannot be seen is no reason to unload what pods have of it."""
    await served(fleet)
    await fleet.end(fleet.operators[0])
    fleet.kube.forbid(OTHER, *ALL_KINDS)
    fleet.adapter("german")
    await fleet.operate(SEVERAL)
    await until("the other namespace is served", lambda: fleet.is_ready("german"))
    assert fleet.health.is_ready
    await asyncio.sleep(2.5)  # two lists and more
    assert "dutch" in fleet.pods["base-0"].names()


@pytest.mark.parametrize("is_seen", [False, True], ids=["at once", "slowly"])
async def test_adapters_of_a_namespace_that_is_deleted_go_with_it(fleet: Fleet, is_seen: bool) -> None:
    """Its Role goes together with them, and may be missed before the namespace is; the rights on both kinds do not go."""
    await served(fleet)
    fleet.kube.forbid(OTHER, *ROLE)
    if is_seen:
        await until("said", lambda: any("403" in event for event in lease_events(fleet)))
    fleet.kube.delete(Kind.ADAPTER, OTHER, "dutch")
    await until("gone", lambda: fleet.kube.find(Kind.ADAPTER, OTHER, "dutch") is None)
    fleet.kube.delete("namespaces", "", OTHER)
    await until("said", lambda: any("no such namespace" in event for event in lease_events(fleet)))
    assert fleet.is_ready("french")


async def test_namespace_that_is_gone_leaves_nothing_behind(fleet: Fleet) -> None:
    await served(fleet)
    body = fleet.kube.get(Kind.ADAPTER, OTHER, "dutch")
    with fleet.deaf():
        fleet.kube.put(Kind.ADAPTER, {**body, "metadata": {**body["metadata"], "finalizers": []}})
        fleet.kube.delete(Kind.ADAPTER, OTHER, "dutch")
        fleet.kube.delete("namespaces", "", OTHER)
        fleet.kube.forbid(OTHER, *ALL_KINDS)
    await until("unloaded", lambda: fleet.pods["base-0"].names() == {"french"})


async def test_nothing_is_said_and_nothing_let_go_of_pods_that_are_not_shown(fleet: Fleet) -> None:
    await served(fleet)
    await fleet.end(fleet.operators[0])
    fleet.kube.forbid(NAMESPACE, Kind.POD)
    await fleet.operate(SEVERAL)
    await until("said", lambda: is_refused(NAMESPACE))
    fleet.delete("french")
    await asyncio.sleep(2.5)
    assert fleet.condition("french") == ("True", "Serving")
    assert FINALIZER in fleet.kube.get(Kind.ADAPTER, NAMESPACE, "french")["metadata"]["finalizers"]
    fleet.kube.permit(NAMESPACE)
    await until("gone", lambda: fleet.is_gone("french"))


async def test_operator_waits_where_all_of_its_namespaces_are_refused(fleet: Fleet) -> None:
    """It does not end: that would help nobody."""
    config = replace(SEVERAL, watch_namespaces=(OTHER,))
    fleet.kube.delete("namespaces", "", OTHER)
    fleet.kube.forbid(OTHER, *ALL_KINDS)
    operator = await fleet.operate(config)
    await until("said", is_refused)
    assert not operator.done()
    assert not fleet.health.is_ready
    fleet.kube.permit(OTHER)
    await until("ready", lambda: fleet.health.is_ready)
