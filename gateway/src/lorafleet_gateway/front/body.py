"""A request's body: read with a limit, kept as it came; only `model` is looked at."""

import asyncio
from contextlib import AsyncExitStack
from enum import Enum, auto
from typing import Annotated, Final, TypeVar

import aiohttp
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorafleet_common.clock import monotonic
from lorafleet_common.json_values import TooManyValues, check_num_values
from lorafleet_gateway.errors import BodyTimeout, BodyTooLarge, Full, InvalidRequest, Overloaded, UnsupportedEncoding
from lorafleet_gateway.front.bodies import LARGE_BYTES
from lorafleet_gateway.front.state import Room

BODY_SECONDS: Final = 60.0
"""How long a body may take to arrive."""


class _Arrival(Enum):
    SMALL = auto()
    WAITS = auto()
    HAS_TURN = auto()


class _Wanted(BaseModel):
    """Read with the parser that pods use, so that both understand the same `model`, whatever else the body holds."""

    model_config = ConfigDict(strict=True)

    model: Annotated[str, Field(min_length=1, max_length=512)]


async def read_body(request: web.BaseRequest, max_bytes: int, room: Room) -> bytes | bytearray:
    """Return the body.

    Raises:
        UnsupportedEncoding: it is compressed.
        BodyTooLarge: more than `max_bytes`; the rest is not read.
        Overloaded: there is no room for it.
        BodyTimeout: it took too long, or was slow while others waited for their turn.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedEncoding(f"the body has to come without content-encoding, not as {encoding[:40]!r}")
    declared = request.content_length
    if declared is not None and declared > max_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes; at most {max_bytes} are taken")
    if request.headers.get("expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun
    if request.content.is_eof() and declared is not None:
        room.take(declared)
        return request.content.read_nowait()  # it came with the head, as most do
    return await _read(request.content, declared, max_bytes, room)


async def _read(content: aiohttp.StreamReader, declared: int | None, max_bytes: int, room: Room) -> bytearray:
    body = bytearray()  # one buffer: pieces that are joined at the end exist twice for a moment
    began, state = monotonic(), _Arrival.SMALL
    try:
        async with AsyncExitStack() as stack, asyncio.timeout(BODY_SECONDS) as limit:

            async def wait_for_turn(num_bytes: int, least_bytes: int) -> None:
                nonlocal state
                state = _Arrival.WAITS
                (await stack.enter_async_context(room.turn(num_bytes, least_bytes))).limit = limit
                state = _Arrival.HAS_TURN

            if declared is not None and declared > LARGE_BYTES:
                await wait_for_turn(declared, declared)
            async for chunk in content.iter_any():
                if len(body) + len(chunk) > max_bytes:
                    raise BodyTooLarge(f"the body has more than {max_bytes} bytes")
                if state is _Arrival.SMALL and len(body) + len(chunk) > LARGE_BYTES:
                    await wait_for_turn(max_bytes - len(body), LARGE_BYTES)
                room.take(len(chunk))
                body += chunk
    except TimeoutError:
        if state is _Arrival.WAITS:
            raise Overloaded("other bodies arrive, and there is no room beside them", why=Full.BODIES) from None
        raise BodyTimeout(f"the body did not arrive within {monotonic() - began:.0f} s") from None
    return body


def check_size(body: bytes | bytearray) -> None:
    """Check a body that is to be looked into, as pods do.

    Raises:
        InvalidRequest: it has more values than any request needs.
    """
    try:
        check_num_values(body)
    except TooManyValues as error:
        raise InvalidRequest(str(error)) from None


def model_of(body: bytes | bytearray) -> str:
    """Return the field `model`.

    Raises:
        InvalidRequest: the body is no JSON object, or has no legal `model`.
    """
    return read_model(_Wanted, body).model


ReadT = TypeVar("ReadT", bound=BaseModel)


def read_model(kind: type[ReadT], body: bytes | bytearray) -> ReadT:
    """Read the part of a body that `kind` says.

    Raises:
        InvalidRequest: the body is no JSON object, or that part of it is not legal; `param` names the field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise InvalidRequest(f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["loc"]:
        field = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{field}: {first['msg']}", param=field)
    raise InvalidRequest("the body is not a JSON object")
