"""Clients that speak HTTP in ways that client libraries hide."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from support.upstream_pods import streaming

from lorafleet_gateway import metrics

from .conftest import World, eventually

BODY = b'{"model": "numerals"}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: gateway\r\n"


@asynccontextmanager
async def connection(world: World) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    assert world.client is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", world.client.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def ended(why: str) -> float:
    return metrics.REGISTRY.get_sample_value("lorafleet_gateway_connections_ended_total", {"reason": why}) or 0.0


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).lower()
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return int(head.split()[1]), await reader.readexactly(length)


async def test_who_waits_to_be_told_to_send_is_told(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open(max_body_bytes=1000)
    async with connection(world) as (reader, writer):
        writer.write(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        assert (await answered(reader))[0] == 100
        writer.write(BODY)
        assert (await answered(reader))[0] == 200
        assert "expect" not in pod.received[0].headers
        writer.write(HEAD + b"expect: 100-continue\r\ncontent-length: 1001\r\n\r\n")
        assert (await answered(reader))[0] == 413


async def test_a_connection_is_used_again(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    async with connection(world) as (reader, writer):
        for _ in range(3):
            writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
            assert await answered(reader) == (200, b'{"pod": "one"}')
        writer.write(HEAD + b"content-length: 1\r\n\r\n{")
        assert (await answered(reader))[0] == 400
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        assert (await answered(reader))[0] == 200


async def test_a_body_in_chunks(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    async with connection(world) as (reader, writer):
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n" + BODY[:5] + b"\r\n")
        await writer.drain()
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) - 5, BODY[5:]))
        assert (await answered(reader))[0] == 200
        assert pod.received[0].body == BODY
        assert pod.received[0].headers["content-length"] == str(len(BODY))


async def test_a_body_that_the_client_gives_up(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    async with connection(world) as (_, writer):
        writer.write(HEAD + b"content-length: 100\r\n\r\n{")
        await eventually("it is being read", lambda: world.state is not None and world.state.num_in_flight == 1)
        writer.close()
        await eventually("it is given up", lambda: world.state is not None and world.state.num_in_flight == 0)
        assert not pod.received


async def test_a_slow_reader_slows_the_pod_and_not_the_gateway(world: World) -> None:
    """What a client does not read is not gathered in the gateway's memory without end."""
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    event = "data: " + "x" * 65530 + "\n\n"
    pod.reply = streaming(*[event] * 400)
    async with connection(world) as (reader, writer):
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        await reader.readuntil(b"\r\n\r\n")
        # the pod gets rid of what sockets and buffers hold, a few MiB of these 26, and then waits
        written = -1
        while written != pod.num_written:
            written = pod.num_written
            await asyncio.sleep(0.3)
        assert 0 < pod.num_written < 350
        assert not pod.ended.is_set()
        while not reader.at_eof() and not pod.ended.is_set():
            await reader.read(1 << 20)
        await asyncio.wait_for(pod.ended.wait(), 60)
        assert pod.num_written == 400


def head_of(raw: bytes) -> tuple[int, dict[str, str]]:
    status, *lines = raw.decode().split("\r\n")
    named = (line.split(": ", 1) for line in lines if line)
    return int(status.split()[1]), {name.lower(): value for name, value in named}


async def test_a_client_that_stops_reading_is_ended(world: World) -> None:
    """Its request holds an adapter in the pod, and unloads and drains would wait for it."""
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open(client_timeout_seconds=0.5)
    pod.reply = streaming(*["data: " + "x" * 65530 + "\n\n"] * 400)
    async with connection(world) as (reader, writer):
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.wait_for(pod.ended.wait(), 60)
        assert pod.num_written < 350
        await eventually("it is over", lambda: world.state is not None and world.state.num_in_flight == 0)


async def test_to_http_1_0_the_end_of_the_connection_ends_a_stream(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    pod.reply = streaming("data: 1\n\n", "data: [DONE]\n\n")
    async with connection(world) as (reader, writer):
        head = b"POST /v1/completions HTTP/1.0\r\nconnection: keep-alive\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        raw = await asyncio.wait_for(reader.read(), 60)
        assert raw.endswith(b"data: 1\n\ndata: [DONE]\n\n")


async def test_what_is_no_request_is_answered_as_everything_is(world: World) -> None:
    await world.open()
    refused = {
        b"hello\r\n\r\n": 400,
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n": 400,
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + b"x" * 40000 + b"\r\n\r\n": 431,
        b"GET /" + b"x" * 40000 + b" HTTP/1.1\r\nhost: x\r\n\r\n": 431,
    }
    for sent, status in refused.items():
        async with connection(world) as (reader, writer):
            writer.write(sent)
            raw_head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            found, headers = head_of(raw_head)
            assert found == status, sent[:40]
            assert headers["server"] == "lorafleet-gateway"
            assert len(headers["x-request-id"]) == 32
            error = json.loads(await reader.readexactly(int(headers["content-length"])))["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert await reader.read() == b""


async def test_a_large_token_of_a_proxy_passes(world: World) -> None:
    client = await world.open()
    assert (await client.get("/v1/models", headers={"authorization": "x" * 16000})).status_code == 200


async def test_methods_encodings_and_request_ids(world: World) -> None:
    client = await world.open()
    for method, path, allowed in (("GET", "/v1/completions", "POST"), ("POST", "/v1/models", "GET, HEAD")):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    zipped = {"content-encoding": "gzip"}
    answer = await client.post("/v1/completions", content=gzip.compress(BODY), headers=zipped)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "invalid_value")
    for path in ("/v1/models", "/health", "/ready", "/nowhere"):
        assert (await client.get(path, headers={"x-request-id": "mine"})).headers["x-request-id"] == "mine"


async def test_a_large_body_in_pieces_arrives_whole(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    body = b'{"model": "numerals", "prompt": "' + bytes(97 + i % 26 for i in range(3_000_000)) + b'"}'
    async with connection(world) as (reader, writer):
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert (await answered(reader))[0] == 200
    assert pod.received[0].body == body
    assert pod.received[0].headers["content-length"] == str(len(body))


async def test_half_open_connections_keep_nobody_out(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open(max_connections=3)
    assert world.client is not None
    async with AsyncExitStack() as stack:
        for part in (b"", HEAD, HEAD + b"content-length: 100\r\n\r\n{") * 4:
            _, writer = await stack.enter_async_context(connection(world))
            writer.write(part)
            await writer.drain()
        answer = await world.client.post("/v1/completions", content=BODY)
        assert answer.status_code == 200


async def test_a_client_that_is_refused_before_its_request_is_told_why(world: World) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open(max_connections=1, client_timeout_seconds=0.3)
    before = [ended(why) for why in ("slow", "full")]
    pod.reply = streaming("data: 1\n\n", pause=asyncio.Event())
    async with connection(world) as (reader, writer):
        writer.write(HEAD)
        status, body = await answered(reader)
        assert (status, json.loads(body)["error"]["code"]) == (408, "invalid_value")
        assert await asyncio.wait_for(reader.read(), 60) == b""
    async with connection(world) as (_, writer):
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        await eventually("the pod has it", lambda: bool(pod.received))
        async with connection(world) as (late, _):
            status, body = await answered(late)
            assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
    assert [ended(why) for why in ("slow", "full")] == [number + 1 for number in before]
