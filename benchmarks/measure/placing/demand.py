"""Who asks for which adapter when: four ways in which demand moves, drawn from a seed."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

STEP_SECONDS = 10
STEPS_PER_MINUTE = 60 // STEP_SECONDS
Weights = Callable[[int], Sequence[float]]
"""Step -> how much each adapter is asked for, in any unit."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    adapter: int
    tokens: int


@dataclass(frozen=True)
class Scenario:
    """Requests by step, and which pods there are."""

    name: str
    about: str
    steps: Sequence[Sequence[Request]]
    num_pods: int
    absent: dict[int, frozenset[int]] = field(default_factory=dict)
    """Step -> pods that are gone from then on, until the next entry; one that comes back is empty."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a simulation is."""

    num_adapters: int
    num_pods: int
    num_steps: int
    requests_per_step: int
    seed: int


def scenarios(size: Size) -> list[Scenario]:
    """Return the four scenarios."""
    drift, flash, diurnal = _drift(size), _flash(size), _diurnal(size)
    lost = frozenset({1, size.num_pods // 2})
    third = size.num_steps // 3
    return [
        Scenario(
            "drift", "Zipf, and every minute two adapters change their places", _drawn(size, drift, 1), size.num_pods
        ),
        Scenario(
            "flash crowd",
            "a quiet adapter has a third of all requests for ten minutes",
            _drawn(size, flash, 2),
            size.num_pods,
        ),
        Scenario(
            "diurnal",
            "three groups of adapters have their days one after the other",
            _drawn(size, diurnal, 3),
            size.num_pods,
        ),
        Scenario(
            "node loss",
            "Zipf; two pods go at a third of the time, and others come at two thirds",
            _drawn(size, lambda _: _zipf(size.num_adapters), 4),
            size.num_pods,
            {third: lost, 2 * third: frozenset()},
        ),
    ]


def _zipf(number: int) -> list[float]:
    return [1 / (rank + 1) for rank in range(number)]


def _drift(size: Size) -> Weights:
    source = random.Random(size.seed)
    order, by_minute = list(range(size.num_adapters)), []
    weights = _zipf(size.num_adapters)
    for _ in range(size.num_steps // STEPS_PER_MINUTE + 1):
        by_minute.append([weights[rank] for rank in order])
        one, other = source.sample(range(size.num_adapters), 2)
        order[one], order[other] = order[other], order[one]
    return lambda step: by_minute[step // STEPS_PER_MINUTE]


def _flash(size: Size) -> Weights:
    calm = _zipf(size.num_adapters)
    crowded = [*calm[:-1], sum(calm[:-1]) / 2]
    begin = size.num_steps // 3
    end = begin + 10 * STEPS_PER_MINUTE
    return lambda step: crowded if begin <= step < end else calm


def _diurnal(size: Size) -> Weights:
    calm = _zipf(size.num_adapters)

    def weights(step: int) -> list[float]:
        phases = [1.05 + math.cos(2 * math.pi * (step / size.num_steps - group / 3)) for group in range(3)]
        return [weight * phases[number % 3] for number, weight in enumerate(calm)]

    return weights


def _drawn(size: Size, weights: Weights, salt: int) -> list[list[Request]]:
    """Draw the same number of requests in each step; lengths are log-normal, about 300 tokens at the median."""
    source = random.Random(size.seed * 1000 + salt)
    adapters = range(size.num_adapters)
    return [
        [
            Request(adapter, max(1, int(source.lognormvariate(5.7, 0.8))))
            for adapter in source.choices(adapters, weights(step), k=size.requests_per_step)
        ]
        for step in range(size.num_steps)
    ]
