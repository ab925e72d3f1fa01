"""The InferencePool of a base: made where the cluster knows the kind, said where it does not, taken away when nobody asks for it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest_asyncio
from support import operator_views as v
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, Fleet, settled, simulated_fleet, until

from lorafleet_contract.reasons import Reason
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.optional_objects import POOL, OptionalFacts, verdicts_of, wanted

POOLS = "inferencepools"
ROUTING = {"inferencePool": {"endpointPickerRef": {"name": "epp", "port": 9002, "failureMode": "FailOpen"}}}
QUICK = replace(CONFIG, resync_seconds=1)


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


def pool(fleet: Fleet) -> Any:
    return fleet.kube.find(POOLS, NAMESPACE, BASE)


def said(fleet: Fleet) -> tuple[str, str]:
    return fleet.base_condition("InferencePoolApplied")


def change(fleet: Fleet, **fields: Any) -> None:
    """Change the spec of the base; None takes a field away."""
    body = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)
    spec = {name: value for name, value in {**body["spec"], **fields}.items() if value is not None}
    fleet.kube.put(Kind.BASE, {**body, "spec": spec})


def test_selects_the_pods_and_names_the_picker() -> None:
    child = wanted(POOL, v.base(routing={"inferencePool": {"endpointPickerRef": {"name": "epp"}}}), ())
    assert child is not None
    assert child.path == "/apis/inference.networking.k8s.io/v1/namespaces/team/inferencepools/base"
    assert child.body["spec"] == {
        "selector": {"matchLabels": {"lorafleet.io/base": "base"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {
            "group": "",
            "kind": "Service",
            "name": "epp",
            "port": {"number": 9002},
            "failureMode": "FailClose",
        },
    }
    assert wanted(POOL, v.base(), ()) is None


def test_what_was_said_stands_while_nothing_new_is_known() -> None:
    before = {"type": "InferencePoolApplied", "status": "True", "reason": "Applied", "message": ""}
    base = v.base()
    base = base.model_copy(
        update={"status": base.status.model_validate({"conditions": [{**before, "lastTransitionTime": v.NOW}]})}
    )
    assert [(verdict.status, verdict.reason) for verdict in verdicts_of(base, {})] == [("True", "Applied")]
    assert verdicts_of(base, {POOL: OptionalFacts()}) == []
    assert verdicts_of(base, {POOL: OptionalFacts(None, Reason.FORBIDDEN)})[0].status == "False"


async def test_it_comes_and_goes_with_the_field(fleet: Fleet) -> None:
    fleet.base(routing=ROUTING)
    await fleet.operate()
    await until("it is applied", lambda: said(fleet) == ("True", "Applied"))
    body = pool(fleet)
    assert body["spec"]["endpointPickerRef"]["failureMode"] == "FailOpen"
    assert body["metadata"]["ownerReferences"][0]["kind"] == "BaseModelDeployment"
    status = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)["status"]
    assert status["inferencePool"] == {"name": BASE, "uid": body["metadata"]["uid"]}
    await settled(fleet)
    assert sum(POOLS in write for write in fleet.kube.writes) == 1, "it is not applied in each pass"

    picker = {"name": "other", "port": 9003, "failureMode": "FailClose"}
    change(fleet, routing={"inferencePool": {"endpointPickerRef": picker}})
    await until("it follows", lambda: pool(fleet)["spec"]["endpointPickerRef"]["name"] == "other")
    change(fleet, suspend=True, routing=None)
    await until("suspended", lambda: fleet.base_condition("Suspended")[0] == "True")
    assert pool(fleet) is not None
    change(fleet, suspend=None)
    await until("it is gone", lambda: pool(fleet) is None)
    await until("nothing is said", lambda: said(fleet) == ("", "") and "inferencePool" not in _status(fleet))
    await settled(fleet)
    assert (
        sum(
            f"DELETE /apis/inference.networking.k8s.io/v1/namespaces/{NAMESPACE}/{POOLS}" in w
            for w in fleet.kube.writes
        )
        == 1
    )


def _status(fleet: Fleet) -> Any:
    return fleet.kube.get(Kind.BASE, NAMESPACE, BASE)["status"]


async def test_it_is_taken_away_by_an_operator_that_starts_anew(fleet: Fleet) -> None:
    fleet.base(routing=ROUTING)
    operator = await fleet.operate()
    await until("it is applied", lambda: said(fleet) == ("True", "Applied"))
    await fleet.end(operator)
    change(fleet, routing=None)
    await fleet.operate()
    await until("it is gone", lambda: pool(fleet) is None)


async def test_cluster_without_the_kind_is_ready_and_gets_it_later(fleet: Fleet) -> None:
    fleet.kube.unknown.add(POOLS)
    fleet.base(routing=ROUTING)
    await fleet.operate(QUICK)
    await fleet.pod()
    await until("it is said", lambda: said(fleet) == ("False", "ApiNotFound"))
    await until("the base is ready", lambda: fleet.base_condition()[0] == "True")
    fleet.kube.unknown.discard(POOLS)
    await until("it is applied", lambda: said(fleet) == ("True", "Applied"))
    assert pool(fleet) is not None


async def test_without_rights_it_is_said_and_asked_once(fleet: Fleet) -> None:
    fleet.kube.forbid(NAMESPACE, POOLS)
    asked: list[str] = []
    fleet.kube.before = lambda verb, path: asked.append(path) if POOLS in path else None
    fleet.base(routing=ROUTING)
    await fleet.operate()
    await fleet.pod()
    await until("it is said", lambda: said(fleet) == ("False", "Forbidden"))
    await until("the base is ready", lambda: fleet.base_condition()[0] == "True")
    await settled(fleet)
    assert len(asked) == 1


async def test_somebody_elses_is_not_touched(fleet: Fleet) -> None:
    theirs = {"metadata": {"name": BASE, "namespace": NAMESPACE}, "spec": {"targetPorts": [{"number": 1}]}}
    fleet.kube.put(POOLS, theirs)
    fleet.base(routing=ROUTING)
    await fleet.operate()
    await until("it is said", lambda: said(fleet) == ("False", "ApplyFailed"))
    change(fleet, routing=None)
    await until("nothing is said", lambda: said(fleet) == ("", ""))
    await asyncio.sleep(0)
    assert pool(fleet)["spec"] == theirs["spec"]


async def test_one_that_was_made_anew_by_others_stays(fleet: Fleet) -> None:
    fleet.base(routing=ROUTING)
    operator = await fleet.operate()
    await until("it is applied", lambda: said(fleet) == ("True", "Applied"))
    await fleet.end(operator)
    fleet.kube.delete(POOLS, NAMESPACE, BASE)
    fleet.kube.put(POOLS, {"metadata": {"name": BASE, "namespace": NAMESPACE}, "spec": {}})
    change(fleet, routing=None)
    await fleet.operate()
    await until("nothing is said", lambda: said(fleet) == ("", "") and "inferencePool" not in _status(fleet))
    assert pool(fleet) is not None
