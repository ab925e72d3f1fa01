"""Frames on a Unix socket: four bytes of length, then a msgpack message."""

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator

import msgspec

from lorafleet_common.logs import LogFormat
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import FromEngine, Shutdown, ToEngine

_LENGTH = struct.Struct(">I")
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


class StartEngine(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process is told before all else."""

    config: EngineConfig
    log_level: str
    log_format: LogFormat


def frame(message: ToEngine | FromEngine) -> bytes:
    """Return a message as bytes of the wire."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class EngineEnd:
    """The engine's end: blocking; one thread reads, any writes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._writing = threading.Lock()
        self.told_to_end = False
        """Whether Shutdown came."""

    def send(self, message: FromEngine) -> None:
        """Send; raises OSError when the API process is gone."""
        with self._writing:
            self._connection.sendall(frame(message))

    def messages(self) -> Iterator[ToEngine]:
        """Yield messages until the API process is gone."""
        while len(head := self._reader.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            body = self._reader.read(length)
            if len(body) < length:
                return
            message = _to_engine.decode(body)
            self.told_to_end = self.told_to_end or isinstance(message, Shutdown)
            yield message


async def messages_from(reader: asyncio.StreamReader) -> AsyncIterator[FromEngine]:
    """Yield messages of the engine until it is gone."""
    while True:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        yield _from_engine.decode(body)
