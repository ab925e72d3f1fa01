"""Requests through the gateway to small pods, over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from aiohttp import web
from support.upstream_pods import REVISION, PodDouble, breaking, refusing, streaming

from lorafleet_gateway.cluster.lookup import FORGET_SECONDS
from lorafleet_gateway.front.retry import MAX_BROKEN

from .conftest import World, eventually

NEW_REVISION = "bbbbbbbbbbbb"


async def two_pods(world: World, **options: object) -> tuple[PodDouble, PodDouble]:
    """Two ready pods; the adapter is on the first."""
    first, second = await world.pod("first"), await world.pod("second")
    first.hold("french")
    world.endpoints(first, second)
    await world.open(**options)
    return first, second


async def test_request_and_answer_go_through_as_they_are(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    client = await world.open()
    body = b'{ "model" : "french",\n "messages": [], "seed": 9007199254740993, "x": 1.10 }'
    headers = {
        "content-type": "application/json; charset=utf-8",
        "x-request-id": "mine",
        "authorization": "Bearer secret",
        "cookie": "a=b",
        "connection": "keep-alive, x-private",
        "x-private": "1",
        "x-other": "2",
    }
    answer = await client.post("/v1/chat/completions?api-version=1", content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.content == b'{"pod": "one"}'
    assert answer.headers["x-lorafleet-pod"] == "one"
    assert answer.headers["x-lorafleet-revision"] == REVISION
    assert answer.headers["x-request-id"] == "mine"
    sent = pod.received[0]
    assert sent.body == body
    assert sent.path == "/v1/chat/completions?api-version=1"
    assert sent.headers["x-lorafleet-revision"] == REVISION
    assert sent.headers["content-type"] == "application/json; charset=utf-8"
    assert sent.headers["x-other"] == "2"
    assert not {"authorization", "cookie", "x-private"} & set(sent.headers)


async def test_large_bodies_go_through_up_to_the_limit(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    client = await world.open(max_body_bytes=3 << 20)
    prompt = "x" * (2 << 20)
    assert (await world.ask("numerals", prompt=prompt)).status_code == 200
    assert len(pod.received[0].body) > len(prompt)
    answer = await world.ask("numerals", prompt=prompt * 2)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "invalid_value"

    async def undeclared() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b" " * (1 << 20)

    answer = await client.post("/v1/completions", content=undeclared())
    assert answer.status_code == 413
    assert len(pod.received) == 1


async def test_base_is_asked_without_revision(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    assert (await world.ask("numerals", headers={"x-request-id": "not legal"})).status_code == 200
    assert "x-lorafleet-revision" not in pod.received[0].headers
    assert pod.received[0].headers["x-request-id"] != "not legal"


async def test_a_client_may_insist_on_a_revision(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    world.adapter("french", status={"history": [{"revision": NEW_REVISION, "since": "2026-01-01T00:00:00Z"}]})
    await world.open()
    assert (await world.ask(headers={"x-lorafleet-revision": NEW_REVISION})).status_code == 200
    assert pod.received[0].headers["x-lorafleet-revision"] == NEW_REVISION
    assert (await world.ask(headers={"x-lorafleet-revision": "newest"})).status_code == 400
    assert (await world.ask("numerals", headers={"x-lorafleet-revision": REVISION})).status_code == 400
    pod.reply = refusing(404, "revision_not_found")
    answer = await world.ask(headers={"x-lorafleet-revision": NEW_REVISION})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "revision_not_found"


async def test_a_revision_that_no_status_shows_cannot_be_pinned(world: World) -> None:
    """A candidate that may yet be refused is not for clients; one that the watch is late to tell of is looked up."""
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    pinned = {"x-lorafleet-revision": NEW_REVISION}
    answer = await world.ask(headers=pinned)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "revision_not_found")
    assert not pod.received
    await asyncio.sleep(FORGET_SECONDS)
    world.kube.holds_events = True
    world.adapter("french", status={"traffic": [{"revision": REVISION, "weight": 90}, {"revision": NEW_REVISION}]})
    assert (await world.ask(headers=pinned)).status_code == 200


async def test_any_revision_may_be_pinned_where_that_is_allowed(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open(any_revision=True)
    assert (await world.ask(headers={"x-lorafleet-revision": NEW_REVISION})).status_code == 200


async def test_streams_arrive_as_they_are_made(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    client = await world.open()
    go_on = asyncio.Event()
    pod.reply = streaming("data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n", pause=go_on)
    async with client.stream("POST", "/v1/chat/completions", json={"model": "french", "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"data: 1\n\n"
        go_on.set()
        assert b"".join([chunk async for chunk in chunks]) == b"data: 2\n\ndata: [DONE]\n\n"


async def test_a_client_that_leaves_cancels_its_request_in_the_pod(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    client = await world.open()
    pod.reply = streaming("data: 1\n\n", pause=asyncio.Event())
    async with client.stream("POST", "/v1/chat/completions", json={"model": "french"}) as answer:
        assert await anext(answer.aiter_raw()) == b"data: 1\n\n"
    await asyncio.wait_for(pod.ended.wait(), 60)
    assert pod.num_cancelled == 1
    assert world.state is not None
    await eventually("nothing is in flight", lambda: world.state is not None and world.state.num_in_flight == 0)


async def test_a_client_that_leaves_before_the_answer_cancels_too(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    client = await world.open()
    arrived = asyncio.Event()

    async def never(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    pod.reply = never
    asking = asyncio.create_task(client.post("/v1/completions", json={"model": "french"}))
    await asyncio.wait_for(arrived.wait(), 60)
    asking.cancel()
    await asyncio.wait_for(pod.ended.wait(), 60)
    assert pod.num_cancelled == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "revision_not_found"),
        (404, "model_not_found"),
        (424, "adapter_failed"),
        (429, "overloaded"),
        (503, "adapter_loading"),
        (503, "draining"),
        (503, "not_ready"),
    ],
)
async def test_a_pod_that_refuses_is_passed_over(world: World, status: int, code: str) -> None:
    first, second = await two_pods(world)
    first.reply = refusing(status, code)
    answer = await world.ask()
    assert answer.status_code == 200
    assert answer.json() == {"pod": "second"}
    assert [len(first.received), len(second.received)] == [1, 1]
    assert first.received[0].body == second.received[0].body
    assert first.received[0].headers["x-request-id"] == second.received[0].headers["x-request-id"]


async def test_when_all_refuse_the_client_hears_the_last(world: World) -> None:
    first, second = await two_pods(world)
    first.reply = second.reply = refusing(429, "overloaded", retry_after="7")
    answer = await world.ask()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["message"] == "second says overloaded"
    assert [len(first.received), len(second.received)] == [1, 1]


async def test_an_error_that_is_no_refusal_goes_through(world: World) -> None:
    first, second = await two_pods(world)
    first.reply = refusing(500, "internal_error")
    assert (await world.ask()).status_code == 500
    first.reply = refusing(400, "context_length_exceeded")
    assert (await world.ask()).status_code == 400
    first.reply = refusing(503, "what_is_this")
    assert (await world.ask()).json()["error"]["code"] == "what_is_this"
    assert not second.received


async def test_a_pod_that_cannot_be_reached_is_passed_over(world: World) -> None:
    first, _ = await two_pods(world)
    await first.stop()
    answers = [await world.ask() for _ in range(3)]
    assert [answer.json() for answer in answers] == [{"pod": "second"}] * 3
    assert not first.received


async def test_a_request_under_which_a_pod_breaks_is_offered_once_more(world: World) -> None:
    first, second = await two_pods(world)
    first.reply = breaking
    assert (await world.ask()).json() == {"pod": "second"}
    third = await world.pod("third")
    world.endpoints(third)
    await eventually("three pods", lambda: world.num_reachable() == 3)
    first.received.clear()
    second.received.clear()
    second.reply = third.reply = breaking
    answer = await world.ask()
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "internal_error"
    assert sum(len(pod.received) for pod in (first, second, third)) == MAX_BROKEN


async def test_a_whole_answer_that_breaks_off_is_asked_for_again(world: World) -> None:
    first, _ = await two_pods(world)

    async def half(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "100", "content-type": "application/json"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    first.reply = half
    assert (await world.ask()).json() == {"pod": "second"}


async def test_a_stream_that_breaks_off_between_events_ends_with_an_error(world: World) -> None:
    first, second = await two_pods(world)
    first.reply = streaming("data: 1\n\n", breaks=True)
    answer = await world.ask()
    assert answer.status_code == 200
    first_event, error_event, rest = answer.text.split("\n\n")
    assert first_event == "data: 1"
    assert error_event.startswith("event: error\ndata: ")
    assert json.loads(error_event.partition("data: ")[2])["error"]["type"] == "server_error"
    assert rest == ""
    assert not second.received


async def test_a_stream_that_breaks_off_within_an_event_is_broken_for_the_client_too(world: World) -> None:
    first, second = await two_pods(world)
    first.reply = streaming("data: 1\n\n", "data: 2", breaks=True)
    with pytest.raises(httpx.RemoteProtocolError):
        await world.ask()
    assert not second.received


async def test_a_silent_pod_is_given_up_and_nobody_else_is_asked(world: World) -> None:
    first, second = await two_pods(world, idle_timeout_seconds=0.2)

    async def silent(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    first.reply = silent
    answer = await world.ask()
    assert answer.status_code == 504
    assert not second.received
    await asyncio.wait_for(first.ended.wait(), 60)


async def test_attempts_are_bounded(world: World) -> None:
    pods = [await world.pod(f"pod-{number}") for number in range(4)]
    for pod in pods:
        pod.reply = refusing(503, "adapter_loading", retry_after="3")
    world.endpoints(*pods)
    await world.open(max_attempts=2)
    answer = await world.ask()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "3"
    assert sum(len(pod.received) for pod in pods) == 2


async def test_no_pod_is_asked_after_the_retry_time(world: World) -> None:
    first, second = await two_pods(world, retry_seconds=0.05)

    async def slow(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return await refusing(503, "adapter_loading")(request, pod, body)

    first.reply = slow
    assert (await world.ask()).json()["error"]["code"] == "adapter_loading"
    assert not second.received


async def test_a_switch_that_the_watch_has_not_told_yet_is_looked_up(world: World) -> None:
    """Pods know the old revision no more, the status names a new one, the watch is late: the answer is the new one's."""
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    world.kube.holds_events = True
    world.adapter("french", status={"stableRevision": NEW_REVISION})

    async def only_new(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        if request.headers["x-lorafleet-revision"] != NEW_REVISION:
            return await refusing(404, "revision_not_found")(request, pod, body)
        return web.json_response({"new": True})

    pod.reply = only_new
    assert (await world.ask()).json() == {"new": True}


async def test_requests_in_flight_are_bounded(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open(max_in_flight=1)
    go_on = asyncio.Event()
    pod.reply = streaming("data: 1\n\n", pause=go_on)
    running = asyncio.create_task(world.ask("numerals"))
    await eventually("it runs", lambda: world.state is not None and world.state.num_in_flight == 1)
    answer = await world.ask("numerals")
    assert answer.status_code == 429
    assert answer.headers["retry-after"]
    go_on.set()
    assert (await running).status_code == 200
    assert (await world.ask("numerals")).status_code == 200


async def test_bodies_in_memory_are_bounded(world: World) -> None:
    """Held until the answer begins; a long stream holds nothing."""
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open(max_body_bytes=1000, max_held_bytes=1500)
    assert world.state is not None
    go_on = asyncio.Event()

    async def thinking(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        await go_on.wait()
        return await streaming("data: 1\n\n", pause=asyncio.Event())(request, pod, body)

    pod.reply = thinking
    first = asyncio.create_task(world.ask("numerals", prompt="x" * 900))
    await eventually("it is held", lambda: world.state.num_held_bytes > 900)  # type: ignore[union-attr]
    answer = await world.ask("numerals", prompt="x" * 900)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
    go_on.set()
    await eventually("it is let go", lambda: world.state.num_held_bytes == 0)  # type: ignore[union-attr]
    assert world.state.num_in_flight == 1
    pod.reply = None
    assert (await world.ask("numerals", prompt="x" * 900)).status_code == 200
    first.cancel()
    await eventually("nothing is left", lambda: world.state.num_in_flight == world.state.num_held_bytes == 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[]", None),
        (b'"french"', None),
        (b"{}", "model"),
        (b'{"model": 1}', "model"),
        (b'{"model": ""}', "model"),
        (b'{"model": null}', "model"),
        (b"\x1f\x8b\x08", None),
    ],
)
async def test_bodies_that_name_no_model_are_refused_here(world: World, body: bytes, param: str | None) -> None:
    client = await world.open()
    answer = await client.post("/v1/completions", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("invalid_value", param, "invalid_request_error")
    assert answer.headers["x-request-id"]


async def test_the_version_and_the_pulse(world: World) -> None:
    client = await world.open()
    assert set((await client.get("/version")).json()) == {"version"}
    assert (await client.get("/ping")).content == b""


async def test_paths_and_methods_that_do_not_exist(world: World) -> None:
    client = await world.open()
    for answer, status in (
        (await client.get("/v1/nothing"), 404),
        (await client.get("/v1/chat/completions"), 405),
        (await client.post("/v1/models"), 405),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]["code"] is None
    assert (await client.head("/ready")).status_code == 200


async def test_cut_off_from_the_api_server_it_answers_what_pods_can_answer(world: World) -> None:
    """The revision that it knows is gone, and nobody tells of the new one: the pods' stable revision is right by design."""
    first, second = await two_pods(world)
    second.hold("french")
    world.kube.is_down = True

    async def only_stable(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        if "x-lorafleet-revision" in request.headers:
            return await refusing(404, "revision_not_found")(request, pod, body)
        return web.json_response({"pod": pod.name}, headers={"x-lorafleet-revision": NEW_REVISION})

    first.reply = second.reply = only_stable
    answer = await world.ask()
    assert (answer.status_code, answer.headers["x-lorafleet-revision"]) == (200, NEW_REVISION)
    pinned = await world.ask(headers={"x-lorafleet-revision": REVISION})
    assert (pinned.status_code, pinned.json()["error"]["code"]) == (404, "revision_not_found")
    first.reply = second.reply = refusing(404, "revision_not_found")
    assert (await world.ask()).status_code == 503


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
@pytest.mark.parametrize("value", [b"7, ", b"[], ", b'"", '])
async def test_bodies_with_more_values_than_pods_take_are_refused_here(world: World, path: str, value: bytes) -> None:
    client = await world.open()
    answer = await client.post(path, content=b'{"model": "french", "prompt": [' + value * 600_000 + b"7]}")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", None)
    assert "more than" in error["message"]
