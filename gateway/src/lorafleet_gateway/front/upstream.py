"""One request to one pod: what comes of it, classified by type."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import TypeAdapter
from yarl import URL

from lorafleet_contract.lorax import LoraxError
from lorafleet_contract.openai import ErrorAnswer, ErrorCode
from lorafleet_gateway.front.outcomes import REFUSAL_STATUSES, REFUSALS, Broken, Cut, Refusal, Silent, Unreachable

MAX_REFUSAL_BYTES: Final = 1 << 16
KEEP_ALIVE_SECONDS: Final = 30.0
"""Shorter than pods keep idle connections, so that it is not a pod who closes one in use."""
PIECE_BYTES: Final = 1 << 20
"""Larger bodies are written in pieces, so that other requests get their turn."""
_ERRORS: Final = TypeAdapter[ErrorAnswer | LoraxError](ErrorAnswer | LoraxError)
_SKIPPED: Final = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a pod."""

    status: int
    headers: CIMultiDictProxy[str]
    _body: aiohttp.StreamReader | bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            Cut: the connection broke, or fell silent, before its end.
        """
        if isinstance(self._body, bytes):
            yield self._body
            return
        try:
            async for chunk in self._body.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Cut(str(error) or type(error).__name__) from error


class Upstream:
    """The connections to all pods."""

    def __init__(self, *, connect_timeout_seconds: float, idle_timeout_seconds: float) -> None:
        self._idle_timeout_seconds = idle_timeout_seconds
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_seconds, sock_read=idle_timeout_seconds
        )
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, socket_factory=_socket_that_notices_death
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_SKIPPED,
            timeout=timeout,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    @asynccontextmanager
    async def request(
        self, url: URL, headers: CIMultiDict[str], body: bytes | bytearray, *, method: str = "POST"
    ) -> AsyncIterator[Answer | Refusal]:
        """Send a request, with GET without a body.

        Leaving the context before the answer's end closes the connection, which cancels the request in the pod.

        Raises:
            NotTaken: there is no answer; the subclass says what is known of the request.
        """
        data = (
            None if method == "GET" else body if isinstance(body, bytes) and len(body) <= PIECE_BYTES else Pieces(body)
        )
        try:
            async with asyncio.timeout(self._idle_timeout_seconds):  # sock_read does not watch over the sending
                response = await self._session.request(method, url, data=data, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise Unreachable(str(error) or str(url)) from error
        except TimeoutError as error:
            raise Silent(str(url)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(str(error) or type(error).__name__) from error
        del body, data  # the caller may release the body while the answer lasts
        async with response:
            answer = Answer(response.status, response.headers, response.content)
            yield await _refusal(answer) if response.status in REFUSAL_STATUSES else answer


class Pieces(aiohttp.payload.Payload):
    """A large body, written piece by piece from the one buffer that holds it."""

    def __init__(self, body: bytes | bytearray) -> None:
        super().__init__(body)
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body."""
        view = memoryview(self._value)
        for begin in range(0, len(view), PIECE_BYTES):
            await writer.write(view[begin : begin + PIECE_BYTES])


async def _refusal(answer: Answer) -> Refusal | Answer:
    """Return the refusal that an answer is, else the answer with its body still to come."""
    length = answer.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_REFUSAL_BYTES:
        return answer
    try:
        body = b"".join([chunk async for chunk in answer.chunks()])
    except Cut as error:
        raise Broken(str(error)) from error
    code = _code_of(body)
    if code is not None and code in REFUSALS:
        return Refusal(code, answer.status, answer.headers, body)
    return Answer(answer.status, answer.headers, body)


def _code_of(body: bytes) -> ErrorCode | None:
    """Return the code of an error in OpenAI's shape or in LoRAX's; None where it has none that is known."""
    try:
        answer = _ERRORS.validate_json(body)
        return ErrorCode((answer.error.code if isinstance(answer, ErrorAnswer) else answer.code) or "")
    except ValueError:  # a ValidationError is one
        return None


def _socket_that_notices_death(address: Any) -> socket.socket:
    """Return a socket whose kernel asks a silent peer for a sign of life: a node that is gone sends no reset."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)  # the same for what was sent and not confirmed
    return made
