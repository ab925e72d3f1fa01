"""A busy adapter cannot starve a quiet one."""

import random
import statistics

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from support.engines import key_of
from support.simulation import Simulation, request

from lorafleet_inference.engine.fairness import ServiceCounters
from lorafleet_inference.engine.messages import AdapterKey

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


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@example(seed=7, num_blocks=149, max_batch_requests=12, budget=64)
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
    idle = p95_of_quiet(load=0, **sizes)
    assert p95_of_quiet(load=50, **sizes) <= max(2 * idle, idle + 2)  # making room costs up to two steps


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
    counters.charge(BUSY, 100, 1.0)
    counters.advance([BUSY])
    assert counters.of(QUIET) == 100
    counters.charge(QUIET, 1, 1.0)
    assert counters.of(QUIET) == 101
    counters.advance([])
    counters.forget(QUIET)
    assert counters.of(QUIET) == 100


def test_counters_begin_at_nothing_and_virtual_time_never_goes_back() -> None:
    counters = ServiceCounters()
    counters.advance([])
    counters.forget(QUIET)
    assert [counters.of(adapter) for adapter in (None, BUSY, QUIET)] == [0, 0, 0]
    counters.charge(BUSY, 3, 2.0)
    counters.charge(None, 2, 0.5)
    assert [counters.of(adapter) for adapter in (None, BUSY, QUIET)] == [1, 6, 0]
    counters.advance([BUSY, None])
    assert counters.virtual_time == 1
    counters.advance([BUSY])
    assert counters.virtual_time == 6
    counters.advance([])
    assert counters.of(None) == 6


def run_until_ended(simulation: Simulation, prefix: str, keys: set[AdapterKey], most: int) -> int:
    """Step until all requests of this prefix have ended; return how many steps that took."""
    for number in range(most):
        if all(story.ended for name, story in simulation.stories.items() if name.startswith(prefix)):
            return number
        simulation.step(keys)
    raise AssertionError(f"{prefix} requests run after {most} steps")


def test_service_of_the_past_is_no_handicap_beside_a_new_adapter() -> None:
    simulation = Simulation(num_blocks=200, max_batch_tokens=64, max_batch_requests=16)
    popular, new = key_of("popular"), key_of("new")
    for number in range(200):
        simulation.submit(request(f"before{number}", popular, num_prompt=9, max_tokens=9))
    run_until_ended(simulation, "before", {popular}, 1000)
    for number in range(100):
        simulation.submit(request(f"new{number}", new, num_prompt=9, max_tokens=9))
    simulation.step({popular, new})
    for number in range(20):
        simulation.submit(request(f"back{number}", popular, num_prompt=9, max_tokens=9))
    steps = run_until_ended(simulation, "back", {popular, new}, 1000)
    assert steps <= 2.5 * 20 * 27 / (2 * 16 + 9), "twice its share of the work at most, and the ends of both"


def test_an_adapter_that_was_loaded_for_long_has_saved_nothing_up() -> None:
    simulation = Simulation(num_blocks=100, max_batch_tokens=16, max_batch_requests=4)
    busy, cold = key_of("busy"), key_of("cold")
    for number in range(60):
        simulation.submit(request(f"busy{number}", busy, num_prompt=9, max_tokens=9))
    for number in range(60):
        simulation.submit(request(f"cold{number}", cold, num_prompt=9, max_tokens=9))
    for _ in range(100):
        simulation.step({busy})
    before = {key: simulation.scheduler.service(key) for key in (busy, cold)}
    for _ in range(50):
        simulation.step({busy, cold})
    gained = [simulation.scheduler.service(key) - before[key] for key in (busy, cold)]
    assert abs(gained[0] - gained[1]) <= 3 * 2 * 16, "both are served alike from the moment that both can be"


def test_what_is_computed_again_is_not_charged_again() -> None:
    simulation = Simulation(num_blocks=6, max_batch_tokens=32, max_batch_requests=8, prefix_caching=False)
    for number in range(3):
        simulation.submit(request(f"r{number}", BUSY, num_prompt=7, max_tokens=12))
    run_until_ended(simulation, "r", {BUSY}, 200)
    assert simulation.num_preempted > 0
    assert simulation.scheduler.service(BUSY) == 3 * (7 + 2 * 11)


def test_a_newcomer_is_planned_once_in_a_step() -> None:
    simulation = Simulation(num_blocks=40, max_batch_tokens=64, max_batch_requests=3)
    for number in range(3):
        simulation.submit(request(f"busy{number}", BUSY, max_tokens=30))
    simulation.step({BUSY})
    simulation.submit(request("quiet", QUIET, num_prompt=1))
    level = simulation.scheduler.service(QUIET)
    plan = simulation.step({BUSY, QUIET})
    assert "quiet" in {item.request_id for item in plan.items}
    assert simulation.scheduler.service(QUIET) == level + 1


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whoever_has_work_is_served_alike_after_any_past(data: st.DataObject) -> None:
    """Idle, burst and return in any order: from when both always have work, neither gets ahead of the other."""
    budget = data.draw(st.sampled_from([8, 16, 32]), "budget")
    simulation = Simulation(num_blocks=300, max_batch_tokens=budget, max_batch_requests=8)
    keys = [key_of(str(number)) for number in range(3)]

    def send(key: AdapterKey, number: int, max_tokens: int) -> None:
        for _ in range(number):
            name = f"r{len(simulation.stories)}"
            simulation.submit(request(name, key, num_prompt=5, max_tokens=max_tokens))

    for _ in range(data.draw(st.integers(1, 6), "phases")):
        for key in keys:
            send(key, data.draw(st.sampled_from([0, 0, 1, 30]), "burst"), data.draw(st.integers(1, 12), "length"))
        there = {key for key in keys if data.draw(st.booleans(), "there")} | simulation.scheduler.running_adapters()
        for _ in range(data.draw(st.sampled_from([0, 3, 60, 400]), "steps")):
            simulation.step(there)
    for key in keys[:2]:
        send(key, 200, 6)
    simulation.step(keys)
    before = [simulation.scheduler.service(key) for key in keys]
    seen = []
    for _ in range(80):
        simulation.step(keys)
        gained = [simulation.scheduler.service(key) - level for key, level in zip(keys, before, strict=True)]
        seen.append(abs(gained[0] - gained[1]))
    assert max(seen) <= 4 * 2 * budget, "what the past left is made up for within the bound of the method"


@settings(max_examples=100, deadline=None)
@given(
    charges=st.lists(
        st.tuples(st.sets(st.integers(0, 4), min_size=1), st.lists(st.tuples(st.integers(0, 4), st.integers(1, 100)))),
        max_size=40,
    )
)
def test_virtual_time_only_grows_and_nobody_is_behind_it(
    charges: list[tuple[set[int], list[tuple[int, int]]]],
) -> None:
    counters, keys, time = ServiceCounters(), [key_of(str(number)) for number in range(5)], 0.0
    for active, served in charges:
        for at, num_tokens in served:
            if at in active:
                counters.charge(keys[at], num_tokens, 1.0)
        counters.advance(keys[at] for at in active)
        assert counters.virtual_time >= time
        time = counters.virtual_time
        assert all(counters.of(key) >= time for key in keys)
        assert min(counters.of(keys[at]) for at in active) == time
