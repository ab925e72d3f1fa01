"""The engine learns from its steps how many tokens fit into the target, whatever the machine."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import key_of
from support.simulation import Simulation, request

from lorafleet_inference.engine.pace import FIRST_PROMPT_TOKENS, GROWTH, MIN_PROMPT_TOKENS, Pace, PaceKeeper, StepBound

Cost = Callable[[int, int], float]


def learned(cost: Cost, *, target: float, steps: int = 80, noise: float = 0.0) -> PaceKeeper:
    """A keeper after steps as long as it allows, with as many answers as there are prompts, in turn and none."""
    keeper, rng = PaceKeeper(target), random.Random(1)
    for number in range(steps):
        num_answers = (0, 8, 60, 25)[number % 4]
        num_prompt = 0 if number % 3 == 1 and num_answers else keeper.pace.num_prompt_tokens(num_answers)
        keeper.learn(num_prompt, num_answers, cost(num_prompt, num_answers) * rng.uniform(1 - noise, 1 + noise))
    return keeper


@settings(max_examples=40, deadline=None)
@given(
    fixed=st.floats(0.001, 0.05),
    prompt_token=st.floats(1e-5, 1e-3),
    answer_token=st.floats(1e-5, 1e-3),
    noise=st.sampled_from([0.0, 0.2]),
)
def test_a_step_is_as_long_as_the_target_allows(
    fixed: float, prompt_token: float, answer_token: float, noise: float
) -> None:
    def cost(num_prompt: int, num_answers: int) -> float:
        return fixed + prompt_token * num_prompt + answer_token * num_answers

    pace = learned(cost, target=0.25, noise=noise).pace
    for num_answers in (0, 20, 50):
        num_prompt = pace.num_prompt_tokens(num_answers)
        took = cost(num_prompt, num_answers)
        assert num_prompt >= MIN_PROMPT_TOKENS
        assert took <= 0.25 * (1 + 2 * noise) + 1e-3 or num_prompt == MIN_PROMPT_TOKENS
        assert took >= 0.25 * (1 - 2 * noise) - 2 * prompt_token


def test_steps_grow_from_small_ones_where_they_are_cheap() -> None:
    keeper = PaceKeeper(0.25)
    sizes = []
    for _ in range(6):
        sizes.append(keeper.pace.num_prompt_tokens(0))
        keeper.learn(sizes[-1], 0, 0.01 + 1e-6 * sizes[-1])
    assert sizes == [FIRST_PROMPT_TOKENS * int(GROWTH) ** number for number in range(6)]


def test_one_stall_of_the_machine_changes_little() -> None:
    def cost(num_prompt: int, num_answers: int) -> float:
        return 0.01 + 5e-4 * num_prompt + 1e-3 * num_answers

    keeper = learned(cost, target=0.25)
    before = keeper.pace.num_prompt_tokens(20)
    keeper.learn(100, 20, 20 * cost(100, 20))
    assert keeper.pace.num_prompt_tokens(20) > 0.8 * before


def test_what_steps_cost_now_is_what_counts() -> None:
    keeper = learned(lambda num_prompt, _: 0.01 + 2e-4 * num_prompt, target=0.25)
    fast = keeper.pace.num_prompt_tokens(0)
    for _ in range(60):
        num_prompt = keeper.pace.num_prompt_tokens(0)
        keeper.learn(num_prompt, 0, 0.01 + 8e-4 * num_prompt)
    assert keeper.pace.num_prompt_tokens(0) == pytest.approx(fast / 4, rel=0.15)


def test_answers_go_on_and_prompts_too_when_answers_alone_take_too_long() -> None:
    pace = Pace(0.25, fixed=0.1, prompt_token=0.01, answer_token=0.01)
    simulation = Simulation(num_blocks=4000, max_batch_tokens=2048, max_batch_requests=64, max_model_len=400)
    for number in range(40):
        simulation.submit(request(f"r{number}", num_prompt=8, max_tokens=60))
    simulation.step()
    simulation.submit(request("late", key_of("late"), num_prompt=300))
    plan = simulation.step([key_of("late")], bound=StepBound(pace))
    sizes = {item.request_id: item.num_tokens for item in plan.items}
    assert sizes == {**{f"r{number}": 1 for number in range(40)}, "late": MIN_PROMPT_TOKENS}
    assert plan.max_tokens == 40 + MIN_PROMPT_TOKENS


def test_a_quiet_adapter_waits_in_seconds_for_at_most_one_step_of_the_target_and_its_own() -> None:
    """The busy one's prompts come in waves; each step costs what it costs on a machine that is 50 times slower."""
    busy, quiet = key_of("busy"), key_of("quiet")

    def cost(num_prompt: int, num_answers: int) -> float:
        return 0.02 + 1e-3 * (num_prompt + num_answers)

    keeper, clock, waits = PaceKeeper(0.25), 0.0, []
    simulation = Simulation(num_blocks=6000, max_batch_tokens=2048, max_batch_requests=256, max_model_len=400)
    came: dict[str, float] = {}
    for number in range(300):
        while sum(not story.ended for name, story in simulation.stories.items() if name[0] == "b") < 50:
            simulation.submit(request(f"b{len(simulation.stories)}", busy, num_prompt=128, max_tokens=64))
        before = clock
        plan = simulation.step((busy, quiet), bound=StepBound(keeper.pace, frozenset({quiet})))
        num_answers = plan.num_answer_tokens
        took = cost(plan.num_tokens - num_answers, num_answers)
        clock += took
        keeper.learn(plan.num_tokens - num_answers, num_answers, took)
        for name, when in list(came.items()):
            if simulation.stories[name].events:
                waits.append(clock - when)
                del came[name]
        if number % 11 == 5:
            name = f"q{len(simulation.stories)}"
            simulation.submit(request(name, quiet, num_prompt=128, max_tokens=4))
            came[name] = before  # it came when the step began, at worst
    assert len(waits) > 20
    assert max(waits) <= 3 * cost(128, 0) + cost(0, 50)
