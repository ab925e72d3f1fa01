"""The OpenAPI document says what the public port does: every route, what requests may have, how they may end."""

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from support.canned_pod import canned_pod, model_without_weights

from lorafleet_common.keys.guard import Guard
from lorafleet_contract.keys import KeyList
from lorafleet_inference import metrics
from lorafleet_inference.errors import RequestError
from lorafleet_inference.server.fields import NEUTRAL, PASSED, REFUSING
from lorafleet_inference.server.lorax_requests import parse_lorax
from lorafleet_inference.server.methods import all_routes
from lorafleet_inference.server.openapi.build import document
from lorafleet_inference.server.public import public_app
from lorafleet_inference.server.requests import parse_chat, parse_completion

DOCUMENT = document(asks_for_keys=False)
USER = [{"role": "user", "content": "x"}]
CHAT = {"model": "m", "messages": USER}
TEXT = {"model": "m", "prompt": "x"}
LORAX = {"inputs": "x"}


def schema_of(name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def answer(path: str, method: str, status: int) -> dict[str, Any]:
    found = DOCUMENT["paths"][path][method]["responses"][str(status)]
    while "$ref" in found:
        found = DOCUMENT["components"]["responses"][found["$ref"].rpartition("/")[2]]
    return dict(found)


@pytest.mark.parametrize("asks", [False, True])
def test_it_is_one_that_tools_read(asks: bool) -> None:
    schemathesis.openapi.from_dict(document(asks_for_keys=asks)).validate()
    text = json.dumps(document(asks_for_keys=asks))
    for kind in ("schemas", "responses", "headers"):
        for name in DOCUMENT["components"][kind]:
            assert kind == "responses" or f"#/components/{kind}/{name}" in text or name == "JsonValue", name
    for name in DOCUMENT["components"]["schemas"]:
        schema_of(name)


def test_an_operation_has_every_status_that_it_can_be_answered_with() -> None:
    generation = {"200", "400", "401", "403", "404", "408", "413", "415", "424", "429", "431", "500", "503"}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        assert set(DOCUMENT["paths"][path]["post"]["responses"]) == generation
    for path in ("/", "/generate", "/generate_stream"):
        assert set(DOCUMENT["paths"][path]["post"]["responses"]) == generation - {"400", "404"} | {"422"}
    told = answer("/v1/completions", "post", 429)
    assert told["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert {"retry-after", "x-ratelimit-reset-tokens", "x-request-id"} <= set(told["headers"])
    assert all(f"`{code}`" in told["description"] for code in ("overloaded", "rate_limit_exceeded"))
    told = answer("/generate", "post", 422)
    assert told["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/LoraxError"}
    assert "www-authenticate" in answer("/v1/models", "get", 401)["headers"]
    assert "allow" in DOCUMENT["components"]["responses"]["OpenAI405"]["headers"]


def test_streams_are_described_by_their_events() -> None:
    found = {
        path: item["post"]["responses"]["200"]["content"]
        for path, item in DOCUMENT["paths"].items()
        if "post" in item and "content" in item["post"]["responses"]["200"]
    }
    streams = {path: one["text/event-stream"] for path, one in found.items() if "text/event-stream" in one}
    data = {path: one["schema"]["properties"]["data"] for path, one in streams.items()}
    done = {path for path, one in data.items() if one.get("anyOf", [None])[0] == {"const": "[DONE]"}}
    assert done == {"/v1/chat/completions", "/v1/completions"}
    forms = {path: one["anyOf"][1] if path in done else one for path, one in data.items()}
    events = {path: one["contentSchema"]["anyOf"][0]["$ref"].rpartition("/")[2] for path, one in forms.items()}
    assert events == {
        "/v1/chat/completions": "ChatChunk",
        "/v1/completions": "Completion",
        "/v1/responses": "ResponseEvent",
        "/": "LoraxStreamEvent",
        "/generate_stream": "LoraxStreamEvent",
    }
    assert set(found["/generate_stream"]) == {"text/event-stream"}


@pytest.mark.parametrize(
    ("name", "parse", "body"),
    [
        ("ChatRequest", parse_chat, CHAT | fields)
        for fields in (
            {},
            {"temperature": None, "stop": None},
            {"temperature": 2.1},
            {"temperature": "1"},
            {"messages": []},
            {"messages": [{"role": "user", "content": None, "refusal": None, "audio": {}}]},
            {"messages": [{"role": "robot"}]},
            {"nobody_knows": 1},
            {"logit_bias": {"7": 1.5}},
            {"stop": ["a", "b"], "seed": -1, "top_p": 0},
            {"logit_bias": {"seven": 1}},
            {"stream": True, "stream_options": {"include_usage": True}},
            {"stream": True, "stream_options": {"include": True}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"response_format": {"type": "yaml"}},
            {"response_format": {"type": "text", "more": 1}},
            *({name: "x"} for name in PASSED if name != "parallel_tool_calls"),
            *({name: field.values[0]} for name, field in NEUTRAL.items() if field.values and name != "chat_template"),
            {"audio": {"voice": "x"}},
            {"length_penalty": 2},
        )
    ]
    + [
        ("CompletionRequest", parse_completion, TEXT | fields)
        for fields in (
            {},
            {"prompt": [[1, 2], [3]]},
            {"prompt": [1, "x"]},
            {"suffix": "x"},
            {"tools": []},
            {"tools": [1]},
        )
    ]
    + [
        ("LoraxBody", lambda body: parse_lorax(body, REFUSING, base="base", stream=None), LORAX | fields)
        for fields in (
            {},
            {"parameters": {"watermark": False, "api_token": None}},
            {"parameters": {"watermark": True}},
            {"parameters": {"nobody_knows": 1}},
            {"nobody_knows": 1},
            {"inputs": ""},
            {"parameters": {"top_k": 0}},
        )
    ],
    ids=lambda value: json.dumps(value)[-60:] if isinstance(value, dict) else None,
)
def test_a_schema_takes_what_the_server_takes(name: str, parse: Any, body: dict[str, Any]) -> None:
    """Each of these is right or wrong by itself; what fields say of each other no schema says."""
    try:
        request = parse(json.dumps(body).encode())
        for index, message in enumerate(getattr(request, "messages", ())):
            message.for_template(index)
        takes = True
    except RequestError:
        takes = False
    assert schema_of(name).is_valid(body) == takes


async def test_every_route_is_described(tmp_path: Path) -> None:
    model_without_weights(tmp_path / "canned")
    async with canned_pod(tmp_path / "canned") as served, httpx.AsyncClient(base_url=served.url) as client:
        routes = all_routes(public_app(served.pod).routes)
        answered = {(method, one.path.replace(":path", "")) for one in routes for method in one.methods or ()}
        told = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
        assert answered == told
        whole = await client.get("/openapi.json")
        assert (whole.status_code, whole.json()) == (200, DOCUMENT)
        assert "security" not in DOCUMENT


async def test_where_keys_are_asked_for_it_says_so_and_is_shown_without_one(tmp_path: Path) -> None:
    model_without_weights(tmp_path / "canned")
    guard = Guard(KeyList(keys=[]), metrics.KEYS)
    async with (
        canned_pod(tmp_path / "canned", guard=guard) as served,
        httpx.AsyncClient(base_url=served.url) as client,
    ):
        told = (await client.get("/openapi.json")).json()
        assert told["security"] == [{"key": []}]
        open_paths = set()
        for path, item in told["paths"].items():
            for method, operation in item.items():
                url = path.replace("{name}", "base")
                status = (await client.request(method.upper(), url, content=b"{")).status_code
                if "security" in operation:
                    open_paths.add(path)
                    assert (operation["security"], status != 401) == ([], True), path
                else:
                    assert status == 401, path
    assert open_paths == {"/", "/health", "/ready", "/ping", "/version", "/metrics", "/v1/routes", "/openapi.json"}
