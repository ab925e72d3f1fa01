"""Who may wait: sequences without a token yet, counted by model, whatever they wait for: a load, a prompt, the engine."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from lorafleet_inference.errors import InvalidValue, Overloaded

RETRY_SECONDS = 1.0


class Admission:
    """Refuses more waiting sequences than the server takes.

    While fewer than `max_waiting` wait, anybody may. Beyond that each model may have its equal share, so that a burst of
    one adapter fills the queue for itself and not for the others.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._num_of: Counter[str] = Counter()

    @property
    def num_waiting(self) -> int:
        """Sequences that wait."""
        return self._num_of.total()

    def enter(self, model: str, num_sequences: int, *, field: str = "n") -> "Waiting":
        """Count the sequences of a request as waiting; the result is a context around all of the request.

        `field` of the request says how many they are.

        Raises:
            InvalidValue: more than may ever wait at the same time.
            Overloaded: too many of this model wait already.
        """
        if num_sequences > self._max_waiting:
            raise InvalidValue(
                f"the request has {num_sequences} sequences and this server takes {self._max_waiting} at a time",
                param=field,
            )
        num_all, num_own = self.num_waiting, self._num_of[model]
        share = self._max_waiting // len({*self._num_of, model})
        if num_all + num_sequences > self._max_waiting and num_own + num_sequences > max(1, share):
            if not num_own:
                del self._num_of[model]
            raise Overloaded(
                f"{num_all} sequences wait, {num_own} of them for {model}, and at most {self._max_waiting} may",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._num_of[model] += num_sequences
        return Waiting(num_sequences, partial(self._leave, model))

    def _leave(self, model: str, num_sequences: int) -> None:
        self._num_of[model] -= num_sequences
        if not self._num_of[model]:
            del self._num_of[model]


class Waiting:
    """The waiting sequences of one request; those that are left when the request ends leave with it."""

    def __init__(self, num_sequences: int, on_leave: Callable[[int], None]) -> None:
        self._num_sequences = num_sequences
        self._on_leave = on_leave

    def leave(self, num_sequences: int) -> None:
        """Sequences got their first token, or ended without one."""
        self._num_sequences -= num_sequences
        assert self._num_sequences >= 0, "more sequences left than entered"
        self._on_leave(num_sequences)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Leave with what still waits."""
        self.leave(self._num_sequences)
