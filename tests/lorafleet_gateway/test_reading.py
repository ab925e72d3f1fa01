"""What another version of us wrote is read as far as it can be, and takes out of service as little as it can."""

from typing import Any

import pytest

from lorafleet_common.kube.cache import Unreadable
from lorafleet_contract.names import LABEL_BASE
from lorafleet_gateway.metrics import ClusterCollector
from lorafleet_gateway.views import adapter_view, base_view, slice_view

from .conftest import NAMESPACE, REVISION, World, eventually

OLDER = "c" * 12
NEWER = "d" * 12
OF_LATER: dict[str, Any] = {"stableRevision": {"name": NEWER}}
META = {"name": "one", "namespace": "team", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z"}
READY = {"type": "Ready", "status": "True", "reason": "Serving", "lastTransitionTime": "2026-01-01T00:00:00Z"}
STALLED = {**READY, "type": "Stalled", "reason": "RankTooHigh"}


def adapter(spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "kind": "LoraAdapter",
        "metadata": META,
        "spec": {"baseModelRef": {"name": "numerals"}, "source": {"name": "models", "path": "one"}, **(spec or {})},
        "status": {"servedName": "one", "stableRevision": REVISION, **status},
    }


def test_conditions_of_a_later_version_take_no_adapter_out_of_service() -> None:
    """One has a field that is not known, one a status, and one is no condition; what can be read of them counts."""
    odd = [{**READY, "severity": "Info"}, {**READY, "type": "Odd", "status": "Sometimes"}, "Fine", STALLED]
    view = adapter_view(adapter(conditions=odd))
    assert (view.name, view.revision, view.is_refused) == ("one", REVISION, True)


def test_entries_of_the_history_that_cannot_be_read_cost_themselves() -> None:
    view = adapter_view(adapter(history=[{"digest": "of later"}, {"revision": OLDER}, {"revision": 3}]))
    assert view.pinnable == {REVISION, OLDER}


@pytest.mark.parametrize(
    "status",
    [
        {"history": "of later"},
        {"conditions": {"ready": True}},
        {"artifact": {"invocationTokens": ["<a>"]}},
        {"stableArtifact": "of later"},
        {"traffic": {"stable": 100}},
    ],
    ids=lambda status: next(iter(status)),
)
def test_what_tells_of_an_adapter_is_no_reason_not_to_serve_it(status: dict[str, Any]) -> None:
    view = adapter_view(adapter(**status))
    assert (view.name, view.revision, view.invocation_tokens) == ("one", REVISION, None)


def test_where_an_adapter_comes_from_is_no_reason_either() -> None:
    assert adapter_view(adapter({"source": {"repo": ["a", "b"]}})).root == ""


@pytest.mark.parametrize(
    "body",
    [
        adapter({"baseModelRef": "numerals"}),
        adapter(stableRevision={"name": REVISION}),
        {**adapter(), "status": "of later"},
    ],
    ids=["base", "revision", "status"],
)
def test_an_adapter_of_which_it_is_not_known_what_answers_for_it_cannot_be_read(body: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match=r"LoraAdapter team/one: "):
        adapter_view(body)


def test_a_base_is_served_whatever_is_new_in_it() -> None:
    spec = {"model": {"huggingFace": "org/model"}, "lora": {"adHoc": {"from": "Sources"}}, "autoscaling": 3}
    status = {"servedName": "numerals", "autoscaling": {"desiredReplicas": "some"}}
    view = base_view({"kind": "BaseModelDeployment", "metadata": META, "spec": spec, "status": status})
    assert (view.name, view.allows_ad_hoc, view.is_at_zero) == ("numerals", False, False)


def test_a_pod_of_a_slice_that_cannot_be_read_costs_itself() -> None:
    endpoints = [{"addresses": "10.0.0.1"}, {"addresses": ["10.0.0.2"]}]
    body = {"metadata": {**META, "labels": {LABEL_BASE: "numerals"}}, "endpoints": endpoints}
    view = slice_view(body)
    assert view is not None
    assert [endpoint.pod for endpoint in view.endpoints] == ["10.0.0.2"]


async def test_what_was_last_readable_goes_on_being_served(world: World) -> None:
    """An adapter, its base and its pods; an adapter that is to go answers no more, as one that can be read."""
    world.endpoints(await world.pod("one"))
    world.adapter("german")
    await world.open()
    assert (await world.ask("french")).status_code == 200
    world.base(status={"servedName": ["numerals"]})
    for name in ("french", "german"):
        world.adapter(name, status={"stableRevision": {"name": REVISION}})
    world.adapter("last")  # told after them
    await eventually("it is known", lambda: world.knows("last"))
    assert [(await world.ask(name)).status_code for name in ("french", "german", "numerals")] == [200, 200, 200]
    gone = {"creationTimestamp": META["creationTimestamp"], "deletionTimestamp": META["creationTimestamp"]}
    world.adapter("german", status={"stableRevision": {"name": REVISION}}, metadata=gone)
    await eventually("it is let go", lambda: not world.knows("german"))
    assert (await world.ask("french")).status_code == 200
    world.adapter("french", status={"stableRevision": None})
    await eventually("it is read again", lambda: not world.knows("french"))


def unreadable(world: World) -> dict[tuple[str, str], bool]:
    """(kind, object) -> whether it is served, as the metric has it."""
    assert world.cluster is not None
    found = [one.labels for one in world.cluster.readings() if one.name == "lorafleet_gateway_unreadable_objects"]
    return {(kind, where): served == "true" for kind, where, served in found}


async def test_a_gateway_that_starts_hears_from_pods_which_revision_is_stable(world: World) -> None:
    """It never read the adapter: the name and the base are the API server's, the revision is what pods of the base call stable."""
    pod = await world.pod("one")
    pod.passing = {("french", OLDER)}
    pod.hold("french", revision=OLDER)
    pod.hold("french", revision=NEWER)
    world.endpoints(pod)
    world.adapter("french", status=OF_LATER)
    client = await world.open()
    await eventually("the pod is heard", lambda: world.num_reachable() == 1)
    assert (await world.ask("french")).status_code == 200
    assert pod.received[-1].headers["x-lorafleet-revision"] == NEWER
    assert (await client.get("/v1/models/french")).json()["revision"] == NEWER
    assert [(await world.ask(f"french@{r}")).status_code for r in (NEWER, OLDER)] == [200, 404]
    assert unreadable(world) == {("LoraAdapter", f"{NAMESPACE}/french"): True}
    world.adapter("french", status={"stableRevision": OLDER})
    await eventually("it is read", lambda: not unreadable(world))
    await world.ask("french")
    assert pod.received[-1].headers["x-lorafleet-revision"] == OLDER


async def test_a_gateway_that_goes_on_with_the_last_revision_follows_a_switch_that_pods_tell_of(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    world.adapter("french", status=OF_LATER)
    await eventually("it cannot be read", lambda: unreadable(world))
    await world.ask("french")
    assert pod.received[-1].headers["x-lorafleet-revision"] == REVISION
    pod.hold("french", revision=NEWER)
    assert world.cluster is not None
    await eventually(
        "the pod is heard", lambda: world.cluster and world.cluster.fleet.stable_of((NAMESPACE, "numerals"), "french")
    )
    await world.ask("french")
    assert pod.received[-1].headers["x-lorafleet-revision"] == NEWER
    pod.passing = {("french", NEWER)}
    pod.hold("french", revision=OLDER)
    pod.hold("french", "Host", revision=NEWER)
    await eventually(
        "the pod is heard",
        lambda: (world.cluster and world.cluster.fleet.stable_of((NAMESPACE, "numerals"), "french")) == OLDER,
    )


async def test_while_no_pod_says_which_one_is_stable_clients_are_told_to_try_again(world: World) -> None:
    world.endpoints(await world.pod("one"))
    world.adapter("french", status=OF_LATER)
    await world.open()
    answer = await world.ask("french")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_loading")
    assert "cannot be read" in answer.json()["error"]["message"]
    assert unreadable(world) == {("LoraAdapter", f"{NAMESPACE}/french"): False}
    assert world.cluster is not None
    exposed = {family.name: family.samples for family in ClusterCollector(world.cluster.readings).collect()}
    (sample,) = exposed["lorafleet_gateway_unreadable_objects"]
    assert sample.labels == {"kind": "LoraAdapter", "object": "team/french", "served": "false"}


@pytest.mark.parametrize("field", ["status.servedName", "spec.baseModelRef"])
async def test_whose_name_or_base_cannot_be_read_is_not_served_and_named(world: World, field: str) -> None:
    """A pod that lists the name is no proof: it runs the image of its owner. A name that nobody has stays unknown."""
    pod = await world.pod("one")
    pod.hold("german")
    world.endpoints(pod)
    if field == "status.servedName":
        world.adapter("german", status={"servedName": ["german"]})
    else:
        spec = {"baseModelRef": ["numerals"], "source": {"name": "models", "path": "german"}}
        world.kube.put(
            "loraadapters", NAMESPACE, "german", spec=spec, status={"servedName": "german", "stableRevision": REVISION}
        )
    client = await world.open()
    answer = await world.ask("german")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) > 0
    assert "LoraAdapter team/german" in answer.json()["error"]["message"]
    assert field in answer.json()["error"]["message"]
    assert (await client.get("/v1/models/german")).status_code == 503
    assert (await world.ask("nobody")).status_code == 404
    assert unreadable(world) == {("LoraAdapter", f"{NAMESPACE}/german"): False}
    world.kube.delete("loraadapters", NAMESPACE, "german")
    await eventually("it is gone", lambda: not unreadable(world))
    assert (await world.ask("german")).status_code == 404


async def test_a_name_that_cannot_be_read_takes_nothing_from_who_has_it(world: World) -> None:
    world.endpoints(await world.pod("one"))
    world.adapter("other", status={"servedName": ["french"]})
    await world.open()
    assert (await world.ask("french")).status_code == 200


async def test_adapters_of_a_base_whose_name_cannot_be_read_are_served(world: World) -> None:
    world.endpoints(await world.pod("one"))
    world.base(status={"servedName": ["numerals"]})
    await world.open()
    assert (await world.ask("french")).status_code == 200
    answer = await world.ask("numerals")
    assert answer.status_code == 503
    assert "BaseModelDeployment team/numerals" in answer.json()["error"]["message"]
    assert unreadable(world) == {("BaseModelDeployment", f"{NAMESPACE}/numerals"): False}


async def test_the_metric_names_those_first_that_are_not_served_and_a_bounded_number(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    world.adapter("french", status=OF_LATER)
    for index in range(60):
        world.adapter(f"later-{index}", status=OF_LATER)
    await world.open()
    await eventually("the pod is heard", lambda: world.num_reachable() == 1)
    assert world.cluster is not None
    readings = [one for one in world.cluster.readings() if one.name == "lorafleet_gateway_unreadable_objects"]
    assert sum(one.value for one in readings) == 61
    assert len({one.labels[1] for one in readings}) == 51
    assert ("LoraAdapter", "team/french", "true") not in [one.labels for one in readings]
    assert [one.value for one in readings if one.labels == ("LoraAdapter", "_other", "true")] == [1]
