"""How much of all answers may wait in memory: for the rest of an answer that is sent whole, or for a client that does not read."""

import asyncio
from types import TracebackType
from typing import Self

from lorafleet_inference.engine.token_events import TokenEvent, TokenLogprobs
from lorafleet_inference.errors import Overloaded

TOKEN_BYTES = 512
LOGPROB_BYTES = 320
"""Upper estimates of what a token, and each log-probability told with it, takes until it is sent."""
RETRY_SECONDS = 1.0
EMBEDDING_FACTOR = 20
"""So many times its size an embedding takes while it is written as numbers."""


def bytes_of(event: TokenEvent) -> int:
    """Return about how much memory the tokens of an event take until they are sent."""
    return len(event.token_ids) * TOKEN_BYTES + _bytes_of(event.logprobs)


def bytes_of_prompt(event: TokenEvent) -> int:
    """Return about how much the log-probabilities of the prompt take, or its embedding."""
    return _bytes_of(event.prompt_logprobs) + len(event.embedding or b"") * EMBEDDING_FACTOR


def _bytes_of(logprobs: tuple[TokenLogprobs, ...] | None) -> int:
    return sum(1 + len(one.top) for one in logprobs or ()) * LOGPROB_BYTES


class AnswerRoom:
    """Bytes of answers that wait. Where there are too many, the request that has most of them ends, and nobody else."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._shares: dict[AnswerShare, None] = {}

    def share(self) -> "AnswerShare":
        """Return the share of one request, an asynchronous context around all of its answer."""
        return AnswerShare(self)

    def enter(self, share: "AnswerShare") -> None:
        """Count a share."""
        self._shares[share] = None

    def leave(self, share: "AnswerShare") -> None:
        """Count it no more, and nothing that it has."""
        if share in self._shares:
            del self._shares[share]
            self.used_bytes -= share.num_bytes

    def grow(self, share: "AnswerShare", num_bytes: int) -> None:
        """Count bytes of a share, less where they are negative; end the largest ones while all together are too many."""
        if share not in self._shares:
            return
        share.num_bytes += num_bytes
        self.used_bytes += num_bytes
        while self.used_bytes > self.max_bytes:
            largest = max(self._shares, key=lambda one: one.num_bytes)
            self.leave(largest)
            largest.end()


class AnswerShare:
    """What one request has of the room.

    Leaving it raises Overloaded where the request was ended for the others' sake, whatever it was doing.
    """

    def __init__(self, room: AnswerRoom) -> None:
        self._room = room
        self._ending = asyncio.timeout(None)
        self.num_bytes = 0

    def hear(self, event: TokenEvent) -> None:
        """Tokens came."""
        self._room.grow(self, bytes_of(event) + bytes_of_prompt(event))

    def give_back(self, num_bytes: int) -> None:
        """Tokens were sent."""
        self._room.grow(self, -num_bytes)

    def end(self) -> None:
        """Cancel what the request does, as soon as the event loop turns."""
        self._ending.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> Self:
        """Begin."""
        await self._ending.__aenter__()
        self._room.enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give everything back.

        Raises:
            Overloaded: the request was ended.
        """
        self._room.leave(self)
        try:
            await self._ending.__aexit__(kind, error, trace)
        except TimeoutError:
            raise Overloaded(
                f"answers that wait to be sent had more than {self._room.max_bytes} bytes together, and this one most of "
                "them: ask for fewer choices or log-probabilities, or read the stream faster",
                retry_after_seconds=RETRY_SECONDS,
            ) from None
