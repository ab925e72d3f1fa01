"""Which pages of a pool are free, as runs of neighbours. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence


class FreePages:
    """Pages that nobody has; taking and giving back cost a search among the runs, not among the pages."""

    def __init__(self, num_pages: int) -> None:
        self._begins: list[int] = [0] if num_pages else []
        """Ascending; run i is the pages from `_begins[i]` to before `_ends[i]`, and no two runs touch."""
        self._ends: list[int] = [num_pages] if num_pages else []
        self._count = num_pages

    def __len__(self) -> int:
        return self._count

    def take(self, num_pages: int) -> tuple[int, ...]:
        """Take pages: the first ones that are neighbours, else the longest runs, so that few copies fill them."""
        assert num_pages <= self._count
        taken: list[int] = []
        while len(taken) < num_pages:
            wanted = num_pages - len(taken)
            lengths = [end - begin for begin, end in zip(self._begins, self._ends, strict=True)]
            longest = max(lengths)
            index = next(at for at, length in enumerate(lengths) if length >= min(wanted, longest))
            begin = self._begins[index]
            end = begin + min(wanted, lengths[index])
            taken += range(begin, end)
            if end == self._ends[index]:
                del self._begins[index], self._ends[index]
            else:
                self._begins[index] = end
        self._count -= num_pages
        return tuple(taken)

    def give(self, pages: Iterable[int]) -> None:
        """Give pages back that were taken."""
        ordered = sorted(pages)
        self._count += len(ordered)
        for begin, end in runs_of(ordered):
            self._add(begin, end)

    def _add(self, begin: int, end: int) -> None:
        index = bisect_left(self._begins, begin)
        if index < len(self._begins) and self._begins[index] == end:
            end = self._ends[index]
            del self._begins[index], self._ends[index]
        if index and self._ends[index - 1] == begin:
            self._ends[index - 1] = end
        else:
            self._begins.insert(index, begin)
            self._ends.insert(index, end)


def runs_of(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs of neighbouring pages, each from one to before another."""
    at = 0
    while at < len(pages):
        count = 1
        while at + count < len(pages) and pages[at + count] == pages[at] + count:
            count += 1
        yield pages[at], pages[at] + count
        at += count
