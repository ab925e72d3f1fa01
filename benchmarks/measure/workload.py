"""What is asked: requests of random tokens, spread over adapters."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

FIRST_WORD_ID = 3 + 256
"""Ids below are special tokens and single bytes."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `adapter` is an index; None asks the base."""

    adapter: int | None
    prompt: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens in and out, and ids below which prompts are drawn."""

    prompt: int
    answer: int
    vocabulary: int


def even(number: int, num_adapters: int, lengths: Lengths, *, seed: int) -> list[Ask]:
    """Requests that go round the adapters in turn; the base alone where there are none."""
    return _asks([index % num_adapters if num_adapters else None for index in range(number)], lengths, seed)


def zipf(number: int, num_adapters: int, lengths: Lengths, *, seed: int) -> list[Ask]:
    """Requests whose adapters are drawn by Zipf's law: the one of rank i with a weight of 1 / i."""
    rng = random.Random(seed)
    weights = list(accumulate(1 / rank for rank in range(1, num_adapters + 1)))
    return _asks(rng.choices(range(num_adapters), cum_weights=weights, k=number), lengths, seed)


def _asks(adapters: Sequence[int | None], lengths: Lengths, seed: int) -> list[Ask]:
    rng = random.Random(f"{seed} prompts")  # no two runs share a prefix
    ids = range(FIRST_WORD_ID, lengths.vocabulary)
    return [Ask(adapter, tuple(rng.choices(ids, k=lengths.prompt)), lengths.answer) for adapter in adapters]
