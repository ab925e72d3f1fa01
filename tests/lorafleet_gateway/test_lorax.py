"""LoRAX's routes through the gateway: what names the model, which pod is asked next, whose errors they are."""

import json
from typing import Any

import httpx
import pytest
from support.upstream_pods import REVISION, PodDouble, refusing_in_lorax, streaming

from .conftest import World, eventually

PATHS = ("/", "/generate", "/generate_stream", "/embed")


async def two_pods(world: World) -> tuple[PodDouble, PodDouble]:
    first, second = await world.pod("first"), await world.pod("second")
    first.hold("french")
    world.endpoints(first, second)
    await world.open()
    return first, second


async def post(world: World, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    assert world.client is not None
    return await world.client.post(path, json=body, headers=headers)


def asking(adapter: Any = "french", **parameters: Any) -> dict[str, Any]:
    return {"inputs": "one", "parameters": {"adapter_id": adapter, **parameters}}


@pytest.mark.parametrize("path", PATHS)
async def test_the_adapter_is_found_among_the_parameters(world: World, path: str) -> None:
    first, _ = await two_pods(world)
    body = asking(temperature=None)
    answer = await post(world, path, body)
    assert (answer.status_code, answer.json()) == (200, {"pod": "first"})
    sent = first.received[-1]
    assert (sent.path, json.loads(sent.body)) == (path, body)
    assert sent.headers["x-lorafleet-revision"] == REVISION


@pytest.mark.parametrize("body", [{"inputs": "one"}, asking(None), asking(""), {"inputs": "one", "parameters": None}])
async def test_without_an_adapter_the_only_base_is_meant(world: World, body: Any) -> None:
    first, second = await two_pods(world)
    answer = await post(world, "/", body)
    assert answer.status_code == 200
    (sent,) = [*first.received, *second.received]
    assert "x-lorafleet-revision" not in sent.headers


async def test_of_several_bases_one_has_to_be_named(world: World) -> None:
    world.base("other")
    await two_pods(world)
    await eventually("known", lambda: world.knows("other"))
    answer = await post(world, "/generate", {"inputs": "one"})
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"
    assert answer.json()["param"] == "parameters.adapter_id"
    assert (await post(world, "/generate", asking("numerals"))).status_code == 200


async def test_info_and_tokens_are_those_of_a_pod(world: World) -> None:
    first, second = await two_pods(world)
    assert world.client is not None
    assert (await world.client.get("/info")).status_code == 200
    assert (await post(world, "/tokenize", {"inputs": "one"})).status_code == 200
    assert sorted(one.path for one in (*first.received, *second.received)) == ["/info", "/tokenize"]
    assert (await world.client.post("/info")).status_code == 405
    assert (await world.client.get("/")).status_code == 200


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(424, "model_not_found", "generation"), (503, "draining", "overloaded"), (429, "overloaded", "overloaded")],
)
async def test_another_pod_is_asked_where_one_refuses(world: World, status: int, code: str, kind: str) -> None:
    first, second = await two_pods(world)
    first.reply = refusing_in_lorax(status, code, kind)
    answer = await post(world, "/", asking())
    assert (answer.status_code, answer.json()) == (200, {"pod": "second"})
    second.reply = refusing_in_lorax(422, "invalid_value", "validation")
    answer = await post(world, "/", asking())
    assert (answer.status_code, answer.json()["error"]) == (422, "second says invalid_value")


@pytest.mark.parametrize(
    ("body", "status", "kind", "code"),
    [
        (asking("nobody"), 424, "generation", "model_not_found"),
        (asking("nobody/../x"), 424, "generation", "model_not_found"),
        (asking(7), 422, "validation", "invalid_value"),
        ([], 422, "validation", "invalid_value"),
        (asking("french@xyz"), 422, "validation", "invalid_value"),
        (asking(f"french@{'0' * 12}"), 424, "generation", "revision_not_found"),
    ],
)
async def test_errors_of_the_gateway_are_those_of_lorax(
    world: World, body: Any, status: int, kind: str, code: str
) -> None:
    await two_pods(world)
    answer = await post(world, "/generate", body)
    told = answer.json()
    assert (answer.status_code, told["error_type"], told["code"]) == (status, kind, code)
    assert isinstance(told["error"], str)


async def test_no_pod_is_an_overload_that_passes(world: World) -> None:
    await world.open()
    answer = await post(world, "/", asking())
    assert (answer.status_code, answer.json()["error_type"], answer.headers["retry-after"]) == (503, "overloaded", "2")


async def test_a_lost_pod_ends_a_stream_with_an_event_that_the_client_reads(world: World) -> None:
    first, _ = await two_pods(world)
    first.reply = streaming('data: {"token": {}}\n\n', breaks=True)
    answer = await post(world, "/generate_stream", asking())
    told = json.loads(answer.text.split("data: ")[-1])
    assert (told["error_type"], told["code"]) == ("incomplete_generation", "internal_error")
    assert "[DONE]" not in answer.text


async def test_what_a_client_asks_wrongly_is_no_evidence_against_a_revision(world: World) -> None:
    """LoRAX tells an unknown revision as it tells an adapter that fails; a rollout must not."""
    first, second = await two_pods(world)
    await post(world, "/", asking(f"french@{'0' * 12}"))
    for pod in (first, second):
        pod.reply = refusing_in_lorax(424, "revision_not_found", "generation")
    answer = await post(world, "/", asking(f"french@{REVISION}"))
    assert (answer.status_code, answer.json()["code"]) == (424, "revision_not_found")
    async with httpx.AsyncClient(trust_env=False) as client:
        told = (await client.get(world.metrics_url.replace("/metrics", "/v1/evidence"))).json()
    (row,) = told["revisions"]
    assert set(row["errors"]) == {"client_error"}, row
