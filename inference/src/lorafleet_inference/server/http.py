"""HTTP below the API: bodies with a limit, OpenAI-shaped errors, server-sent events, clients that vanish."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lorafleet_contract.openai import ErrorAnswer, ErrorBody, ErrorCode, error_type
from lorafleet_contract.usage import HEADER_USAGE
from lorafleet_inference.errors import RequestError
from lorafleet_inference.metrics import ERRORS
from lorafleet_inference.server.bodies import BodyRoom, BodyShare
from lorafleet_inference.server.tracing import trace_of

logger = logging.getLogger(__name__)
_encoder = msgspec.json.Encoder()
Headers = Mapping[str, str]
UNBUFFERED = "x-accel-buffering"
"""Header that keeps proxies from gathering events."""


class PayloadTooLarge(RequestError):
    """The body is larger than the server takes."""

    status = 413
    code = ErrorCode.INVALID_VALUE


class UnsupportedEncoding(RequestError):
    """The body is compressed."""

    status = 415
    code = ErrorCode.INVALID_VALUE


def json_response(
    body: msgspec.Struct | Sequence[msgspec.Struct], *, status: int = 200, headers: Headers | None = None
) -> Response:
    """Return a JSON answer."""
    return Response(_encoder.encode(body), status, headers, media_type="application/json")


def error_body(message: str, *, status: int, code: str | None, param: str | None = None) -> bytes:
    """Return `{"error": {…}}`."""
    body = ErrorBody(message=message, type=error_type(status), param=param, code=code)
    return ErrorAnswer(error=body).model_dump_json().encode()


ErrorShape = Callable[[RequestError], tuple[int, bytes]]
"""HTTP status and JSON body of an error."""


def openai_error(error: RequestError) -> tuple[int, bytes]:
    """Return an error as OpenAI's API has it."""
    return error.status, error_body(error.message, status=error.status, code=error.code.value, param=error.param)


def error_response(error: RequestError, headers: Headers | None = None, shape: ErrorShape = openai_error) -> Response:
    """Return the answer for an error and count it."""
    ERRORS.of(error.code.value).inc()
    status, body = shape(error)
    extra = {}
    if error.retry_after_seconds is not None:
        extra["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
    return Response(body, status, {**(headers or {}), **extra}, media_type="application/json")


def error_event(error: RequestError, shape: ErrorShape = openai_error) -> bytes:
    """Return the server-sent event that ends a stream that had begun, and count the error."""
    ERRORS.of(error.code.value).inc()
    _, body = shape(error)
    return b"event: error\ndata: " + body + b"\n\n"


async def read_body(request: Request, max_bytes: int, share: BodyShare) -> bytes:
    """Return the body, counted in its request's share of the room for bodies.

    Raises:
        Overloaded: there is no room for it beside those of others.
        UnsupportedEncoding: it is compressed.
        PayloadTooLarge: more than `max_bytes`; the rest is not read.
        ClientDisconnect: the client left first.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedEncoding(f"the body has content-encoding {encoding!r}; bodies are taken as they are only")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise PayloadTooLarge(f"the body has {declared} bytes; {_at_most(max_bytes)}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"the body is too large; {_at_most(max_bytes)}")
        share.grow_to(len(body))
    return bytes(body)


def _at_most(max_bytes: int) -> str:
    return f"at most {max_bytes} bytes are taken (--max-body)"


class EventStream:
    """Server-sent events to one client. The headers go out with the first event, so an earlier error has a status."""

    def __init__(self, send: Send, headers: Headers, *, names_events: bool = False) -> None:
        """`names_events`: each event begins with its type, and no `[DONE]` follows the last one."""
        self._send = send
        self._headers = headers
        self._names_events = names_events
        self.started = False

    async def start(self) -> None:
        """Send the status line and the headers."""
        self.started = True
        named = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            UNBUFFERED: "no",
            **self._headers,
        }
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, bodies: Iterable[msgspec.Struct]) -> None:
        """Send events in one piece."""
        await self.raw(self.written(bodies))

    def written(self, bodies: Iterable[msgspec.Struct]) -> bytes:
        """Return events as they are sent."""
        return b"".join(self._name(body) + b"data: " + _encoder.encode(body) + b"\n\n" for body in bodies)

    def _name(self, body: msgspec.Struct) -> bytes:
        return f"event: {getattr(body, 'type', 'message')}\n".encode() if self._names_events else b""

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        if not self.started:
            await self.start()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, last: bytes | None = None) -> None:
        """Send the last bytes and close the stream."""
        if last is None:
            last = b"" if self._names_events else b"data: [DONE]\n\n"
        await self._send({"type": "http.response.body", "body": last, "more_body": False})


class Exchange:
    """One request and its answer, as a handler sees it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, error_shape: ErrorShape = openai_error) -> None:
        self.request = Request(scope, receive)
        self.error_shape = error_shape
        self.scope, self.receive, self.send = scope, receive, send
        self.headers: dict[str, str] = {}
        """Headers for whatever answer it becomes."""
        self.stream: EventStream | None = None

    @property
    def asks_usage(self) -> bool:
        """Whether a gateway wants to know how many tokens it is."""
        return HEADER_USAGE in self.request.headers

    def open_stream(self, *, names_events: bool = False) -> EventStream:
        """Answer with server-sent events."""
        self.stream = EventStream(self.send, self.headers, names_events=names_events)
        return self.stream

    async def respond(self, response: Response) -> None:
        """Answer at once."""
        await response(self.scope, self.receive, self.send)

    async def respond_until_taken(self, response: Response) -> None:
        """Answer, and return when the client has taken all but a little of it."""

        async def send(message: Message) -> None:
            is_body = message["type"] == "http.response.body"
            await self.send({**message, "more_body": True} if is_body else message)
            if is_body:  # what is sent next waits for the client
                await self.send({"type": "http.response.body", "body": b"", "more_body": False})

        await response(self.scope, self.receive, send)

    async def fail(self, error: RequestError) -> None:
        """Answer with an error: as a status while that is possible, else as the last event of the stream."""
        if self.stream is not None and self.stream.started:
            trace_of(self.scope).fail(error.code)
            await self.stream.end(error_event(error, self.error_shape))
        else:
            await self.respond(error_response(error, self.headers, self.error_shape))


Handler = Callable[[Exchange], Awaitable[None]]


class Endpoint:
    """An ASGI endpoint around a handler that reads its body first: errors become answers, a vanished client cancels it."""

    def __init__(
        self,
        handler: Callable[[Exchange, bytes], Awaitable[None]],
        *,
        max_body_bytes: int,
        room: BodyRoom,
        error_shape: ErrorShape = openai_error,
    ) -> None:
        self._handler = handler
        self._error_shape = error_shape
        self._max_body_bytes = max_body_bytes
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(scope, receive, send, self._error_shape)
        with self._room.share() as share:
            try:
                body = await read_body(exchange.request, self._max_body_bytes, share)
            except ClientDisconnect:
                return
            except RequestError as error:
                await exchange.fail(error)
                return
            await _unless_disconnected(receive, self._answer(exchange, body))

    async def _answer(self, exchange: Exchange, body: bytes) -> None:
        try:
            await self._handler(exchange, body)
        except RequestError as error:
            await exchange.fail(error)
        except Exception:
            logger.exception("a request failed unexpectedly")
            await exchange.fail(RequestError("the server failed on this request"))


async def _unless_disconnected(receive: Receive, work: Awaitable[None]) -> None:
    """Run the work and cancel it when the client leaves; returns when the work has ended either way."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone = not working.done()
        watching.cancel()
        working.cancel()
        results = await asyncio.gather(working, watching, return_exceptions=True)
    if not gone and isinstance(results[0], BaseException):
        raise results[0]


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
