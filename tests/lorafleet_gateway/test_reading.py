"""What another version of us wrote is read as far as it can be, and takes out of service as little as it can."""

from typing import Any

import pytest

from lorafleet_common.kube.cache import Unreadable
from lorafleet_contract.names import LABEL_BASE
from lorafleet_gateway.views import adapter_view, base_view, slice_view

from .conftest import REVISION, World, eventually

OLDER = "c" * 12
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
