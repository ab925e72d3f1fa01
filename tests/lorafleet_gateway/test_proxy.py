"""Requests through the gateway to small pods, over real HTTP."""

import asyncio
import json

import httpx
import pytest
from support.upstream_pods import REVISION, breaking, refusing, streaming

from .conftest import World, eventually


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


async def test_base_is_asked_without_revision(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    answer = await world.ask("numerals")
    assert answer.status_code == 200
    assert "x-lorafleet-revision" not in pod.received[0].headers
