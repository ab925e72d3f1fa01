"""Connections of clients: how many there may be, how long a client may take, how much a head may hold."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lorafleet_contract.openai import ErrorCode
from lorafleet_inference import metrics
from lorafleet_inference.server.http import error_body

MAX_HEAD_BYTES = 64 << 10
"""Of a request before its body; trailers and the lengths of chunks without a body between them count alike."""
LINGER_SECONDS = 1.0
"""In which the client may read why it was refused."""
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told that is refused before there is a whole request."""

    phrase: str
    code: ErrorCode
    reason: str
    """As the metric has it."""
    meaning: str


REFUSALS: Mapping[int, Refusal] = {
    408: Refusal(
        "Request Timeout",
        ErrorCode.INVALID_VALUE,
        "slow",
        "The head or the next piece of the body did not come in time.",
    ),
    431: Refusal("Request Header Fields Too Large", ErrorCode.INVALID_VALUE, "large", "The head is too large."),
    503: Refusal("Service Unavailable", ErrorCode.OVERLOADED, "full", "There are too many connections."),
}
"""By HTTP status. They are in OpenAI's form on every path: which one is asked is not known yet."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients may take."""

    max_connections: int = 4096
    client_timeout_seconds: float = 60.0
    """For a whole head; for the next piece of a body; for taking the next piece of an answer."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection of a uvicorn server.

    Where there are too many, the one that has waited for its client the longest is closed: between two requests, or for
    a head or a body. Where all are being answered, the new one gets 503.
    """

    def __init__(self, limits: ConnectionLimits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self.waiting_since = 0.0
        """When the client began what it has not ended: connecting, being idle, a request."""
        self._num_head_bytes = 0
        self._has_body = False
        """Whether the bytes that are parsed hold some of a body."""
        self._num_unsent_bytes = 0
        """At the last look."""
        self._refused = False

    @property
    def waits_for_client(self) -> bool:
        """Whether no whole request is being answered."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or make room for it."""
        super().connection_made(transport)
        self.waiting_since = time.monotonic()
        if len(self.connections) > self._limits.max_connections and not self._make_room():
            self._refuse(503, f"the pod has {self._limits.max_connections} connections, and may have no more")
        else:
            self._wait_for_bytes()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting_for_bytes()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._refused:
            return
        self._has_body = False
        super().data_received(data)
        if self.transport.is_closing() or not self.waits_for_client:
            self._num_head_bytes = 0
            return
        self._num_head_bytes = 0 if self._has_body else self._num_head_bytes + len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes")
        elif self._has_body or (self._reading is None and self.timeout_keep_alive_task is None):
            self._wait_for_bytes()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self.waiting_since = time.monotonic()
        self._wait_for_bytes()

    def on_headers_complete(self) -> None:
        """The head is there; the next piece of the body has its own time."""
        super().on_headers_complete()
        self._has_body = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body came."""
        super().on_body(body)
        self._has_body = True

    def on_message_complete(self) -> None:
        """The request is whole."""
        super().on_message_complete()
        self._has_body = True
        self._stop_waiting_for_bytes()

    def on_response_complete(self) -> None:
        """The next request may come, in the time that connections are kept."""
        super().on_response_complete()
        self.waiting_since = time.monotonic()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came."""
        if self.transport.get_write_buffer_size():
            metrics.CONNECTIONS_ENDED.of("unread").inc()
            self.transport.abort()  # nobody reads the last answer, so that closing would wait for ever
        else:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """The client does not take what is written."""
        super().pause_writing()
        self._num_unsent_bytes = self.transport.get_write_buffer_size()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The client has taken it."""
        super().resume_writing()
        self._stop_waiting_for_reader()

    def _unsupported_upgrade_warning(self) -> None:
        """Upgrades are not offered: the request is answered as it is, and nobody has to be told."""

    def _make_room(self) -> bool:
        """Close the connection that has waited for its client the longest."""
        others = [
            one
            for one in self.connections
            if isinstance(one, LimitedProtocol) and one is not self and one.waits_for_client
        ]
        if not others:
            return False
        oldest = min(others, key=lambda one: one.waiting_since)
        self.connections.discard(oldest)
        metrics.CONNECTIONS_ENDED.of("displaced").inc()
        oldest.transport.abort()
        return True

    def _wait_for_bytes(self) -> None:
        self._stop_waiting_for_bytes()
        self._reading = self.loop.call_later(self._limits.client_timeout_seconds, self._look_for_bytes)

    def _stop_waiting_for_bytes(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _look_for_bytes(self) -> None:
        self._reading = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused or not self.waits_for_client:
            self._wait_for_bytes()  # it is the pod that takes its time
        elif self.cycle is not None and self.cycle.response_started:
            metrics.CONNECTIONS_ENDED.of("slow").inc()
            self.transport.close()
        else:
            self._refuse(408, f"the request did not come within {self._limits.client_timeout_seconds:g} seconds")

    def _wait_for_reader(self) -> None:
        self._stop_waiting_for_reader()
        self._writing = self.loop.call_later(self._limits.client_timeout_seconds, self._look_for_reader)

    def _stop_waiting_for_reader(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _look_for_reader(self) -> None:
        """Go on while the client reads at all; nothing is written meanwhile."""
        before, self._num_unsent_bytes = self._num_unsent_bytes, self.transport.get_write_buffer_size()
        if self._num_unsent_bytes < before:
            self._wait_for_reader()
        else:
            metrics.CONNECTIONS_ENDED.of("unread").inc()
            self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer before there is a whole request, and close; not at once, since what the client sends would cut the answer."""
        self._refused = True
        self._stop_waiting_for_bytes()
        refusal = REFUSALS[status]
        metrics.CONNECTIONS_ENDED.of(refusal.reason).inc()
        body = error_body(message, status=status, code=refusal.code.value)
        head = (
            f"HTTP/1.1 {status} {refusal.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        head += "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


class OncePerSecond(logging.Filter):
    """Lets warnings of one text through once a second; the next one tells how many were left out."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        if record.levelno != logging.WARNING:
            return True
        text, now = str(record.msg), self._clock()
        if now < self._next.get(text, now):
            self._left_out[text] = self._left_out.get(text, 0) + 1
            return False
        self._next = {one: until for one, until in self._next.items() if until > now} | {text: now + 1.0}
        if number := self._left_out.pop(text, 0):
            record.msg = f"{text} ({number} more since the last one)"
        return True
