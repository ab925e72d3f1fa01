"""How much all bodies together may hold while their requests last."""

from types import TracebackType
from typing import Self

from lorafleet_inference.errors import Overloaded

FREE_BYTES = 64 << 10
"""Bodies up to this size are not counted together: who sends small ones does not wait for who sends large ones."""
RETRY_SECONDS = 1.0


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
