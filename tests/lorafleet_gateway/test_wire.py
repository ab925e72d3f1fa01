"""Clients that speak HTTP in ways that client libraries hide."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.upstream_pods import streaming

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


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).lower()
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
        await asyncio.wait_for(pod.ended.wait(), 5)
        assert pod.num_written == 400
