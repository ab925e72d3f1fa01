"""Since which generation each entry of a document is as it is, so that a document can be told as a difference. Pure.

It asks nobody to tell it of changes: each time before a document is made it compares what is shown with what was shown last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from lorafleet_inference.engine.messages import AdapterKey

MAX_GONE: Final = 4096
"""Entries that are gone and still told; whoever knows an older generation is told the whole."""


class Counted(Protocol):
    """The number that grows with every change."""

    number: int

    def bump(self) -> None:
        """Something has changed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What has become of a generation."""

    since: int
    changed: frozenset[AdapterKey]
    """New, or another than it was then."""
    gone: tuple[AdapterKey, ...]


@dataclass(slots=True)
class _Shown:
    value: object
    since: int
    """The first generation that showed it."""


class Journal:
    """The entries of one document."""

    def __init__(self, changes: Counted, *, max_gone: int = MAX_GONE) -> None:
        self._changes = changes
        self._max_gone = max_gone
        self._shown: dict[AdapterKey, _Shown] = {}
        self._gone: dict[AdapterKey, int] = {}
        """The first generation without an entry, in the order of generations."""
        self._known_from = changes.number
        """Differences to earlier generations cannot be told."""
        self._looked_at = -1
        """The generation of the last document."""

    def look(self, shown: Mapping[AdapterKey, object]) -> None:
        """Take in what a document that is made now shows of each entry.

        Two documents of one generation are to show the same: what has changed without a new one gets one here.
        """
        changed = []
        for key, value in shown.items():
            last = self._shown.get(key)
            if last is None or last.value != value:
                changed.append(key)
            else:
                last.value = value  # found faster the next time
        gone = [key for key in self._shown if key not in shown]
        if (changed or gone) and self._looked_at == self._changes.number:
            self._changes.bump()
        number = self._looked_at = self._changes.number
        for key in changed:
            self._gone.pop(key, None)
            self._shown[key] = _Shown(shown[key], number)
        for key in gone:
            del self._shown[key]
            self._gone[key] = number
        while len(self._gone) > self._max_gone:
            self._known_from = self._gone.pop(next(iter(self._gone)))

    def since(self, generation: int) -> Difference | None:
        """Return what has become of a generation up to the last look; None where that cannot be told."""
        if not self._known_from <= generation <= self._looked_at:
            return None
        return Difference(
            generation,
            frozenset(key for key, one in self._shown.items() if one.since > generation),
            tuple(key for key, number in self._gone.items() if number > generation),
        )
