"""Answers that wait to be sent have a bound together, and only who has most of them feels it."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.canned_pod import canned_pod, model_without_weights

from lorafleet_inference.errors import Overloaded
from lorafleet_inference.server.answer_room import AnswerRoom

MIB = 1 << 20


async def num_ended(url: str) -> float:
    """Requests that were told that the pod is overloaded, by its metrics."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if "errors_total" in line and "overloaded" in line)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "canned"
    model_without_weights(folder)
    return folder


async def test_the_largest_share_ends_and_nobody_else() -> None:
    room, ended = AnswerRoom(10), list[str]()

    async def hold(name: str, num_bytes: int, entered: asyncio.Event) -> None:
        try:
            async with room.share() as share:
                room.grow(share, num_bytes)
                entered.set()
                await asyncio.Future()
        except Overloaded:
            ended.append(name)

    tasks = []
    for name, num_bytes in (("small", 2), ("large", 6), ("last", 3)):
        entered = asyncio.Event()
        tasks.append(asyncio.ensure_future(hold(name, num_bytes, entered)))
        await entered.wait()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert ended == ["large"]
    assert room.used_bytes == 5
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert room.used_bytes == 0


async def test_what_was_sent_is_counted_no_more() -> None:
    room = AnswerRoom(10)
    async with room.share() as share:
        for _ in range(5):
            room.grow(share, 8)
            share.give_back(8)
    assert room.used_bytes == 0


async def test_an_ended_share_does_not_count_what_still_comes() -> None:
    room = AnswerRoom(10)

    async def outgrow() -> None:
        async with room.share() as share:
            room.grow(share, 11)
            room.grow(share, 5)
            assert room.used_bytes == 0
            await asyncio.Future()

    with pytest.raises(Overloaded) as caught:
        await outgrow()
    assert caught.value.retry_after_seconds, "as each 429 says when to come back"


async def test_a_large_answer_ends_and_a_small_one_beside_it_does_not(model: Path) -> None:
    async with (
        canned_pod(model, "--streams=2", answer_memory_bytes=2 * MIB) as served,
        httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=60) as client,
    ):

        def ask(**fields: Any) -> Any:
            return client.post("/v1/completions", json={"model": "base", "prompt": "one two", **fields})

        large, small = await asyncio.gather(ask(max_tokens=20_000, logprobs=5), ask(max_tokens=2_000))
        assert large.status_code == 429
        assert "fewer choices or log-probabilities" in large.json()["error"]["message"]
        assert small.status_code == 200
        assert small.json()["usage"]["completion_tokens"] == 2_000
        assert served.pod.answer_room.used_bytes == 0


async def test_a_stream_that_nobody_reads_ends_and_one_that_is_read_goes_on(model: Path) -> None:
    async with canned_pod(model, answer_memory_bytes=2 * MIB) as served:
        url, room, before = httpx.URL(served.url), served.pod.answer_room, await num_ended(served.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (url.host, url.port))
            reader, writer = await asyncio.open_connection(sock=client.dup(), limit=1 << 10)
        body = json.dumps(
            {"model": "base", "prompt": "one", "stream": True, "max_tokens": 300_000, "logprobs": 20}
        ).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        found = b""
        async with asyncio.timeout(90):
            while await num_ended(served.url) == before:
                assert room.used_bytes <= 2 * MIB
            assert room.used_bytes == 0
            while b"0\r\n\r\n" not in found:
                found = found[-5000:] + await reader.read(1 << 20)
        writer.close()
        assert b"event: error" in found
        assert b'"overloaded"' in found
