"""Messages between ranks as bytes: each is of a known type, and nothing in them is code, so that they may come over a network."""

import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, get_origin

import msgspec
import numpy as np
from pydantic import BaseModel

MAX_MESSAGE_BYTES: Final = 1 << 28
_HEAD = struct.Struct(">IB")
"""Bytes of the body, and which of the types it is."""


class NotUnderstood(OSError):
    """What came is no message of this codec: nothing that follows on the connection can be read."""


class Codec:
    """Messages of some types as bytes. Both ends have the same types in the same order."""

    def __init__(self, types: Sequence[type[Any]]) -> None:
        self._numbers = {kind: number for number, kind in enumerate(types)}
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
        self._decoders = [msgspec.msgpack.Decoder(kind, dec_hook=_made) for kind in types]

    def frame(self, message: object) -> bytes:
        """Return a message as it is sent."""
        body = self._encoder.encode(message)
        assert len(body) <= MAX_MESSAGE_BYTES, type(message)
        return _HEAD.pack(len(body), self._numbers[type(message)]) + body

    def read(self, number: int, body: bytes | bytearray) -> Any:
        """Return the message of a body.

        Raises:
            NotUnderstood: there is none of that type in it.
        """
        if number >= len(self._decoders):
            raise NotUnderstood(f"no message has the number {number}")
        try:
            return self._decoders[number].decode(body)
        except (msgspec.MsgspecError, ValueError) as error:
            raise NotUnderstood(f"a message cannot be read: {error}") from error


class Channel:
    """One end of a connection: one thread sends and one receives, as with a Connection of multiprocessing."""

    def __init__(self, connection: socket.socket, codec: Codec) -> None:
        self._socket, self._codec = connection, codec
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: object) -> None:
        """Send a message; raises OSError when the other end is gone."""
        self._socket.sendall(self._codec.frame(message))

    def recv(self) -> Any:
        """Wait for the next message.

        Raises:
            EOFError: the other end was closed.
            OSError: the connection is lost, or what came is no message.
        """
        size, number = _HEAD.unpack(self.recv_bytes(_HEAD.size))
        if size > MAX_MESSAGE_BYTES:
            raise NotUnderstood(f"a message of {size} bytes is longer than any")
        return self._codec.read(number, self.recv_bytes(size))

    def poll(self, timeout_seconds: float) -> bool:
        """Wait at most so long; return whether something came, be it the end."""
        return bool(readable([self], timeout_seconds))

    def send_bytes(self, content: bytes | memoryview) -> None:
        """Send what is no message; the other end has to know how much it is."""
        self._socket.sendall(content)

    def recv_bytes(self, size: int) -> bytearray:
        """Receive so many bytes; raises as `recv`."""
        content = bytearray(size)
        view, done = memoryview(content), 0
        while done < size:
            num = self._socket.recv_into(view[done:])
            if num == 0:
                raise EOFError("the other end was closed")
            done += num
        return content

    def limit(self, timeout_seconds: float | None) -> None:
        """Have each wait for the other end fail (OSError) after so long; None: never."""
        self._socket.settimeout(timeout_seconds)

    @property
    def address(self) -> tuple[str, str]:
        """IP addresses of this end and of the other one."""
        return self._socket.getsockname()[0], self._socket.getpeername()[0]

    def fileno(self) -> int:
        """Number of its file."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the connection ends when no process has it open."""
        self._socket.close()

    def end(self) -> None:
        """End the connection, also for a thread that waits at it; this end is still to be closed."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def readable(channels: Iterable[Channel], timeout_seconds: float) -> list[Channel]:
    """Wait at most so long; return those channels at which something came, be it the end."""
    by_file = {channel.fileno(): channel for channel in channels}
    return [by_file[number] for number in wait(list(by_file), timeout_seconds) if isinstance(number, int)]


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case np.ndarray():
            return value.shape, np.ascontiguousarray(value, dtype=np.float32).tobytes()
        case BaseModel():
            return value.model_dump(mode="json", by_alias=True)
    raise NotImplementedError(type(value))


def _made(kind: Any, value: Any) -> Any:
    """Return a value of a type that msgspec does not know; ValueError where it is none."""
    if (get_origin(kind) or kind) is np.ndarray:
        shape, content = value
        return np.frombuffer(bytearray(content), dtype=np.float32).reshape(shape)
    if isinstance(kind, type) and issubclass(kind, Path):
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate(value)
    raise NotImplementedError(kind)
