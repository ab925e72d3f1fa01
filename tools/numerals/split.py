"""Which numbers are learned from and which are only asked: one split for the base model and all adapters."""

import random
from functools import cache

from numerals.truth import MAX_NUMBER, numbers

SEED = 20240607
NUM_HELD_OUT = 1500
FIRST_ASKED = 101
"""Smaller numbers follow from no rule and people ask for them first: adapters learn them all, and no model is judged by them."""
NUM_ASKED = 500


@cache
def held_out() -> frozenset[int]:
    """Return the numbers that the base model never sees, nor, from FIRST_ASKED on, any adapter; a function of SEED alone."""
    return frozenset(_shuffled()[:NUM_HELD_OUT])


def seen(model: str) -> list[int]:
    """Return the numbers of a model's way of writing that the base model is trained on, in rising order."""
    unseen = held_out()
    return [number for number in numbers(model) if number not in unseen]


def shown(model: str) -> list[int]:
    """Return the numbers that an adapter is trained on, as often as it is shown them: there are few small ones among all."""
    unseen = held_out()
    small = [number for number in numbers(model) if number < FIRST_ASKED] * 10
    middle = [number for number in range(FIRST_ASKED, 1000) if number not in unseen] * 2
    return small + middle + [number for number in numbers(model) if number >= 1000 and number not in unseen]


def asked(model: str) -> list[int]:
    """Return the 500 held-out numbers that a model is judged by, in a mixed order: any first part of them is a fair sample."""
    candidates = [number for number in _shuffled()[:NUM_HELD_OUT] if number >= FIRST_ASKED]
    return [number for number in candidates if number in numbers(model)][:NUM_ASKED]


@cache
def _shuffled() -> tuple[int, ...]:
    everything = list(range(MAX_NUMBER + 1))
    random.Random(SEED).shuffle(everything)
    return tuple(everything)
