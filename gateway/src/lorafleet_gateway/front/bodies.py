"""Memory for the bodies of requests: bounded in all, shared out by model, and given in turns while it is not known whose a body is.

A body says at its end as well as at its beginning for which model it is, so while it arrives nobody can count it as a model's. A
small one takes what it needs as it comes. A large one waits until it may have all of its room: those that arrive get half of
what no known model holds, one of them at least, in the order in which they came. So a burst of one model is told one by one
that the model has its share, and takes neither the room of small bodies nor the turns of others.
"""

import asyncio
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_gateway.errors import Full, Overloaded
from lorafleet_gateway.metrics import HELD_BYTES

SHARE: Final = 4
"""A model may have so many times of what all share as is left for all: alone four fifths of what there may be, two that want as
much as they can get four ninths each, and one that has nothing always gets some."""
LARGE_BYTES: Final = 256 << 10
"""A body of more waits for a turn."""
SLOW_SECONDS: Final = 5.0
"""For so long a body may keep others waiting, and for a second more for each MiB."""
BYTES_PER_SECOND: Final = 1 << 20


@dataclass(eq=False, slots=True)
class Turn:
    """A large body that arrives, or waits until it may."""

    num_bytes: int
    """What it may become; once it arrives, what it is promised."""
    least_bytes: int
    """With less it does not begin."""
    began_at: float | None = None
    """By the monotonic clock; None: it waits."""
    is_hopeless: bool = False
    """Those whose model is known have grown so much that there is no room for it, whatever else ends."""
    limit: asyncio.Timeout | None = None
    """What ends its arrival."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def late_at(self) -> float:
        """From when on it is too slow to keep others waiting."""
        assert self.began_at is not None, "it arrives"
        return self.began_at + SLOW_SECONDS + self.num_bytes / BYTES_PER_SECOND


class Bodies:
    """What all bodies hold."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        """What has arrived of all, and what is promised to those that have their turn."""
        self._max_bytes = max_bytes
        self._num_known = 0
        self._of: Counter[str] = Counter()
        """Of those whose model is known, by model."""
        self._waiting: deque[Turn] = deque()
        self._arriving: list[Turn] = []

    @property
    def num_settled(self) -> int:
        """What is held beside the bodies that have their turn."""
        return self.num_bytes - sum(turn.num_bytes for turn in self._arriving)

    def take(self, num_bytes: int) -> None:
        """Take room for bytes that have arrived without a turn.

        Raises:
            Overloaded: all bodies together would be too large.
        """
        if self.num_bytes + num_bytes > self._max_bytes:
            raise self._full()
        self._hold(num_bytes)

    def give_back(self, num_bytes: int, model: str | None = None) -> None:
        """Let bytes go, those of a model if it is known."""
        if model is not None:
            self._num_known -= num_bytes
            self._of[model] -= num_bytes
            if not self._of[model]:
                del self._of[model]
        self._hold(-num_bytes)
        self._go_on()

    def count_for(self, model: str, num_bytes: int) -> None:
        """Count a body that is there as one of a model.

        Raises:
            Overloaded: the model has its share.
        """
        num_own, num_left = self._of[model], self._max_bytes - self.num_settled
        if num_own and num_own + num_bytes > SHARE * num_left:
            raise Overloaded(
                f"this gateway holds {num_own} bytes of request bodies for this model already, and {self.num_settled} of all models, "
                f"of which there may be {self._max_bytes}",
                why=Full.MODEL_BODIES,
            )
        if num_bytes:
            self._num_known += num_bytes
            self._of[model] += num_bytes
            self._go_on()

    async def turn(self, num_bytes: int, least_bytes: int) -> Turn:
        """Wait until a large body may arrive, and promise it room, at least `least_bytes`: until `end`, which has to follow.

        Raises:
            Overloaded: those whose model is known leave no room for it.
        """
        turn = Turn(num_bytes, least_bytes)
        self._waiting.append(turn)
        try:
            self._go_on()
            while turn.began_at is None:
                if turn.is_hopeless:
                    raise self._full()
                turn.changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._hurry()):
                        await turn.changed.wait()
        except BaseException:
            if turn.began_at is not None:
                self.end(turn, turn.num_bytes)
            elif turn in self._waiting:
                self._waiting.remove(turn)
                self._go_on()
            raise
        return turn

    def end(self, turn: Turn, num_unused: int) -> None:
        """The body is there, or will not be; `num_unused` of its room was not needed."""
        self._arriving.remove(turn)
        self.give_back(num_unused)

    def _fits(self, turn: Turn) -> bool:
        num_arriving = self.num_bytes - self.num_settled
        if self.num_bytes + turn.num_bytes > self._max_bytes:
            return False
        return not num_arriving or 2 * (num_arriving + turn.num_bytes) <= self._max_bytes - self.num_settled

    def _go_on(self) -> None:
        """Let those begin whose turn it is, in their order."""
        while self._waiting:
            first = self._waiting[0]
            num_left = self._max_bytes - self._num_known
            first.num_bytes = min(first.num_bytes, max(num_left, first.least_bytes))
            if first.num_bytes > num_left:
                first.is_hopeless = True
            elif self._fits(first):
                first.began_at = monotonic()
                self._arriving.append(first)
                self._hold(first.num_bytes)
            else:
                return
            self._waiting.popleft()
            first.changed.set()

    def _hurry(self) -> float | None:
        """End the arrival of bodies that keep others waiting for too long; return after how many seconds to look again."""
        now = monotonic()
        for turn in self._arriving:
            if turn.late_at <= now and turn.limit is not None:
                turn.limit.reschedule(asyncio.get_running_loop().time())
        return min((turn.late_at - now for turn in self._arriving if turn.late_at > now), default=None)

    def _hold(self, change: int) -> None:
        self.num_bytes += change
        HELD_BYTES.set(self.num_bytes)

    def _full(self) -> Overloaded:
        return Overloaded(f"this gateway holds {self.num_bytes} bytes of request bodies already", why=Full.BODIES)
