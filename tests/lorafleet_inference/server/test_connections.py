"""Clients that are slow, silent or many cost a bounded number of connections for a bounded time."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from lorafleet_common.sockets import bind
from lorafleet_inference import metrics
from lorafleet_inference.server.connections import ConnectionLimits, OncePerSecond
from lorafleet_inference.server.listening import http_server

QUICK = ConnectionLimits(max_connections=3, client_timeout_seconds=0.3)
PATIENT = ConnectionLimits(client_timeout_seconds=1.0)
"""For what has to be in time: a machine may stand still for a moment."""
WHYS = ("full", "displaced", "slow", "large", "unread")
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """A port whose answers may be held back."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.go_on = asyncio.Event()
        self.held = asyncio.Semaphore(0)
        self.left = asyncio.Event()
        self.clients: list[asyncio.StreamWriter] = []

    async def answer(self, request: Request) -> Response:
        if request.url.path == "/held":
            self.held.release()
            await self.go_on.wait()
        if request.url.path == "/endless":
            return StreamingResponse(self._endless())
        return Response(await request.body() or b"hello")

    async def _endless(self) -> AsyncIterator[bytes]:
        try:
            while True:
                await asyncio.sleep(0)
                yield bytes(1 << 16)
        finally:
            self.left.set()

    async def connect(self, data: bytes = b"", *, limit: int = 1 << 16) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        self.clients.append(writer)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[Server]:
    with closing(bind("127.0.0.1", 0, option="--port")) as listener:
        mine = Server(listener.getsockname()[1])
        app = Starlette(routes=[Route("/{rest:path}", mine.answer, methods=["GET", "POST"])])
        server = http_server(app, limits)
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield mine
        finally:
            mine.go_on.set()
            for writer in mine.clients:
                writer.close()
            await asyncio.gather(*[writer.wait_closed() for writer in mine.clients], return_exceptions=True)
            server.should_exit = True
            await running


async def answer_of(streams: Streams) -> tuple[int, bytes]:
    """The status and the body of one answer."""
    reader, _ = streams
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    return int(head.split()[1]), await reader.readexactly(int(fields[b"content-length"]))


async def is_closed(streams: Streams) -> bool:
    """Whether the other side closes; what still comes is dropped."""
    try:
        while await asyncio.wait_for(streams[0].read(1 << 16), 60):
            pass
    except ConnectionError:
        pass
    return True


@pytest.fixture
def ended_now() -> Callable[[], dict[str, float]]:
    """How many connections were ended since the test began, by why."""
    counters = {why: metrics.CONNECTIONS_ENDED.of(why) for why in WHYS}
    before = {why: counter._value.get() for why, counter in counters.items()}
    return lambda: {why: more for why in WHYS if (more := counters[why]._value.get() - before[why])}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"GET / HT",
        POST + b"content-length: 5\r\n\r\nab",
        POST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n",
    ],
    ids=["nothing", "an empty line", "half a head", "half a body", "a chunk"],
)
async def test_a_request_that_does_not_come_to_an_end_is_told_so(
    data: bytes, ended_now: Callable[[], dict[str, float]]
) -> None:
    async with serving(QUICK) as server:
        streams = await server.connect(data)
        status, body = await answer_of(streams)
        assert status == 408
        assert "within 0.3 seconds" in json.loads(body)["error"]["message"]
        assert await is_closed(streams)
        assert ended_now() == {"slow": 1}


async def test_an_empty_line_after_an_answer_does_not_keep_the_connection() -> None:
    async with serving(PATIENT) as server:
        streams = await server.connect(GET)
        assert await answer_of(streams) == (200, b"hello")
        streams[1].write(b"\r\n")
        assert await is_closed(streams)


async def test_a_body_may_take_longer_than_the_time_of_its_pieces() -> None:
    async with serving(PATIENT) as server:
        streams = await server.connect(POST + b"content-length: 8\r\n\r\n")
        for piece in (b"ab", b"cd", b"ef", b"gh"):
            await asyncio.sleep(0.3)
            streams[1].write(piece)
        assert await answer_of(streams) == (200, b"abcdefgh")


async def test_an_answer_may_take_longer_than_a_client() -> None:
    async with serving(PATIENT) as server:
        streams = await server.connect(GET.replace(b"/", b"/held", 1))
        await server.held.acquire()
        await asyncio.sleep(1.5 * PATIENT.client_timeout_seconds)
        server.go_on.set()
        assert await answer_of(streams) == (200, b"hello")


async def test_a_client_that_does_not_read_loses_its_answer(ended_now: Callable[[], dict[str, float]]) -> None:
    async with serving(QUICK) as server:
        streams = await server.connect(GET.replace(b"/", b"/endless", 1), limit=1 << 10)
        await asyncio.wait_for(server.left.wait(), 60)
        assert await is_closed(streams)
        assert ended_now() == {"unread": 1}


@pytest.mark.parametrize("more", [b"a: b\r\n", b"a"], ids=["many fields", "a long one"])
async def test_a_head_has_a_bound(more: bytes, ended_now: Callable[[], dict[str, float]]) -> None:
    async with serving(ConnectionLimits()) as server:
        streams = await server.connect(POST + b"x: " + more * ((1 << 18) // len(more)))
        status, _ = await answer_of(streams)
        assert status == 431
        assert ended_now() == {"large": 1}


async def test_trailers_have_a_bound() -> None:
    async with serving(ConnectionLimits()) as server:
        trailers = b"0\r\n" + b"a: b\r\n" * (1 << 16)
        streams = await server.connect(POST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n" + trailers)
        status, _ = await answer_of(streams)
        assert status == 431


async def test_the_connection_that_has_waited_the_longest_makes_room(ended_now: Callable[[], dict[str, float]]) -> None:
    async with serving(ConnectionLimits(max_connections=3)) as server:
        held = await server.connect(GET.replace(b"/", b"/held", 1))
        await server.held.acquire()
        idle = await server.connect(GET)
        assert await answer_of(idle) == (200, b"hello")
        half = await server.connect(POST + b"content-length: 5\r\n\r\nab")
        for waiting in (idle, half):
            new = await server.connect(GET.replace(b"/", b"/held", 1))
            assert await is_closed(waiting)
            await server.held.acquire()
        refused = await server.connect(GET)
        status, body = await answer_of(refused)
        assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
        server.go_on.set()
        assert await answer_of(held) == await answer_of(new) == (200, b"hello")
        assert ended_now() == {"displaced": 2, "full": 1}


async def test_an_upgrade_that_is_not_offered_is_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ConnectionLimits()) as server:
        streams = await server.connect(GET[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert (await answer_of(streams))[0] == 200
    assert not caplog.records


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Lines()
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


async def test_garbage_is_at_most_a_line_a_second(lines: list[str]) -> None:
    began = time.monotonic()
    async with serving(ConnectionLimits()) as server:
        for _ in range(20):
            assert await is_closed(await server.connect(b"\x00garbage\r\n\r\n"))
    assert 1 <= len(lines) <= 2 + time.monotonic() - began, lines


def test_the_next_line_tells_how_many_were_left_out() -> None:
    now = 0.0
    one = OncePerSecond(lambda: now)

    def told(level: int = logging.WARNING, text: str = "bad") -> str | None:
        record = logging.LogRecord("a", level, "", 0, text, None, None)
        return record.getMessage() if one.filter(record) else None

    assert [told(), told(), told(), told(text="other")] == ["bad", None, None, "other"]
    assert [told(logging.ERROR), told(logging.ERROR)] == ["bad", "bad"]
    now = 1.5
    assert [told(), told()] == ["bad (2 more since the last one)", None]
