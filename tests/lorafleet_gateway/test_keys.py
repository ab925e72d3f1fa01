"""Keys at the gateway: real clients, limits, the file, and what pods see of it."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from openai import AsyncOpenAI, AuthenticationError, NotFoundError, PermissionDeniedError, RateLimitError
from support.canned_pod import canned_pod, model_without_weights
from support.upstream_pods import REVISION, PodDouble, refusing, streaming

from lorafleet_common.keys.file import KeysFile
from lorafleet_common.keys.guard import Guard, hash_of, new_key
from lorafleet_contract.keys import read_keys
from lorafleet_gateway import metrics
from lorafleet_gateway.cli import main
from lorafleet_gateway.front.usage import declared_tokens
from lorafleet_inference.metrics import KEYS as METRICS_OF_PODS

from .conftest import World, eventually, new_world
from .test_life import gateway, until

KEY = new_key()


def content(name: str, *keys: str, **fields: Any) -> bytes:
    """A file with one entry, or with none."""
    entry = {"name": name, "hashes": [hash_of(key) for key in keys], **fields}
    return json.dumps({"keys": [entry] if keys else []}).encode()


class Keyed:
    """A gateway that asks for keys, with one pod and a clock that the test turns."""

    def __init__(
        self, world: World, pod: PodDouble, client: httpx.AsyncClient, clock: list[float], guard: Guard
    ) -> None:
        self.world, self.pod, self.client, self.clock, self.guard = world, pod, client, clock, guard

    async def ask(self, path: str = "/v1/chat/completions", key: str | None = KEY, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await self.client.post(path, json={"model": "french", **body}, headers=headers)

    async def openai(self, key: str = KEY) -> AsyncOpenAI:
        return await self.world.stack.enter_async_context(
            AsyncOpenAI(base_url=f"{self.client.base_url}/v1", api_key=key, max_retries=0, timeout=60)
        )

    async def metric(self, series: str) -> float:
        lines = (await self.client.get(self.world.metrics_url)).text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{series} ")), 0.0)


@pytest.fixture
def keyed(world: World) -> Callable[..., Awaitable[Keyed]]:
    async def opened(*, forward: bool = False, name: str = "team-a", **fields: Any) -> Keyed:
        pod = await world.pod("one")
        pod.hold("french")
        world.endpoints(pod)
        clock = [0.0]
        guard = Guard(read_keys(content(name, KEY, **fields)), metrics.KEYS, clock=lambda: clock[0])
        client = await world.open(guard=guard, forward_authorization=forward)
        return Keyed(world, pod, client, clock, guard)

    return opened


async def test_without_a_known_key_nothing_is_answered_but_probes(
    keyed: Callable[..., Awaitable[Keyed]], caplog: pytest.LogCaptureFixture
) -> None:
    """The log names keys, and has neither keys nor lines of somebody else's making."""
    caplog.set_level(logging.DEBUG, logger="lorafleet_gateway")
    door = await keyed()
    for path in ("/health", "/ready", "/ping", "/version", "/"):
        assert (await door.client.get(path)).status_code == 200, path
    for path in ("/v1/models", "/v1/models/french", "/info", "/nothing"):
        assert (await door.client.get(path)).status_code == 401, path
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"):
        answer = await door.ask(path, None)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="lorafleet"'
        assert answer.json()["error"]["type"] == "invalid_request_error"
        answer = await door.ask(path, new_key())
        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/", "/generate", "/generate_stream"):
        answer = await door.ask(path, None, inputs="x")
        assert answer.status_code == 401
        assert answer.json()["error_type"] == "validation"
    assert not door.pod.received
    assert await door.metric('lorafleet_gateway_key_requests_total{code="401",key=""}') >= 17
    assert (await door.client.get("/no%0aline", headers={"x-request-id": "one"})).status_code == 401
    assert (await door.ask()).status_code == 200
    said = [record.getMessage() for record in caplog.records if record.name == "lorafleet_gateway.access"]
    assert said[-2].lower() == "get /no%0aline 401 key=- id=one"
    assert " key=team-a id=" in said[-1]
    assert KEY not in caplog.text
    assert hash_of(KEY) not in caplog.text


async def test_clients_of_openai_see_their_own_errors(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    door = await keyed(models=["french"], requestsPerMinute=2)
    door.world.adapter("german")
    await eventually("german", lambda: door.world.knows("german"))
    client, stranger = await door.openai(), await door.openai("sk-wrong")
    with pytest.raises(AuthenticationError) as unknown:
        await stranger.chat.completions.create(model="french", messages=[])
    assert unknown.value.code == "invalid_api_key"
    told = []
    for name in ("german", "nobody"):
        with pytest.raises(PermissionDeniedError) as forbidden:
            await client.chat.completions.create(model=name, messages=[])
        told.append(str(forbidden.value).replace(name, "it"))
        assert (forbidden.value.code, forbidden.value.param) == ("model_not_found", "model")
    assert told[0] == told[1], "what exists and what does not look the same"
    with pytest.raises(RateLimitError) as limited:
        await client.chat.completions.create(model="french", messages=[])
    assert limited.value.code == "rate_limit_exceeded"
    headers = limited.value.response.headers
    assert headers["retry-after"] == "30"
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "1m0s"
    assert [model.id for model in (await client.models.list()).data] == ["french"]
    assert (await client.models.retrieve("french")).id == "french"
    for name in ("german", "numerals", "nobody"):
        with pytest.raises(NotFoundError, match="does not exist"):
            await client.models.retrieve(name)
    assert not door.pod.received


async def test_a_key_is_limited_and_goes_on_after_the_time_told(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    door = await keyed(requestsPerMinute=1)
    answer = await door.ask()
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    answer = await door.ask("/generate", inputs="x", parameters={"adapter_id": "french"})
    assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
    door.clock[0] += int(answer.headers["retry-after"])
    assert (await door.ask()).status_code == 200


async def test_every_way_to_write_a_name_is_held_to_the_same_names(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    """What a key may name is what the pod will read."""
    door = await keyed(models=["french"])
    for name in ("german", "german@0123456789ab", "french2", "French", "frenc", "@", "*", "french*"):
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"):
            answer = await door.ask(path, model=name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_found"), (path, name)
            assert "x-lorafleet-revision" not in answer.headers
    headers = {"authorization": f"Bearer {KEY}"}
    for body in ('{"model": "french", "model": "german"}', '{"model": "french", "mod\\u0065l": "german"}'):
        assert (await door.client.post("/v1/completions", content=body, headers=headers)).status_code == 403
    for path in ("/v1%2Fcompletions", "/v1/./completions", "//v1/completions"):
        answer = await door.client.post(path, json={"model": "german"}, headers=headers)
        assert answer.status_code in (403, 404), path
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    answer = await door.client.get("/v1/completions", headers=upgrade)
    assert answer.status_code == 401
    assert (await door.ask(model="french@" + REVISION)).status_code == 200
    assert len(door.pod.received) == 1


async def test_lorax_requests_are_held_to_the_same_names(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    door = await keyed(models=["french"])
    assert (await door.ask("/generate", inputs="x", parameters={"adapter_id": "french"})).status_code == 200
    answer = await door.ask("/generate", inputs="x", parameters={"adapter_id": "german"})
    assert (answer.status_code, answer.json()["param"]) == (403, "parameters.adapter_id")
    answer = await door.ask("/generate", inputs="x")
    assert (answer.status_code, answer.json()["param"]) == (403, "parameters.adapter_id"), "the base"
    assert "numerals" not in answer.text
    answer = await door.ask("/tokenize", inputs="x")
    assert (answer.status_code, "numerals" in answer.text) == (403, False)
    assert (await door.client.get("/info", headers={"authorization": f"Bearer {KEY}"})).status_code == 403


def telling(*, body: str = "{}", told: str = "7+5") -> Any:
    async def reply(request: web.Request, pod: PodDouble, _: bytes) -> web.StreamResponse:
        return web.Response(text=body, content_type="application/json", headers={"x-lorafleet-usage": told})

    return reply


COMMENT = ": x-lorafleet-usage 7+5\n\n"


@pytest.mark.parametrize(
    ("reply", "num_used"),
    [
        (telling(), 12),
        (telling(body="x" * 50_000), 12),
        (streaming("data: 1\n\n", COMMENT, "data: [DONE]\n\n"), 12),
        (streaming("data: 1\n\n: x-lorafl", "ettesage", " 7+5\n\ndata: [DONE]\n\n"), None),
        (streaming("data: 1\n\n: x-lorafl", "eet-us", "age 7", "+5\n", "\ndata: [DONE]\n\n"), 12),
        (streaming("data: 1\n\n", "data: 2\n\n", breaks=True), None),
        (telling(told="1+900"), 901),
        (streaming("{", breaks=True, headers={"content-length": "99", "x-lorafleet-usage": "7+5"}), 0),
        (refusing(400, "invalid_value"), 0),
        (refusing(500, "internal_error"), 0),
        (refusing(503, "not_ready"), 0),
    ],
)
async def test_tokens_are_what_the_pod_tells_else_an_estimate(
    keyed: Callable[..., Awaitable[Keyed]], reply: Any, num_used: int | None
) -> None:
    """Also where the client of a stream did not ask for usage; text cannot look like the line that tells it."""
    door = await keyed(tokensPerMinute=1000)
    door.pod.reply = reply
    answer = await door.ask(max_tokens=300, n=2, text=r"\n: x-lorafleet-usage 999+999\n")
    assert "x-lorafleet-usage" not in answer.headers
    if answer.status_code == 200:
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 400, "so much was held back"
    body = door.pod.received[0].body
    assert "authorization" not in door.pod.received[0].headers
    assert door.pod.received[0].headers["x-lorafleet-usage"] == "1"
    left = int((await door.ask("/tokenize")).headers["x-ratelimit-remaining-tokens"])
    events = 3 if b"[DONE]" in answer.content else 2
    estimate = len(body) // 4 + events
    assert 1000 - left == (estimate if num_used is None else num_used)


@pytest.mark.parametrize("told", [telling(told="1+" + "9" * 18), streaming(f": x-lorafleet-usage 1+{'9' * 18}\n\n")])
async def test_a_pod_cannot_ruin_a_key(keyed: Callable[..., Awaitable[Keyed]], told: Any) -> None:
    """Its word counts up to what the request and the answer can be: in pods runs what the owner of a base likes."""
    door = await keyed(tokensPerMinute=6000)
    door.pod.reply = told
    assert (await door.ask(max_tokens=5000)).status_code == 200
    door.pod.reply = telling()
    door.clock[0] += 60
    assert (await door.ask(max_tokens=100)).status_code == 200


async def test_tokens_that_are_not_there_are_refused_until_they_are(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    door = await keyed(tokensPerMinute=600)
    door.pod.reply = telling()
    assert (await door.ask(max_tokens=10_000)).status_code == 200, "a full minute is enough for any request"
    answer = await door.ask(max_tokens=595)
    assert answer.status_code == 429
    assert "588 left" in answer.json()["error"]["message"]
    assert answer.headers["x-ratelimit-remaining-tokens"] == "588"
    assert (await door.ask("/tokenize")).status_code == 200, "nothing is generated there"
    door.clock[0] += int(answer.headers["retry-after"])
    assert (await door.ask(max_tokens=595)).status_code == 200
    assert len(door.pod.received) == 3


async def test_a_client_that_leaves_gives_back_its_place(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    door = await keyed(name="leaver", maxConcurrentRequests=1, tokensPerMinute=1000)
    door.pod.reply = streaming("data: 1\n\n", "data: 2\n\n", pause=asyncio.Event())
    request = {"json": {"model": "french", "max_tokens": 900}, "headers": {"authorization": f"Bearer {KEY}"}}
    running = 'lorafleet_gateway_key_requests_running{key="leaver"}'
    async with door.client.stream("POST", "/v1/chat/completions", **request) as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"data: 1\n\n"
        assert await door.metric(running) == 1
        refused = await door.ask()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "1 requests running" in refused.json()["error"]["message"]
        await chunks.aclose()
    await eventually("the place is free", lambda: not door.guard._quotas["leaver"].num_running)
    assert await door.metric(running) == 0
    door.pod.reply = None
    answer = await door.ask()
    assert answer.status_code == 200
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert 900 < left < 1000, "what was held back is given back, but for what was sent"
    assert await door.metric('lorafleet_gateway_key_requests_total{code="499",key="leaver"}') == 1


async def test_a_secret_is_rotated_while_requests_run(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both keys are known in between, and are one to the limits; what began with the old one goes on to its end."""
    pod = await world.pod("one")
    world.endpoints(pod)
    pod.hold("french")
    path, new, end = tmp_path / "keys.json", new_key(), asyncio.Event()
    path.write_bytes(content("rotated", KEY, maxConcurrentRequests=2))
    file = KeysFile(path, metrics.KEYS, option="--keys-file")
    client = await world.open(guard=file.guard)

    async def status(key: str) -> int:
        answer = await client.post(
            "/v1/completions", json={"model": "french"}, headers={"authorization": f"Bearer {key}"}
        )
        return answer.status_code

    async def become(text: bytes) -> None:
        path.write_bytes(text)
        await file.look()

    pod.reply = streaming("data: 1\n\n", "data: 2\n\n", pause=end)
    request = {"json": {"model": "french"}, "headers": {"authorization": f"Bearer {KEY}"}}
    async with client.stream("POST", "/v1/completions", **request) as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"data: 1\n\n"
        pod.reply = None
        await become(content("rotated", KEY, new, maxConcurrentRequests=2))
        assert (await status(KEY), await status(new)) == (200, 200)
        await become(content("rotated", KEY, new, maxConcurrentRequests=1))
        assert (await status(KEY), await status(new)) == (429, 429)
        await become(content("rotated", new))
        assert (await status(KEY), await status(new)) == (401, 200)
        await become(b"{")
        assert (await status(KEY), await status(new)) == (401, 200), "what is known stays"
        assert "lorafleet_gateway_keys_stale 1.0" in (await client.get(world.metrics_url)).text
        assert "is not valid JSON; the keys that were read before stay" in caplog.text
        await become(content("nobody"))
        assert (await status(KEY), await status(new)) == (401, 401)
        end.set()
        assert b"".join([chunk async for chunk in chunks]) == b"data: 2\n\n"
    shown = (await client.get(world.metrics_url)).text
    assert "lorafleet_gateway_keys_stale 0.0" in shown
    assert 'key="rotated"' not in shown, "a key that is gone leaves no series"


async def test_the_command_asks_for_keys_and_follows_the_file(world: World, tmp_path: Path) -> None:
    path, new = tmp_path / "keys.json", new_key()
    path.write_bytes(content("first", KEY))
    async with (
        gateway(world, tmp_path, f"--keys-file={path}") as (_, url),
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):

        async def ask(key: str) -> httpx.Response:
            return await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})

        await until(200, lambda: client.get("/ready"))
        assert ((await ask(KEY)).status_code, (await ask(new)).status_code) == (200, 401)
        path.write_bytes(content("first", new))
        await until(200, lambda: ask(new))
        assert (await ask(KEY)).status_code == 401


async def test_gateway_and_pod_both_ask(tmp_path: Path) -> None:
    """Each by its own file, and both count the same tokens; a pod that sees no key knows nobody."""
    model_without_weights(tmp_path / "canned")
    at_gateway, at_pod = (
        Guard(read_keys(content("both", KEY, tokensPerMinute=most)), table, clock=lambda: 0)
        for most, table in ((5000, metrics.KEYS), (1000, METRICS_OF_PODS))
    )
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"model": "base", "prompt": "one two", "max_tokens": 400}

    def left(guard: Guard) -> int:
        return int(guard.identify(headers["authorization"]).limit_headers()["x-ratelimit-remaining-tokens"])

    async with canned_pod(tmp_path / "canned", guard=at_pod) as served:
        pod = PodDouble("canned", int(served.url.rpartition(":")[2]))

        async def poster(world: World, *, forward: bool) -> Callable[..., Awaitable[httpx.Response]]:
            world.base("base")
            world.endpoints(pod, base="base")
            client = await world.open(guard=at_gateway, forward_authorization=forward)
            return partial(client.post, "/v1/completions", headers=headers)

        async with new_world() as world:
            post = await poster(world, forward=True)
            answer = await post(json=body)
            used = answer.json()["usage"]["total_tokens"]
            assert (used > 400, answer.headers["x-ratelimit-limit-tokens"]) == (True, "5000")
            assert (await post(json={**body, "stream": True})).text.count(": x-lorafleet-usage") == 1
            await eventually(
                "all is counted", lambda: (left(at_gateway), left(at_pod)) == (5000 - 2 * used, 1000 - 2 * used)
            )
            answer = await post(json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            told = {name: answer.headers[f"x-ratelimit-{name}-tokens"] for name in ("limit", "remaining")}
            assert told == {"limit": "1000", "remaining": str(1000 - 2 * used)}, "who refuses tells its own"
            assert int(answer.headers["retry-after"]) > 1
        async with new_world() as world:
            answer = await (await poster(world, forward=False))(json=body)
            assert (answer.status_code, "x-lorafleet-pod" in answer.headers) == (401, True)
        assert (left(at_gateway), left(at_pod)) == (5000 - 2 * used, 1000 - 2 * used), "refusals cost nothing"


async def test_pods_see_a_key_only_where_they_shall(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    door = await keyed(forward=True)
    assert (await door.ask()).status_code == 200
    assert door.pod.received[0].headers["authorization"] == f"Bearer {KEY}"


async def test_without_keys_nobody_is_asked_and_pods_are_asked_nothing(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    answer = await world.ask(headers={"x-lorafleet-usage": "1"})
    assert answer.status_code == 200
    assert not {"x-lorafleet-usage", "authorization"} & set(pod.received[0].headers)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_refusals_by_key_are_no_evidence(keyed: Callable[..., Awaitable[Keyed]]) -> None:
    door = await keyed(models=["french"], requestsPerMinute=1)
    assert (await door.ask()).status_code == 200
    for _ in range(3):
        assert (await door.ask()).status_code == 429
    document = (await door.client.get(door.world.metrics_url.replace("/metrics", "/v1/evidence"))).json()
    assert [(row["adapter"], row["numRequests"], row["errors"]) for row in document["revisions"]] == [("french", 1, {})]


@pytest.mark.parametrize(
    ("body", "number"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7, "n": 3}, 21),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": 7, "n": 2, "best_of": 4}, 28),
        ({"parameters": {"max_new_tokens": 5, "best_of": 2}}, 10),
        ({"max_tokens": "7"}, 0),
        ({"max_tokens": -7, "n": [], "parameters": "x"}, 0),
        ({"max_tokens": 1 << 60}, 0),
        ([], 0),
    ],
)
def test_what_a_request_allows_its_answer(body: Any, number: int) -> None:
    assert declared_tokens(json.dumps(body).encode()) == number


def test_the_command_makes_a_key_and_its_entry(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--models=numerals,team-a/*", "--requests-per-minute=60", "--tokens-per-minute=1000"]
    assert main(["keys", "new", "team-a", *limits, "--max-concurrent-requests=4"]) == 0
    key, entry = capsys.readouterr().out.splitlines()
    (read,) = read_keys(f'{{"keys": [{entry}]}}'.encode()).keys
    assert read.hashes == [hash_of(key)]
    assert (read.name, read.models, read.requests_per_minute) == ("team-a", ["numerals", "team-a/*"], 60)
    assert (read.tokens_per_minute, read.max_concurrent_requests) == (1000, 4)
    assert main(["keys", "new", "not a name"]) == 2
    assert "name: " in capsys.readouterr().err


def test_a_wrong_first_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": [{"name": "a", "hashes": [], "secret": "hunter2"}]}')
    assert main(["serve", f"--keys-file={file}", "--port=0", "--metrics-port=0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lorafleet-gateway: --keys-file: ")
    assert said.count("\n") == 1
    assert "keys.0.hashes" in said
    assert "hunter2" not in said
