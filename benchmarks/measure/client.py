"""A small HTTP client that costs little beside the server: it shares the machine with what it measures."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from measure.timing import Timeline
from measure.workload import Ask

NameOf = Callable[[int | None], str]


async def ask_all(url: str, asks: Sequence[Ask], name_of: NameOf, *, concurrency: int) -> list[Timeline]:
    """Send requests, so many at a time, in their order."""
    room = asyncio.Semaphore(concurrency)

    async def one(ask: Ask) -> Timeline:
        async with room:
            return await stream(url, ask, name_of(ask.adapter))

    return list(await asyncio.gather(*(one(ask) for ask in asks)))


async def stream(url: str, ask: Ask, model: str) -> Timeline:
    """Send one streamed completion and note when its pieces come.

    Raises:
        RuntimeError: the answer is no stream of the tokens that were asked for; with what it says.
    """
    body = json.dumps(
        {
            "model": model,
            "prompt": ask.prompt,
            "max_tokens": ask.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    timeline = Timeline(time.perf_counter())
    reader, writer = await _post(url, "/v1/completions", body)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            answer = await reader.read()
            raise RuntimeError(f"{status.decode().strip()}: {answer[-500:].decode(errors='replace')}")
        last = b""
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                timeline.events.append(time.perf_counter())
                last = line
    finally:
        writer.close()
    usage = json.loads(last.removeprefix(b"data: ")).get("usage") if last else None
    timeline.events = timeline.events[:-1]  # the last one is usage
    timeline.num_tokens = usage["completion_tokens"] if usage else 0
    if timeline.num_tokens != ask.num_tokens or not timeline.events:
        raise RuntimeError(f"{timeline.num_tokens} of {ask.num_tokens} tokens came: {last.decode(errors='replace')}")
    return timeline


async def put_json(url: str, path: str, document: object) -> None:
    """PUT a document.

    Raises:
        RuntimeError: the answer is no 200; with what it says.
    """
    reader, writer = await _post(url, path, json.dumps(document).encode(), method="PUT")
    answer = await reader.read()
    writer.close()
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"PUT {path}: {answer[-500:].decode(errors='replace')}")


async def _post(
    url: str, path: str, body: bytes, *, method: str = "POST"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer
