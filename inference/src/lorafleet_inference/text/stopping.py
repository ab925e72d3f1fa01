"""Stop strings, which may begin and end anywhere inside tokens."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stopped:
    """What may be shown, and whether a stop string was met (what follows it is not shown)."""

    text: str
    met: bool


class StopStrings:
    """Cuts a growing text before the first stop string, or with `shown` behind it; of several, the one that ends first wins.

    Text that could be the beginning of a stop string is kept back until that is decided.
    """

    def __init__(self, stops: Sequence[str], *, shown: bool = False) -> None:
        assert all(stops), "an empty stop string is refused where requests are read"
        self._stops = tuple(stops)
        self._shown = shown
        self._max_chars = max(map(len, stops), default=0)
        self._held = ""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._stops)

    def push(self, text: str) -> Stopped:
        """Return what of the held and the new text may be shown."""
        if not self._stops or not text:
            return Stopped(text, met=False)
        text = self._held + text
        found = self._first(text)
        if found is not None:
            self._held = ""
            return Stopped(text[:found], met=True)
        keep = self._num_kept(text)
        self._held = text[len(text) - keep :]
        return Stopped(text[: len(text) - keep], met=False)

    def finish(self) -> str:
        """Return what was kept back: no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> int | None:
        """Return where the stop string that is complete first begins, or if it is shown ends.

        Of those that end together it is the longest.
        """
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(ends)[0 if self._shown else 1] if ends else None

    def _num_kept(self, text: str) -> int:
        longest = min(self._max_chars - 1, len(text))
        for size in range(longest, 0, -1):
            tail = text[len(text) - size :]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0
