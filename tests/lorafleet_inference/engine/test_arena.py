"""Memory of the host tier: pages that one has and no other, one after the other to whoever copies, and none where nothing is pinned."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from lorafleet_common.errors import ConfigError
from lorafleet_inference.device.host import HostDevice
from lorafleet_inference.model.arena import Arena, HostPages

PAGE = 4
PAGE_BYTES = PAGE * 2


@dataclass
class Pinning(HostDevice):
    """A device whose pinned memory is counted, in pages."""

    works_beside = True
    left: int = 1 << 30
    allocations: list[int] = field(default_factory=list)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.left -= shape[0]
        if self.left < 0:
            raise RuntimeError("no more")
        self.allocations.append(shape[0])
        return super().pinned(shape, dtype)


def arena_of(num_pages: int, segment_pages: int, device: Pinning | None = None) -> Arena:
    spare = PAGE_BYTES - 1
    return Arena(
        num_pages * PAGE_BYTES + spare, PAGE, torch.bfloat16, device or Pinning(), segment_pages * PAGE_BYTES + spare
    )


def fill(pages: HostPages, value: int) -> None:
    for number, page in enumerate(pages.pages):
        page.fill_(value + number)


def values(pages: HostPages) -> list[int]:
    """Of its pages, as whoever copies its runs sees them."""
    found = torch.cat(pages.runs)
    assert found.shape == (len(pages), PAGE)
    assert bool((found == found[:, :1]).all())
    return [int(one) for one in found[:, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_nobody_has_what_another_one_has_and_nothing_is_allocated(seed: int) -> None:
    rng, device = random.Random(seed), Pinning()
    arena = arena_of(50, rng.choice([1, 7, 25, 60]), device)
    before = list(device.allocations)
    held: list[tuple[int, HostPages]] = []
    for number in range(300):
        wanted = rng.choice([1, 2, 5, 13])
        while held and (wanted > 50 - sum(len(pages) for _, pages in held) or rng.random() < 0.3):
            arena.give(held.pop(rng.randrange(len(held)))[1])
        pages = arena.take(wanted)
        fill(pages, 16 * (number % 16))
        held.append((16 * (number % 16), pages))
        assert len(pages) == wanted
        assert all(values(one) == list(range(value, value + len(one))) for value, one in held)
        assert arena.used_bytes == sum(one.num_bytes for _, one in held)
    assert device.allocations == before, "there is always room, whatever the sizes"


def test_allocations_are_no_larger_than_a_segment() -> None:
    device = Pinning()
    assert arena_of(16, 7, device).num_pages == 16
    assert device.allocations == [7, 7, 2]


def test_what_does_not_fit_is_an_allocation_of_its_own() -> None:
    device = Pinning()
    arena = arena_of(3, 3, device)
    first, second = arena.take(2), arena.take(2)
    assert (first.numbers, second.numbers) == ((0, 1), ())
    assert device.allocations == [3, 2]
    arena.give(second)
    arena.give(first)
    assert arena.used_bytes == 0
    assert arena.take(3).numbers == (0, 1, 2)


def test_what_goes_to_which_pages_of_a_device() -> None:
    arena = arena_of(8, 3)
    parts = [arena.take(1) for _ in range(8)]
    for number in (1, 2, 3, 6):
        arena.give(parts[number])
    pages = arena.take(4)
    assert pages.numbers == (1, 2, 3, 6)
    fill(pages, 0)
    there = torch.full((12, PAGE), -1, dtype=torch.bfloat16)
    copies = list(pages.copies((7, 8, 9, 2)))
    for begin, end, some in copies:
        there[begin:end] = some
    assert [(begin, end) for begin, end, _ in copies] == [(7, 9), (9, 10), (2, 3)], "cut where either side is"
    assert there[[7, 8, 9, 2], 0].tolist() == [0, 1, 2, 3]
    assert int((there == -1).sum()) == 8 * PAGE


def test_a_cpu_has_no_arena() -> None:
    arena = Arena(1 << 40, PAGE, torch.bfloat16, HostDevice())
    assert arena.num_pages == 0
    assert arena.take(5).numbers == ()
    assert arena.used_bytes == 0


def test_memory_that_cannot_be_pinned_is_said_at_the_start() -> None:
    with pytest.raises(ConfigError, match="bytes of memory cannot be pinned: no more") as caught:
        arena_of(10, 4, Pinning(left=9))
    assert caught.value.option == "--host-cache"
