"""Ports of aiohttp whose clients are bounded: how many connections, how long for a head, how large, how slow a reader."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

MAX_HEAD_BYTES: Final = 64 << 10
"""Of a request before its body."""
LINGER_SECONDS: Final = 1.0
"""In which the client may read why it was refused."""
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_REASONS: Final = {
    HTTPStatus.SERVICE_UNAVAILABLE: "full",
    HTTPStatus.REQUEST_TIMEOUT: "slow",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "large",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients of a port may take."""

    max_connections: int
    client_timeout_seconds: float
    """For a whole head, and for taking the next piece of an answer."""


class LimitedProtocol(web.RequestHandler):
    """One connection.

    Where there are too many, the one that has waited for its client the longest is closed: between two requests, or for a
    head or a body. Where all are being answered, the new one gets 503.
    """

    def __init__(self, server: "LimitedServer", **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._server = server
        self._limits = server.limits
        self._request: web.BaseRequest | None = None
        """The latest that was begun to be answered."""
        self._num_answered = 0
        self.waiting_since = 0.0
        """When the client began what it has not ended: connecting, being idle, a request."""
        self._transport: asyncio.Transport | None = None
        self._num_head_bytes = 0
        self._num_unsent_bytes = 0
        """At the last look."""
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._refused = False

    @property
    def waits_for_client(self) -> bool:
        """Whether no whole request is being answered."""
        return self._request_count == self._num_answered or not self._body_is_whole

    @property
    def _body_is_whole(self) -> bool:
        return self._request is None or self._request.content.is_eof()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or make room for it."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._transport, self.waiting_since = transport, self._loop.time()
        if self._server.has_room_for(self):
            self._wait_for_head()
        else:
            most = self._limits.max_connections
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"there are {most} connections, and may be no more")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._server.open.discard(self)
        self._transport = None
        self._stop_waiting_for_head()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._refused:
            return
        in_body = not self._body_is_whole
        super().data_received(data)
        if in_body or self._request_count > self._num_answered:
            self._num_head_bytes = 0
            self._stop_waiting_for_head()
            return
        if not data:
            return  # the parser was told to go on
        if not self._num_head_bytes:
            self.waiting_since = self._loop.time()
            self._wait_for_head()
        self._num_head_bytes += len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            words = f"the head of the request has more than {MAX_HEAD_BYTES} bytes"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, words)

    async def answer(self, request: web.BaseRequest, handler: Handler) -> web.StreamResponse:
        """Answer a request."""
        self._request = request
        try:
            return await handler(request)
        finally:
            self._num_answered += 1
            self.waiting_since = self._loop.time()

    def pause_writing(self) -> None:
        """The client does not take what is written."""
        super().pause_writing()
        self._look_for_reader_later()

    def resume_writing(self) -> None:
        """The client has taken it."""
        super().resume_writing()
        self._stop_waiting_for_reader()

    async def start(self) -> None:
        """Answer requests until the connection is to end, which it does when the client has taken what is written."""
        try:
            await super().start()
        finally:
            if self._transport is not None and self._transport.get_write_buffer_size():
                self._look_for_reader_later()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _wait_for_head(self) -> None:
        self._stop_waiting_for_head()
        self._reading = self._loop.call_later(self._limits.client_timeout_seconds, self._look_for_head)

    def _stop_waiting_for_head(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _look_for_head(self) -> None:
        self._reading = None
        words = f"the head did not come within {self._limits.client_timeout_seconds:g} seconds"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, words)

    def _look_for_reader_later(self) -> None:
        self._stop_waiting_for_reader()
        if self._transport is not None:
            self._num_unsent_bytes = self._transport.get_write_buffer_size()
        self._writing = self._loop.call_later(
            self._limits.client_timeout_seconds + LINGER_SECONDS, self._look_for_reader
        )

    def _stop_waiting_for_reader(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _look_for_reader(self) -> None:
        """Go on while the client reads at all; nothing is written meanwhile."""
        if self._transport is not None and self._transport.get_write_buffer_size() < self._num_unsent_bytes:
            self._look_for_reader_later()
        else:
            self._server.count("unread")
            self.abort()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer before there is a whole request, and close; not at once, since what the client sends would cut the answer."""
        self._refused = True
        self._stop_waiting_for_head()
        if self._transport is None or self._transport.is_closing():
            return
        self._server.count(_REASONS[status])
        kind, body = self._server.refusal(status, message)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        head += "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        self._transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self._loop.call_later(LINGER_SECONDS, self.abort)


class LimitedServer(web.Server):
    """Makes the protocol of each connection of a port."""

    protocol: type[LimitedProtocol] = LimitedProtocol

    def __init__(self, handler: Handler, limits: Limits, count: Callable[[str], None], **options: Any) -> None:
        """`count` is told why a connection is ended: one of REASONS."""

        async def answered(request: web.BaseRequest) -> web.StreamResponse:
            connection = request.protocol
            assert isinstance(connection, LimitedProtocol)
            return await connection.answer(request, handler)

        super().__init__(answered, handler_cancellation=True, **options)
        self.limits, self.count = limits, count
        self.open: set[LimitedProtocol] = set()
        self._options = options

    def __call__(self) -> LimitedProtocol:
        """Return the protocol of a new connection."""
        return self.protocol(self, **self._options)

    def refusal(self, _: HTTPStatus, message: str) -> tuple[str, bytes]:
        """Return type and body of the answer to a client that is refused before it has sent a request."""
        return "text/plain", message.encode()

    def has_room_for(self, connection: LimitedProtocol) -> bool:
        """Take a connection, for which another one may have to go; return whether it may stay."""
        self.open.add(connection)
        if len(self.open) <= self.limits.max_connections:
            return True
        others = [one for one in self.open if one is not connection and one.waits_for_client]
        if not others:
            self.open.discard(connection)
            return False
        oldest = min(others, key=lambda one: one.waiting_since)
        self.open.discard(oldest)
        self.count("displaced")
        oldest.abort()
        return True
