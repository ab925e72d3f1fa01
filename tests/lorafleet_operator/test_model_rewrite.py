"""The InferenceModelRewrite of a base: the weights of rollouts for inference gateways, behind a check of its own."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from support import operator_views as v
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, Fleet, settled, simulated_fleet, until

from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.optional_objects import REWRITE, wanted

POOLS, REWRITES = "inferencepools", "inferencemodelrewrites"
POOL = {"endpointPickerRef": {"name": "epp"}}
MANAGED = {"inferencePool": {**POOL, "modelRewrite": "Managed"}}
QUICK = replace(CONFIG, resync_seconds=1)
OLD, NEW = "a" * 12, "b" * 12


def given(*shares: tuple[str, int], name: str | None = "a") -> dict[str, Any]:
    """Status of an adapter whose stable revision is the old one."""
    traffic = [{"revision": one, "weight": weight} for one, weight in shares]
    return {"stableRevision": OLD, "servedName": name, "traffic": traffic}


def rule(name: str, *targets: tuple[str, int]) -> dict[str, Any]:
    return {
        "matches": [{"model": {"type": "Exact", "value": name}}],
        "targets": [{"modelRewrite": model, "weight": weight} for model, weight in targets],
    }


SHARES = (OLD, 95), (NEW, 5)
TOLD: dict[str, tuple[list[Any], list[Any]]] = {
    "no adapter": ([], []),
    "nothing is rolled out": ([v.adapter("a", status=v.served("x"))], []),
    "nobody answers": ([v.adapter("a")], []),
    "a part goes to the new one": (
        [v.adapter("a", servedName="team/a.b", status=given(*SHARES, name="team/a.b"))],
        [rule("team/a.b", ("team/a.b", 95), (f"team/a.b@{NEW}", 5))],
    ),
    "it is rolled back": ([v.adapter("a", status=given((OLD, 100)))], []),
    "a weight of none is no target": ([v.adapter("a", status=given((OLD, 100), (NEW, 0)))], []),
    "all goes to the new one": (
        [v.adapter("a", status=given((OLD, 0), (NEW, 100)))],
        [rule("a", (f"a@{NEW}", 100))],
    ),
    "by their names, also of other namespaces": (
        [v.adapter("b", namespace="guests", status=given(*SHARES, name="b")), v.adapter("a", status=given(*SHARES))],
        [rule("a", ("a", 95), (f"a@{NEW}", 5)), rule("b", ("b", 95), (f"b@{NEW}", 5))],
    ),
    "one that is being deleted": ([v.adapter("a", status=given(*SHARES), deleted=True)], []),
    "one that has not won its name": ([v.adapter("a", status=given(*SHARES, name=None))], []),
}


@pytest.mark.parametrize(("adapters", "rules"), TOLD.values(), ids=TOLD.keys())
def test_has_a_rule_for_each_adapter_that_is_rolled_out(adapters: list[Any], rules: list[Any]) -> None:
    child = wanted(REWRITE, v.base(routing=MANAGED), adapters)
    assert child is not None
    assert child.path == f"/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/team/{REWRITES}/base"
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "base"}
    assert child.body["spec"] == {"poolRef": pool, "rules": rules}
    assert child.body["metadata"]["ownerReferences"][0]["uid"] == "uid-base"


@pytest.mark.parametrize("routing", [{}, {"inferencePool": POOL}])
def test_there_is_none_unless_it_is_asked_for(routing: dict[str, Any]) -> None:
    assert wanted(REWRITE, v.base(routing=routing), [v.adapter("a", status=given(*SHARES))]) is None


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


def said(fleet: Fleet, kind: str = "ModelRewriteApplied") -> tuple[str, str]:
    return fleet.base_condition(kind)


def _status(fleet: Fleet) -> Any:
    return fleet.kube.get(Kind.BASE, NAMESPACE, BASE)["status"]


def change(fleet: Fleet, routing: dict[str, Any]) -> None:
    body = fleet.kube.get(Kind.BASE, NAMESPACE, BASE)
    fleet.kube.put(Kind.BASE, {**body, "spec": {**body["spec"], "routing": routing}})


async def test_it_comes_and_goes_with_its_field_and_the_pool_stays(fleet: Fleet) -> None:
    fleet.base(routing=MANAGED)
    await fleet.operate()
    await until("both are applied", lambda: said(fleet) == said(fleet, "InferencePoolApplied") == ("True", "Applied"))
    made = fleet.kube.find(REWRITES, NAMESPACE, BASE)
    assert _status(fleet)["modelRewrite"] == {"name": BASE, "uid": made["metadata"]["uid"]}
    await settled(fleet)
    assert sum(REWRITES in write for write in fleet.kube.writes) == 1, "it is not applied in each pass"

    change(fleet, {"inferencePool": POOL})
    await until("it is gone", lambda: fleet.kube.find(REWRITES, NAMESPACE, BASE) is None)
    await until("nothing is said", lambda: said(fleet) == ("", "") and "modelRewrite" not in _status(fleet))
    assert fleet.kube.find(POOLS, NAMESPACE, BASE) is not None

    change(fleet, MANAGED)
    await until("it is back", lambda: said(fleet) == ("True", "Applied"))
    change(fleet, {})
    await until(
        "both are gone", lambda: all(fleet.kube.find(one, NAMESPACE, BASE) is None for one in (POOLS, REWRITES))
    )


async def test_a_cluster_may_serve_pools_and_no_rewrites(fleet: Fleet) -> None:
    fleet.kube.unknown.add(REWRITES)
    fleet.base(routing=MANAGED)
    await fleet.operate(QUICK)
    await fleet.pod()
    await until("it is said", lambda: said(fleet) == ("False", "ApiNotFound"))
    await until("the pool is there", lambda: said(fleet, "InferencePoolApplied") == ("True", "Applied"))
    await until("the base is ready", lambda: fleet.base_condition()[0] == "True")
    fleet.kube.unknown.discard(REWRITES)
    await until("it is applied", lambda: said(fleet) == ("True", "Applied"))
