"""Keys at a pod: real clients, tokens as they are used, and what a gateway is told of them."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError, NotFoundError, PermissionDeniedError, RateLimitError
from prometheus_client import generate_latest
from support.canned_pod import CannedPod, canned_pod, model_without_weights

from lorafleet_common.keys.guard import Guard, hash_of, new_key
from lorafleet_contract.keys import KeyList, read_keys
from lorafleet_inference import metrics

KEY = new_key()
ASKS = {"authorization": f"Bearer {KEY}"}


def keys(name: str, **fields: Any) -> KeyList:
    return read_keys(json.dumps({"keys": [{"name": name, "hashes": [hash_of(KEY)], **fields}]}).encode())


@dataclass
class Keyed:
    """A pod that asks for keys, and a clock that the test turns."""

    served: CannedPod
    guard: Guard
    clock: list[float]
    client: httpx.AsyncClient

    def allow(self, name: str, **fields: Any) -> None:
        """Take another file; a name of its own for each test, so that nothing is used of it."""
        self.guard.replace(keys(name, **fields))

    async def ask(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body, headers=ASKS)

    async def left(self) -> int:
        """Tokens that the key has left when nothing runs."""
        caller = self.guard.identify(ASKS["authorization"])
        async with asyncio.timeout(60):
            while self.guard._quotas[caller.name].num_running:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.01)
        return int(caller.limit_headers()["x-ratelimit-remaining-tokens"])

    def num_tokens(self, text: str, *, is_chat: bool = False) -> int:
        """Of a text that is completed, or of one that a chat template has written."""
        return len(self.served.pod.text.encode_now(text, add_special_tokens=not is_chat))


def series(name: str) -> float:
    """Without the label of the base, which a test of another file may have set."""
    lines = re.sub(r'base="[^"]*",?', "", generate_latest(metrics.REGISTRY).decode()).splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "canned"
    model_without_weights(folder)
    return folder


@pytest.fixture
async def opened(model: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def open_pod(*options: str, **fields: Any) -> Keyed:
            clock = [0.0]
            guard = Guard(keys("team-a", **fields), metrics.KEYS, clock=lambda: clock[0])
            served = await stack.enter_async_context(canned_pod(model, *options, guard=guard))
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=served.url, timeout=60))
            return Keyed(served, guard, clock, client)

        yield open_pod


async def test_without_a_known_key_nothing_is_answered_but_what_programs_read(
    opened: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """No key, known or not, and no hash gets into logs, answers and metrics, nor a line of somebody else's making."""
    caplog.set_level(logging.DEBUG, logger="lorafleet_inference")
    door, wrong = await opened(), new_key()
    for path in ("/", "/health", "/ready", "/ping", "/version", "/metrics", "/v1/routes", "/openapi.json"):
        assert (await door.client.get(path)).status_code == 200, path
    said = ""
    for header in ({}, {"authorization": f"Bearer {wrong}"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}):
        for path in ("/v1/models", "/v1/models/base", "/info", "/nothing", "/metrics/", "/docs"):
            answer = await door.client.get(path, headers=header)
            assert (answer.status_code, answer.headers["www-authenticate"][:6]) == (401, "Bearer"), path
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/no"):
            answer = await door.client.post(path, content=b"{", headers=header)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
            said += answer.text
        for path in ("/", "/generate", "/generate_stream"):
            answer = await door.client.post(path, content=b"{", headers=header)
            assert (answer.status_code, answer.json()["error_type"]) == (401, "validation"), path
            said += answer.text
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "eA==",
    }
    assert (await door.client.get("/v1/completions", headers=upgrade)).status_code == 401
    assert (await door.ask(model="base", prompt="x", max_tokens=1)).status_code == 200
    assert " key=team-a id=" in caplog.text
    assert (await door.client.get("/no%0aline", headers={"x-request-id": "one"})).status_code == 401
    lines = [record.getMessage() for record in caplog.records if record.name == "lorafleet_inference.access"]
    assert lines[-1].lower().startswith("get /no%0aline 401 ")
    assert lines[-1].endswith(" key=- id=one")
    said += caplog.text + (await door.client.get("/metrics")).text
    assert series('lorafleet_key_requests_total{code="401",key=""}') >= 60
    for secret in (KEY, wrong, hash_of(KEY), hash_of(wrong)):
        assert secret.removeprefix("sha256:")[:16] not in said


async def test_clients_of_openai_see_their_own_errors(opened: Callable[..., Any]) -> None:
    door = await opened(models=["ba*"], requestsPerMinute=9)
    async with AsyncOpenAI(base_url=f"{door.served.url}/v1", api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.completions.create(model="base", prompt="x")
    async with AsyncOpenAI(base_url=f"{door.served.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = await client.completions.with_raw_response.create(model="base", prompt="x", max_tokens=1)
        assert answer.headers["x-ratelimit-remaining-requests"] == "8"
        assert [one.id for one in (await client.models.list()).data] == ["base"]
        with pytest.raises(NotFoundError):
            await client.completions.create(model="ba-nobody", prompt="x")
        door.allow("team-b", models=["french"], requestsPerMinute=2)
        told = []
        for name in ("base", "nobody"):
            with pytest.raises(PermissionDeniedError) as forbidden:
                await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
            assert (forbidden.value.code, forbidden.value.param) == ("model_not_found", "model")
            told.append(str(forbidden.value).replace(name, "it"))
        assert told[0] == told[1], "what exists and what does not look the same"
        with pytest.raises(RateLimitError) as limited:
            await client.completions.create(model="base", prompt="x")
        assert limited.value.code == "rate_limit_exceeded"
        assert limited.value.response.headers["retry-after"] == "30"
        assert limited.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        assert not (await client.models.list()).data
        with pytest.raises(NotFoundError):
            await client.models.retrieve("base")


async def test_each_route_that_takes_a_name_is_held_to_it(opened: Callable[..., Any]) -> None:
    door = await opened(models=["french"])
    for path, body in (
        ("/v1/completions", {"model": "base@0123456789ab", "prompt": "x"}),
        ("/v1/responses", {"model": "base", "input": "x"}),
        ("/tokenize", {"model": "base", "prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/tokenize", {"inputs": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/", {"inputs": "x", "stream": True}),
        ("/generate", {"inputs": "x"}),
        ("/generate_stream", {"inputs": "x", "parameters": {"adapter_id": "german"}}),
        ("/v1/embeddings", {"model": "base", "input": "x"}),
        ("/embed", {"inputs": "x"}),
        ("/embed", {"inputs": "x", "parameters": {"adapter_id": "german"}}),
    ):
        assert (await door.ask(path, **body)).status_code == 403, (path, body)
    answer = await door.client.get("/info", headers=ASKS)
    assert (answer.status_code, answer.json()["error_type"]) == (403, "validation")
    assert (await door.ask("/generate", inputs="x")).json()["param"] == "parameters.adapter_id"


async def test_how_many_wait_for_a_model_is_not_told_to_whoever_may_not_name_it(opened: Callable[..., Any]) -> None:
    door = await opened(models=["french"])
    most = door.served.pod.config.max_waiting_requests
    with door.served.pod.admission.enter("base", most):
        assert (await door.ask(model="base", prompt="x")).status_code == 403


async def test_tokens_are_those_that_were_used(opened: Callable[..., Any]) -> None:
    """Whole, streamed, of several choices and of LoRAX's clients; what was held back for an answer that ends sooner comes back."""
    door = await opened(tokensPerMinute=10_000)
    num = door.num_tokens("one two")
    for path, body, used in (
        ("/v1/completions", {"model": "base", "prompt": "one two", "max_tokens": 5}, num + 5),
        ("/v1/completions", {"model": "base", "prompt": "one two", "max_tokens": 5, "stream": True}, num + 5),
        ("/v1/completions", {"model": "base", "prompt": "one two", "max_tokens": 5, "n": 3}, num + 15),
        ("/v1/completions", {"model": "base", "prompt": ["one two"] * 2, "max_tokens": 5}, 2 * (num + 5)),
        ("/generate", {"inputs": "one two", "parameters": {"max_new_tokens": 5}}, num + 5),
        ("/v1/embeddings", {"model": "base", "input": ["one two"] * 3}, 3 * num),
        ("/embed", {"inputs": "one two"}, num),
        ("/v1/completions", {"model": "base", "prompt": "one two", "max_tokens": -1}, 0),
        ("/tokenize", {"model": "base", "prompt": "one two"}, 0),
    ):
        before = await door.left()
        answer = await door.ask(path, **body)
        assert before - await door.left() == used, body
        if used:
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) == before - used
    stopped = await door.ask(model="base", prompt="one two", max_tokens=3000, stop=" two")
    usage = stopped.json()["usage"]["total_tokens"]
    assert usage < 50
    assert before - await door.left() == usage
    assert series('lorafleet_key_tokens_total{key="team-a"}') >= 6 * num + usage


async def test_tokens_that_are_not_there_are_refused_until_they_are(opened: Callable[..., Any]) -> None:
    door = await opened(tokensPerMinute=600)
    assert (await door.ask(model="base", prompt="x", max_tokens=300)).status_code == 200
    refused = await door.ask(model="base", prompt="x", max_tokens=400)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    refused = await door.ask("/generate", inputs="x", parameters={"max_new_tokens": 400})
    assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
    refused = await door.ask("/v1/embeddings", model="base", input=["x"] * 400)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    door.clock[0] += int(refused.headers["retry-after"])
    assert (await door.ask(model="base", prompt="x", max_tokens=400)).status_code == 200


async def test_a_client_that_leaves_gives_back_its_place_and_pays_what_it_got(opened: Callable[..., Any]) -> None:
    door = await opened("--rate", "100", maxConcurrentRequests=1, tokensPerMinute=100_000)
    body = {"model": "base", "prompt": "one two", "max_tokens": 50_000, "stream": True}
    async with door.client.stream("POST", "/v1/completions", json=body, headers=ASKS) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        refused = await door.ask(model="base", prompt="x")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert series('lorafleet_key_requests_running{key="team-a"}') == 1
        await lines.aclose()
    used = 100_000 - await door.left()
    assert door.num_tokens("one two") < used < 10_000
    assert series('lorafleet_key_requests_running{key="team-a"}') == 0
    assert (await door.ask("/tokenize", model="base", prompt="x")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate_stream"])
async def test_gateways_are_told_the_usage_of_streams(opened: Callable[..., Any], path: str) -> None:
    door = await opened()
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"model": "base", "prompt": "one two", "max_tokens": 5},
        "/v1/chat/completions": {
            "model": "base",
            "messages": [{"role": "user", "content": "one two"}],
            "max_tokens": 5,
        },
        "/v1/responses": {"model": "base", "input": "one two", "max_output_tokens": 5},
        "/generate_stream": {"inputs": "one two", "parameters": {"max_new_tokens": 5}},
    }
    told = f"{door.num_tokens('one two', is_chat=path in ('/v1/chat/completions', '/v1/responses'))}+5"
    body = {**bodies[path], **({} if path == "/generate_stream" else {"stream": True})}
    asked = await door.client.post(path, json=body, headers={**ASKS, "x-lorafleet-usage": "1"})
    assert asked.text.count(f"\n\n: x-lorafleet-usage {told}\n\n") == 1
    silent = await door.ask(path, **body)
    assert "x-lorafleet-usage" not in silent.text
    if path != "/generate_stream":
        whole = await door.client.post(path, json=bodies[path], headers={**ASKS, "x-lorafleet-usage": "1"})
        assert whole.headers["x-lorafleet-usage"] == told


async def test_a_key_that_is_gone_is_known_no_more_and_its_requests_end(opened: Callable[..., Any]) -> None:
    door = await opened("--rate", "100")
    body = {"model": "base", "prompt": "one two", "max_tokens": 20, "stream": True}
    async with door.client.stream("POST", "/v1/completions", json=body, headers=ASKS) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        door.guard.replace(read_keys(b'{"keys": []}'))
        assert (await door.ask(model="base", prompt="x")).status_code == 401
        assert "data: [DONE]" in [line async for line in lines]
    assert 'key="team-a"' not in generate_latest(metrics.REGISTRY).decode()
