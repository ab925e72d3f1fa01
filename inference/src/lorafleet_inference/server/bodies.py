"""How much bodies may hold: one of them, told before it is parsed, and all together while their requests last."""

from types import TracebackType
from typing import Self

from lorafleet_inference.errors import InvalidValue, Overloaded

MAX_VALUES = 1 << 16
"""Strings, lists and objects of a body, names of fields included. Texts cost only their copying."""
MAX_ITEMS = 1 << 19
"""Of all lists and objects together. Numbers cost little: token ids of a batch of long prompts fit."""
FREE_BYTES = 64 << 10
"""Bodies up to this size are not counted together: who sends small ones does not wait for who sends large ones."""
RETRY_SECONDS = 1.0
_STRUCTURE = b'"[{,'
_REST = bytes(set(range(256)) - set(_STRUCTURE))


def check_num_values(body: bytes, *, most: int = MAX_VALUES, most_items: int = MAX_ITEMS) -> None:
    """Check a body before it is parsed, since parsing many values keeps Python's lock, and so the event loop, from all others.

    Takes some 10 ms for 10 MB. What is no JSON is left to whoever parses it.

    Raises:
        InvalidValue: it has more values than any request that fits a model needs.
    """
    if len(body) <= most:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # then every quote begins or ends a string
    structure = body.translate(None, _REST)
    num_strings = structure.count(b'"') // 2
    if num_strings <= most:
        outside = b"".join(structure.split(b'"')[::2])
        num_commas = outside.count(b",")
        if num_commas >= most_items:
            raise InvalidValue(f"the lists and objects of the body have more than {most_items} items together")
        if num_strings + len(outside) - num_commas <= most:
            return
    raise InvalidValue(f"the body has more than {most} strings, lists and objects")


class BodyRoom:
    """Bytes of large bodies in memory, counted as they come and until their requests have ended."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.used_bytes = 0

    def share(self) -> "BodyShare":
        """Return the share of one request, a context around all of it."""
        return BodyShare(self)

    def take(self, num_bytes: int) -> None:
        """Count bytes.

        Raises:
            Overloaded: all bodies together would have more than they may.
        """
        if self.used_bytes + num_bytes > self._max_bytes:
            raise Overloaded(
                f"bodies of more than {FREE_BYTES} bytes have {self.used_bytes} bytes together, and at most "
                f"{self._max_bytes} may be in memory",
                retry_after_seconds=RETRY_SECONDS,
            )
        self.used_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Count bytes no more."""
        self.used_bytes -= num_bytes


class BodyShare:
    """What one request has of the room."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._num_bytes = 0

    def grow_to(self, num_bytes: int) -> None:
        """The body has so many bytes by now.

        Raises:
            Overloaded: there is no room for them.
        """
        if num_bytes > FREE_BYTES:
            self._room.take(num_bytes - self._num_bytes)
            self._num_bytes = num_bytes

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Give everything back."""
        self._room.give_back(self._num_bytes)
        self._num_bytes = 0
