"""Who starts together shares what it has in common in the same step, and nothing that the step fails to compute."""

from typing import Any

import pytest
from support.engines import key_of
from support.simulation import BLOCK_TOKENS, Simulation, compute, request

from lorafleet_inference.engine.plan import Sampled, StepResult
from lorafleet_inference.engine.token_events import FinishReason

A, B = key_of("a"), key_of("b")
NUM_CHOICES = 8
NUM_PROMPT = 8 * BLOCK_TOKENS + 1


def simulation_of(max_batch_tokens: int = 512) -> Simulation:
    return Simulation(num_blocks=200, max_batch_tokens=max_batch_tokens, max_batch_requests=16)


def test_choices_of_one_prompt_compute_it_once() -> None:
    simulation = simulation_of()
    for number in range(NUM_CHOICES):
        simulation.submit(request(f"choice{number}", num_prompt=NUM_PROMPT, seed=1))
    plan = simulation.step()
    assert [item.num_tokens for item in plan.items] == [NUM_PROMPT] + [1] * (NUM_CHOICES - 1)
    assert simulation.blocks.num_used == 8 + NUM_CHOICES, "the prompt's full blocks, and one of each choice's own"
    assert [story.events[0].num_cached_tokens for story in simulation.stories.values()] == [0] + [NUM_PROMPT - 1] * 7
    assert (plan.num_queried_tokens, plan.num_hit_tokens) == (NUM_CHOICES * NUM_PROMPT, 7 * (NUM_PROMPT - 1))


def test_a_prompt_that_is_cut_into_steps_is_shared_as_far_as_it_is_planned() -> None:
    simulation = simulation_of(max_batch_tokens=20)
    for number in range(2):
        simulation.submit(request(f"r{number}", num_prompt=NUM_PROMPT, seed=1))
    num_tokens = 0
    while not all(story.events for story in simulation.stories.values()):
        num_tokens += sum(item.num_tokens for item in simulation.step().items if not item.decode)
    assert num_tokens == NUM_PROMPT + 1


def test_other_adapters_and_other_salts_share_nothing_in_a_step() -> None:
    simulation = simulation_of()
    for name, adapter in (("base", None), ("a", A), ("b", B)):
        simulation.submit(request(name, adapter, num_prompt=NUM_PROMPT, seed=1))
    assert [item.start for item in simulation.step({A, B}).items] == [0, 0, 0]


@pytest.mark.parametrize("way", ["failed", "not_finite"])
def test_who_shares_with_one_that_fails_starts_over_and_ends_as_alone(way: str) -> None:
    """`last` shares with `middle`, which shares with `first`: it has nothing of the first one, and still no ground."""
    simulation = simulation_of()
    names = ["first", "middle", "last", "other"]
    for name, num_prompt in zip(names, (9, 13, 17, 9), strict=True):
        simulation.submit(request(name, num_prompt=num_prompt, seed=2 if name == "other" else 1))
    scheduler = simulation.scheduler
    plan = scheduler.plan(())
    assert {item.request_id: item.start for item in plan.items} == {"first": 0, "middle": 8, "last": 12, "other": 0}
    bad: Any = {"failed": {"first": "no"}} if way == "failed" else {"not_finite": frozenset({"first", "middle"})}
    sampled = {name: Sampled(2) for name in names if name not in ("first", *bad.get("not_finite", ()))}
    events = compute(scheduler, plan, StepResult(sampled, **bad))
    assert {event.request_id: event.finish for event in events} == {"first": FinishReason.ERROR, "other": None}
    simulation.blocks.check()
    again = scheduler.plan(())
    assert {item.request_id: item.start for item in again.items} == {"middle": 0, "last": 12, "other": 9}
    assert set(again.preempted) == {"middle", "last"}
    assert {"middle", "last"} <= set(again.gone)
    events = compute(scheduler, again, StepResult({item.request_id: Sampled(2) for item in again.items}))
    assert {event.request_id for event in events} == {"middle", "last", "other"}


def test_one_that_is_well_before_one_that_fails_goes_on_and_hides_nothing() -> None:
    simulation = simulation_of()
    for name, num_prompt, seed in (("well", 9, 2), ("first", 9, 1), ("shares", 13, 1)):
        simulation.submit(request(name, num_prompt=num_prompt, seed=seed))
    scheduler = simulation.scheduler
    plan = scheduler.plan(())
    assert [(item.request_id, item.start) for item in plan.items] == [("well", 0), ("first", 0), ("shares", 8)]
    events = compute(scheduler, plan, StepResult({"well": Sampled(2), "shares": Sampled(2)}, failed={"first": "no"}))
    assert {event.request_id: event.finish for event in events} == {"well": None, "first": FinishReason.ERROR}
    simulation.submit(request("finds", num_prompt=9, seed=2))
    starts = {item.request_id: item.start for item in scheduler.plan(()).items}
    assert starts == {"well": 9, "shares": 0, "finds": 8}, "what the well one has computed is found"
