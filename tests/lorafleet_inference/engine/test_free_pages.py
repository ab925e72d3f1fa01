"""Pages that are free: never two have one, and neighbours are given where there are any."""

import random

import pytest

from lorafleet_inference.engine.free_pages import FreePages


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_set(seed: int) -> None:
    rng = random.Random(seed)
    free, left, held = FreePages(60), set(range(60)), list[tuple[int, ...]]()
    for _ in range(400):
        if held and rng.random() < 0.5:
            given = held.pop(rng.randrange(len(held)))
            free.give(given)
            left |= set(given)
        else:
            pages = free.take(rng.randint(0, min(12, len(left))))
            assert set(pages) <= left
            assert len(set(pages)) == len(pages)
            if pages and any(set(range(at, at + len(pages))) <= left for at in range(60)):
                assert pages == tuple(range(pages[0], pages[0] + len(pages)))
            left -= set(pages)
            held.append(pages)
        assert len(free) == len(left)
    for one in held:
        free.give(one)
    assert free.take(60) == tuple(range(60)), "what touches is one run again"


def test_pages_apart_come_in_few_runs() -> None:
    free = FreePages(12)
    free.take(12)
    free.give([0, 1, 4, 8, 9, 10, 6])
    assert free.take(5) == (8, 9, 10, 0, 1)
    assert free.take(2) == (4, 6)
    assert len(free) == 0
