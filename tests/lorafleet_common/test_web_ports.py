"""Clients of an aiohttp port that are slow, silent or many cost a bounded number of connections for a bounded time."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest
from aiohttp import web

from lorafleet_common.sockets import bind
from lorafleet_common.web_ports import MAX_HEAD_BYTES, LimitedServer, Limits

QUICK = Limits(max_connections=3, client_timeout_seconds=0.3)
PATIENT = Limits(max_connections=3, client_timeout_seconds=60.0)
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"
LINES = {"max_line_size": 32 << 10, "max_field_size": 32 << 10}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Port:
    """A port whose answers may be held back."""

    def __init__(self, number: int, limits: Limits) -> None:
        self.number = number
        self.counted: list[str] = []
        self.server = LimitedServer(self.answer, limits, self.counted.append, access_log=None, **LINES)
        self.go_on = asyncio.Event()
        self.held = asyncio.Semaphore(0)
        self.left = asyncio.Event()
        self.clients: list[asyncio.StreamWriter] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/held":
            self.held.release()
            await self.go_on.wait()
        if request.path == "/endless":
            return await self._endless(request)
        if request.path == "/unread":
            return web.Response(body=b"no")
        if request.path == "/large":
            assert request.transport is not None
            request.transport.set_write_buffer_limits(16 << 20)  # so that writing is never paused
            self.left.set()
            last = web.Response(body=bytes(8 << 20))
            last.force_close()
            return last
        return web.Response(body=await request.read() or b"hello")

    async def _endless(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 16))
        finally:
            self.left.set()

    async def connect(self, data: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number, limit=1 << 16)
        self.clients.append(writer)
        writer.write(data)
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def serving(limits: Limits) -> AsyncIterator[Port]:
    with closing(bind("127.0.0.1", 0, option="--port")) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        mine = Port(listener.getsockname()[1], limits)
        runner = web.ServerRunner(mine.server, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        try:
            yield mine
        finally:
            mine.go_on.set()
            for writer in mine.clients:
                writer.close()
            await runner.cleanup()


async def status_of(streams: Streams) -> int:
    """The status of one answer; 0 if the connection ends without one."""
    reader, _ = streams
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    lines = head.lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head.split()[1])


async def ended(streams: Streams) -> bool:
    """Whether the port ends the connection."""
    try:
        return await asyncio.wait_for(streams[0].read(), 60) is not None
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    ("earlier", "part"), [(b"", b""), (b"", GET[:20]), (b"", b"\r\n"), (GET, GET[:20]), (GET, b"\r\n")]
)
async def test_who_does_not_send_a_whole_head_is_told_and_closed(earlier: bytes, part: bytes) -> None:
    async with serving(QUICK) as port:
        streams = await port.connect(earlier)
        if earlier:
            assert await status_of(streams) == 200
        streams[1].write(part)
        assert await status_of(streams) == 408
        assert await ended(streams)
        assert port.counted == ["slow"]


async def test_a_head_that_comes_drop_by_drop_has_no_more_time() -> None:
    async with serving(QUICK) as port:
        reader, writer = await port.connect(GET[:-2] + b"x: ")
        answer = asyncio.ensure_future(status_of((reader, writer)))
        while not answer.done():
            writer.write(b"y")
            await asyncio.sleep(0.02)
        assert await answer == 408


async def test_a_head_has_a_size() -> None:
    async with serving(PATIENT) as port:
        lines = b"".join(b"x-%d: " % number + b"y" * 1000 + b"\r\n" for number in range(MAX_HEAD_BYTES // 1000 + 1))
        streams = await port.connect(GET[:-2] + lines)
        assert await status_of(streams) == 431
        assert await ended(streams)
        assert port.counted == ["large"]


@pytest.mark.parametrize("path", [b"/", b"/unread"])
async def test_a_large_body_is_no_head(path: bytes) -> None:
    async with serving(PATIENT) as port:
        body = bytes(16 * MAX_HEAD_BYTES)
        streams = await port.connect()
        for _ in range(2):
            streams[1].write(b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (path, len(body)) + body)
            assert await status_of(streams) == 200


async def test_answers_may_take_longer_than_clients_and_connections_are_kept() -> None:
    async with serving(QUICK) as port:
        streams = await port.connect(GET.replace(b"/", b"/held", 1))
        await port.held.acquire()
        await asyncio.sleep(2 * QUICK.client_timeout_seconds)
        port.go_on.set()
        assert await status_of(streams) == 200
        await asyncio.sleep(2 * QUICK.client_timeout_seconds)
        for _ in range(2):
            streams[1].write(POST + b"12345")
            assert await status_of(streams) == 200


async def test_one_too_many_closes_the_one_that_waits_longest_for_its_client() -> None:
    async with serving(PATIENT) as port:
        held = await port.connect(GET.replace(b"/", b"/held", 1))
        await port.held.acquire()
        first = await port.connect(POST + b"1")  # half a body
        idle = await port.connect(GET)
        assert await status_of(idle) == 200
        new = await port.connect(GET)
        assert await status_of(new) == 200
        assert await ended(first)
        newer = await port.connect(GET)
        assert await status_of(newer) == 200
        assert await ended(idle)
        port.go_on.set()
        assert await status_of(held) == 200
        assert port.counted == ["displaced", "displaced"]


async def test_where_all_are_answered_the_next_one_comes_back_later() -> None:
    async with serving(PATIENT) as port:
        held = [await port.connect(GET.replace(b"/", b"/held", 1)) for _ in range(3)]
        for _ in held:
            await port.held.acquire()
        assert await status_of(await port.connect(GET)) == 503
        port.go_on.set()
        assert [await status_of(one) for one in held] == [200, 200, 200]
        assert port.counted == ["full"]


async def test_who_takes_nothing_of_an_answer_loses_it() -> None:
    async with serving(QUICK) as port:
        await port.connect(GET.replace(b"/", b"/endless", 1))
        await asyncio.wait_for(port.left.wait(), 60)
        assert port.counted == ["unread"]


async def test_who_takes_nothing_of_a_last_answer_is_not_waited_for() -> None:
    async with serving(QUICK) as port:
        await port.connect(GET.replace(b"/", b"/large", 1))
        await asyncio.wait_for(port.left.wait(), 60)
        (connection,) = port.server.open
        for _ in range(6000):
            if connection not in port.server.open:
                return
            await asyncio.sleep(0.01)
        pytest.fail("it is waited for")
