"""Clients below HTTP: they leave in the middle, read slowly or not at all, and send what is no request."""

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator

from soak.hostile.fields import COMPLETIONS, good
from soak.hostile.world import World

SLOW_SECONDS = 20.0


def request_of(path: str, body: bytes, *more: str, length: int | str | None = None, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: pod", "content-type: application/json"]
    lines += [f"content-length: {len(body) if length is None else length}", *more]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@contextlib.asynccontextmanager
async def connection(
    world: World, *, receive_buffer: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = world.address
    one = socket.socket()
    one.setblocking(False)
    if receive_buffer:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(one, (host, port))
    reader, writer = await asyncio.open_connection(sock=one, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def leave(world: World, rng: random.Random) -> int:
    """Send a request, or a part of it, and be gone before its end."""
    path, body = good(rng, world.some_model(rng), world.target.prompts)
    body |= {"stream": rng.random() < 0.7, "max_tokens": 128, "ignore_eos": True}
    body.pop("prompt_logprobs", None)
    if not body["stream"]:
        body.pop("stream_options", None)
    data = request_of(path, json.dumps(body).encode())
    how = rng.choice(("in the head", "in the body", "at once", "in the answer", "later"))
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with connection(world) as (reader, writer):
            if how == "in the head":
                writer.write(data[: rng.randrange(1, 60)])
            elif how == "in the body":
                writer.write(data[: -rng.randrange(1, 40)])
            else:
                writer.write(data)
            await writer.drain()
            if how == "in the answer":
                async with asyncio.timeout(30):
                    await reader.read(rng.choice((1, 100, 600)))
            elif how == "later":
                await asyncio.sleep(rng.uniform(0, 0.3))
    world.ledger.count("leave", how)
    return 1


async def slow(world: World, rng: random.Random) -> int:
    """Ask for much and read it slowly, or not at all."""
    how = rng.choice(("slowly", "not at all", "slow body"))
    body = {
        "model": rng.choice(world.target.noise),
        "prompt": "one",
        "max_tokens": 200,
        "n": 8,
        "stream": True,
        "logprobs": 20,
    }
    data = request_of(COMPLETIONS, json.dumps({**body, "ignore_eos": True}).encode())
    with contextlib.suppress(OSError, TimeoutError):
        async with world.slow_readers, connection(world, receive_buffer=2048) as (reader, writer):
            seconds = world.at_most(rng.uniform(1, SLOW_SECONDS))
            async with asyncio.timeout(seconds):
                if how == "slow body":
                    for place in range(0, len(data), 8):
                        writer.write(data[place : place + 8])
                        await asyncio.sleep(0.3)
                writer.write(data if how != "slow body" else b"")
                while how != "not at all":
                    await asyncio.sleep(0.2)
                    if not await reader.read(512):
                        break
                await asyncio.sleep(seconds)
    world.ledger.count("slow", how)
    return 1


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
    b"GET /health HTTP/1.1\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 200,
    request_of(COMPLETIONS, b"{}", length="-1"),
    request_of(COMPLETIONS, b"{}", length="9" * 30),
    request_of(COMPLETIONS, b"{}", length="\xb2"),
    request_of(COMPLETIONS, b"{}", "transfer-encoding: chunked"),
    request_of(COMPLETIONS, b"zz\r\n{}\r\n0\r\n\r\n", "transfer-encoding: chunked", length=""),
    request_of(COMPLETIONS, b"{}", "content-encoding: gzip"),
    request_of(COMPLETIONS, b"{}", "x-request-id: " + "\xff" * 100, "x-lorafleet-revision: \xe9\xff"),
    request_of(COMPLETIONS, b"{}", "expect: 100-continue"),
    request_of(COMPLETIONS, b"{}", "upgrade: websocket", "connection: upgrade", "sec-websocket-key: a"),
    request_of("*", b"", method="OPTIONS"),
    request_of("http://elsewhere/v1/models", b"", method="GET"),
    request_of("/v1/models/\xff\xfe", b"", method="GET"),
    request_of("/v1/models/%", b"", method="GET"),
    b"\r\n" * 1000,
    b"\x00" * 10_000,
)


async def garbage(world: World, rng: random.Random) -> int:
    """Send what is no request, or hardly one; any answer but a 5xx will do, and none as well."""
    data = rng.choice(GARBAGE)
    if rng.random() < 0.2:
        data = rng.randbytes(rng.randrange(1, 5000))
    answer = b""
    with contextlib.suppress(OSError, TimeoutError):
        async with connection(world) as (reader, writer), asyncio.timeout(5):
            writer.write(data)
            await writer.drain()
            answer = await reader.read(4096)
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else "none"
    world.ledger.count("garbage", status)
    if status.startswith("5"):
        world.ledger.find("garbage", f"{answer[:600]!r} to {data[:300]!r}")
    return 1
