"""The sequences that hold blocks, and who of them gives way. Pure."""

from collections import Counter
from collections.abc import Collection, Iterator

from lorafleet_inference.engine.fairness import ServiceCounters
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.sequence import Sequence

Place = tuple[float, bool, tuple[int, int]]
"""Who comes first: the least served adapter, then one that has nothing running, then by priority and arrival."""


class RunningSet:
    """Running sequences."""

    def __init__(self, counters: ServiceCounters) -> None:
        self._counters = counters
        self._sequences: list[Sequence] = []
        self._num_of: Counter[AdapterKey | None] = Counter()

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def adapters(self) -> Collection[AdapterKey | None]:
        """Whose sequences they are; a live view."""
        return self._num_of.keys()

    def add(self, sequence: Sequence) -> None:
        """One got its blocks."""
        self._sequences.append(sequence)
        self._num_of[sequence.adapter] += 1

    def remove(self, sequence: Sequence) -> None:
        """One lost its blocks."""
        self._sequences.remove(sequence)
        self._num_of[sequence.adapter] -= 1
        if not self._num_of[sequence.adapter]:
            del self._num_of[sequence.adapter]

    def place(self, sequence: Sequence) -> Place:
        """Return the order of a sequence, running or not."""
        adapter = sequence.adapter
        return self._counters.of(adapter), adapter in self._num_of, sequence.order

    def decoding(self) -> list[Sequence]:
        """Return those of which one token is left to compute: the oldest first, then in their order."""
        counters = {adapter: self._counters.of(adapter) for adapter in self._num_of}
        some = [one for one in self._sequences if len(one.token_ids) + one.num_ahead - one.num_computed == 1]
        some.sort(key=lambda one: (counters[one.adapter], one.order))
        oldest = self._oldest()
        if oldest is not None and oldest.num_pending == 1 and some[0] is not oldest:
            some.remove(oldest)
            some.insert(0, oldest)
        return some

    @property
    def num_decoding(self) -> int:
        """How many those are."""
        return sum(len(one.token_ids) + one.num_ahead - one.num_computed == 1 for one in self._sequences)

    def victim(self, asking: Sequence, planned: Collection[str]) -> Sequence:
        """Return who gives its blocks to the asking one: the latest of the most served adapter, never the oldest.

        Sequences that have a place in the step keep theirs; if there is nobody else, the asking one gives way itself.
        """
        oldest = self._oldest()
        others = [one for one in self._sequences if one not in (asking, oldest) and one.request_id not in planned]
        return max(others, key=self.place, default=asking)

    def making_way(self) -> list[Sequence]:
        """Return those that give way to an adapter that has nothing running, the first one first.

        One sequence of each adapter stays, and the oldest of all.
        """
        oldest = self._oldest()
        left = self._num_of.copy()
        leaving = []
        for one in sorted(self._sequences, key=self.place, reverse=True):
            if one is not oldest and left[one.adapter] > 1:
                left[one.adapter] -= 1
                leaving.append(one)
        return leaving

    def _oldest(self) -> Sequence | None:
        return min(self._sequences, key=lambda one: one.arrival, default=None)
