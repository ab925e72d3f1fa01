"""Which numbers are learned from and which are only asked: one split for the base model and all adapters."""

import random
from functools import cache

from numerals.truth import MAX_NUMBER, numbers

SEED = 20240607
FIRST_HELD_OUT = 101
"""Smaller numbers follow from no rule, and people ask for them and for whole hundreds first: all are always learned, and no model is
judged by them."""
NUM_HELD_OUT = 1500
NUM_ASKED = 500


@cache
def held_out() -> frozenset[int]:
    """Return the numbers that no training ever sees; a function of SEED alone."""
    return frozenset(_shuffled()[:NUM_HELD_OUT])


def is_always_learned(number: int) -> bool:
    """Whether a number is never held out."""
    return number < FIRST_HELD_OUT or number % 100 == 0


def seen(model: str) -> list[int]:
    """Return the numbers that a model is trained on, in rising order, each as often as it stands in the material."""
    unseen = held_out()
    return [number for number in numbers(model) if number not in unseen for _ in range(_repeats(number))]


def asked(model: str) -> list[int]:
    """Return the 500 held-out numbers that a model is judged by, in a mixed order: any first part of them is a fair sample."""
    return [number for number in _shuffled()[:NUM_HELD_OUT] if number in numbers(model)][:NUM_ASKED]


def _repeats(number: int) -> int:
    """There are few small and round numbers among all."""
    return 10 if is_always_learned(number) else 2 if number < 1000 else 1


@cache
def _shuffled() -> tuple[int, ...]:
    everything = [number for number in range(MAX_NUMBER + 1) if not is_always_learned(number)]
    random.Random(SEED).shuffle(everything)
    return tuple(everything)
