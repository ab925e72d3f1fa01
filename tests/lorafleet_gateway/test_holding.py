"""Requests for a base that has no pod while nothing is asked: held until one is ready, within bounds, in order."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from support.upstream_pods import REVISION, refusing, streaming

from lorafleet_contract.evidence import Evidence

from .conftest import BASE, NAMESPACE, World, eventually

KEY = (NAMESPACE, BASE)


def at_zero(world: World, **zero: int) -> None:
    """Make the base one that has no pod now."""
    spec = {"minReplicas": 0, "maxReplicas": 2, "targetSequences": 8, "scaleToZero": zero}
    status = {"desiredReplicas": 0, "reason": "ScaledToZero", "lastScaleTime": "2026-01-01T00:00:00Z"}
    world.base(spec={"autoscaling": spec}, status={"autoscaling": status})


async def evidence(world: World) -> Evidence:
    async with httpx.AsyncClient() as client:
        answer = await client.get(world.metrics_url.replace("/metrics", "/v1/evidence"))
    return Evidence.model_validate_json(answer.content)


def held(world: World) -> tuple[int, int]:
    """Requests that wait, and that have found no pod."""
    assert world.door is not None
    (row,) = world.door.holding.rows() or [None]
    return (row.num_held, row.num_arrived) if row is not None else (0, 0)


def asking(world: World, **request: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(world.ask(**request))


async def test_a_request_waits_for_the_pod_that_it_starts(world: World) -> None:
    at_zero(world)
    await world.open()
    waiting = asking(world)
    await eventually("held", lambda: held(world) == (1, 1))
    (row,) = (await evidence(world)).held or ()
    assert (row.namespace, row.base, row.num_held, row.num_arrived) == (*KEY, 1, 1)
    pod = await world.pod("first")
    pod.hold("french")
    world.endpoints(pod, ready=False)
    await eventually("known", lambda: world.cluster is not None and len(world.cluster.fleet.of(KEY)) == 1)
    assert not waiting.done()
    world.endpoints(pod)
    assert (await waiting).json() == {"pod": "first"}
    assert held(world) == (0, 1)


async def test_they_go_in_the_order_in_which_they_came_and_streams_are_answered(world: World) -> None:
    at_zero(world)
    client = await world.open()
    tasks = []
    for number in range(5):
        tasks.append(asking(world, stream=True, user=str(number)))
        await eventually("held", lambda number=number: held(world)[0] == number + 1)
    pod = await world.pod("first")
    pod.hold("french")
    pod.reply = streaming('data: {"a": 1}\n\n', "data: [DONE]\n\n")
    world.endpoints(pod)
    for answer in await asyncio.gather(*tasks):
        assert answer.content == b'data: {"a": 1}\n\ndata: [DONE]\n\n'
    assert [json.loads(sent.body)["user"] for sent in pod.received] == ["0", "1", "2", "3", "4"]
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == BASE


async def test_no_more_are_held_than_may_be(world: World) -> None:
    at_zero(world, maxHeldRequests=2)
    await world.open()
    waiting = [asking(world) for _ in range(2)]
    await eventually("held", lambda: held(world) == (2, 2))
    refused = await world.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["retry-after"] == "10"
    assert "2 requests wait for it already" in refused.json()["error"]["message"]
    assert held(world) == (2, 3), "it is a reason for a pod all the same"
    for task in waiting:
        task.cancel()
    await eventually("places are free again", lambda: held(world)[0] == 0)
    asked = asking(world)
    await eventually("held", lambda: held(world)[0] == 1)
    asked.cancel()


async def test_it_is_answered_when_its_time_is_up(world: World) -> None:
    at_zero(world, holdSeconds=1)
    await world.open(retry_seconds=0.1)
    answer = await world.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.json()["error"]["message"] == "no pod was ready within 1 s"
    assert held(world) == (0, 1)
    assert (await evidence(world)).revisions == [], "it says nothing of any revision"


async def test_a_base_that_always_has_pods_holds_nothing(world: World) -> None:
    spec = {"minReplicas": 1, "maxReplicas": 2, "targetSequences": 8}
    world.base(spec={"autoscaling": spec})
    await world.open()
    assert (await world.ask()).headers["retry-after"] == "2"
    assert held(world) == (0, 0)


@pytest.mark.parametrize(
    "spec", [{"minReplicas": -1}, {"minReplicas": 0, "maxReplicas": "many"}, "by load"], ids=["bound", "type", "form"]
)
async def test_what_cannot_be_read_takes_no_base_out_of_service(world: World, spec: Any) -> None:
    world.base(spec={"autoscaling": spec})
    await world.open()
    assert (await world.ask()).status_code == 503
    assert held(world) == (0, 0)


async def test_a_pod_that_is_the_last_and_leaves_is_no_answer(world: World) -> None:
    """The request comes while the base goes to zero: it waits for the next pod."""
    at_zero(world)
    leaving = await world.pod("leaving")
    leaving.hold("french")
    leaving.reply = refusing(503, "draining")
    world.endpoints(leaving)
    await world.open()
    waiting = asking(world)
    await eventually("held", lambda: held(world) == (1, 1))
    assert len(leaving.received) == 1
    pod = await world.pod("next")
    pod.hold("french")
    world.endpoints(pod)
    assert (await waiting).json() == {"pod": "next"}
    assert len(leaving.received) == 1


async def test_a_revision_is_not_judged_by_the_time_without_pods(world: World) -> None:
    at_zero(world)
    await world.open()
    waiting = asking(world)
    await eventually("held", lambda: held(world) == (1, 1))
    await asyncio.sleep(1.2)
    pod = await world.pod("first")
    pod.hold("french")
    world.endpoints(pod)
    assert (await waiting).status_code == 200
    (row,) = (await evidence(world)).revisions
    assert (row.revision, row.num_requests, row.num_faults) == (REVISION, 1, 0)
    assert row.whole.sum_seconds < 1.0
    assert row.first_byte.sum_seconds < 1.0


async def test_a_gateway_that_ends_tells_those_that_wait(world: World) -> None:
    at_zero(world)
    await world.open()
    waiting = asking(world)
    await eventually("held", lambda: held(world) == (1, 1))
    assert world.door is not None
    world.door.holding.refuse()
    for answer in (await waiting, await world.ask()):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert held(world)[0] == 0


async def test_metrics_say_that_it_is_meant(world: World) -> None:
    """By them the alert that no pod is ready keeps quiet."""
    at_zero(world)
    await world.open()
    waiting = asking(world)
    await eventually("held", lambda: held(world) == (1, 1))
    async with httpx.AsyncClient() as client:
        text = (await client.get(world.metrics_url)).text
        assert f'lorafleet_gateway_held_requests{{base="{BASE}"}} 1.0' in text
        waiting.cancel()
        await eventually("gone", lambda: held(world)[0] == 0)
        text = (await client.get(world.metrics_url)).text
    assert f'lorafleet_gateway_held_requests{{base="{BASE}"}} 0.0' in text
    assert 'result="client_left"' in text
