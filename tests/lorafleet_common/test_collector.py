"""The garbage collector of a process that serves looks at what came after its start."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from lorafleet_common.collector import pass_over_what_is_there


class Node:
    """May stand in a cycle."""

    def __init__(self) -> None:
        self.other = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_passed_over_and_what_comes_is_collected() -> None:
    there = [Node() for _ in range(1000)]
    pass_over_what_is_there()
    looked_at = set(map(id, gc.get_objects()))
    assert not looked_at.intersection(map(id, there))
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None
