"""A busy adapter cannot starve a quiet one."""

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import key_of
from support.simulation import Simulation, request

from lorafleet_inference.engine.fairness import ServiceCounters

BUSY, QUIET = key_of("busy"), key_of("quiet")


def p95_of_quiet(*, load: int, seed: int, num_blocks: int, max_batch_requests: int, budget: int) -> float:
    """The 95th percentile of the quiet adapter's time to first token, in steps; it sends a request every 20 steps."""
    rng = random.Random(seed)
    simulation = Simulation(
        num_blocks=num_blocks, max_batch_tokens=budget, max_batch_requests=max_batch_requests, max_model_len=200
    )
    due = 0.0
    for number in range(800):
        due += load / 20
        while due >= 1:
            due -= 1
            name = f"busy{len(simulation.stories)}"
            simulation.submit(request(name, BUSY, num_prompt=rng.randrange(1, 60), max_tokens=rng.randrange(1, 60)))
        if number % 20 == 10:
            # a request comes while a step runs, which it has to wait for
            name = f"quiet{len(simulation.stories)}"
            simulation.submit(request(name, QUIET, num_prompt=rng.randrange(1, 60), max_tokens=rng.randrange(1, 10)))
        simulation.step({BUSY, QUIET})
    times = [one.steps_to_first_token for name, one in simulation.stories.items() if name.startswith("quiet")]
    return statistics.quantiles(times, n=20)[-1]


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    num_blocks=st.integers(60, 400),
    max_batch_requests=st.integers(2, 40),
    budget=st.sampled_from([32, 64, 128]),
)
def test_fifty_times_the_load_at_most_doubles_the_time_to_first_token(
    seed: int, num_blocks: int, max_batch_requests: int, budget: int
) -> None:
    sizes = {"seed": seed, "num_blocks": num_blocks, "max_batch_requests": max_batch_requests, "budget": budget}
    assert p95_of_quiet(load=50, **sizes) <= 2 * p95_of_quiet(load=0, **sizes)


def test_a_newcomer_takes_the_latest_place_of_the_adapter_that_has_most() -> None:
    simulation = Simulation(num_blocks=40, max_batch_tokens=64, max_batch_requests=3)
    for number in range(3):
        simulation.submit(request(f"busy{number}", BUSY, max_tokens=30))
    simulation.step({BUSY})
    simulation.submit(request("quiet", QUIET))
    plan = simulation.step({BUSY, QUIET})
    assert plan.preempted == ("busy2",)
    assert {item.request_id for item in plan.items} == {"busy0", "busy1", "quiet"}


def test_one_sequence_of_each_adapter_keeps_its_place() -> None:
    simulation = Simulation(num_blocks=40, max_batch_tokens=64, max_batch_requests=2)
    for name in ("one", "two"):
        simulation.submit(request(name, key_of(name), max_tokens=30))
    keys = {key_of(name) for name in ("one", "two", "three")}
    simulation.step(keys)
    simulation.submit(request("three", key_of("three")))
    for _ in range(5):
        plan = simulation.step(keys)
        assert not plan.preempted
        assert {item.request_id for item in plan.items} == {"one", "two"}


@pytest.mark.parametrize("num_adapters", [2, 5])
def test_adapters_that_always_have_work_get_equal_service(num_adapters: int) -> None:
    keys = [key_of(str(number)) for number in range(num_adapters)]
    simulation = Simulation(num_blocks=200, max_batch_tokens=16, max_batch_requests=8)
    for number in range(300 * num_adapters):
        # all but the first send ten times as long answers
        key = keys[number % num_adapters]
        simulation.submit(request(f"r{number}", key, num_prompt=9, max_tokens=3 if key == keys[0] else 30))
    for _ in range(200):
        simulation.step(keys)
    served = [simulation.scheduler.service(key) for key in keys]
    assert max(served) - min(served) <= 0.15 * max(served)


def test_idleness_saves_nothing_up() -> None:
    counters = ServiceCounters()
    counters.activate(BUSY, [])
    counters.charge(BUSY, 100, 1.0)
    counters.activate(QUIET, [BUSY])
    assert counters.of(QUIET) == 100
    counters.forget(QUIET)
    assert counters.of(QUIET) == 0
