"""What the scheduler plans while the result of a step is still to come, and what it makes of results that nobody wants."""

from typing import Any

import msgspec
import pytest
from support.engines import key_of
from support.scenarios import play
from support.simulation import BLOCK_TOKENS, EOS, Simulation, request

from lorafleet_contract.openai import ErrorCode
from lorafleet_inference.engine.messages import LengthRope, RopeKind, Submit
from lorafleet_inference.engine.plan import Sampled, StepPlan, StepResult
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent

A, B = key_of("a"), key_of("b")


def scheduler_of(*requests: Submit, num_blocks: int = 40, **options: Any) -> Scheduler:
    options = {"max_batch_tokens": 64, "max_batch_requests": 8, "max_model_len": 24, **options}
    one = Simulation(num_blocks=num_blocks, **options).scheduler
    for asked in requests:
        assert one.submit(asked) is None
    return one


def planned(one: Scheduler, plan: StepPlan | None = None) -> dict[str, int]:
    """Submit a step; return where each of its items begins."""
    plan = plan or one.plan({A, B})
    if plan.items:
        one.advance(plan)
    return {item.request_id: item.start for item in plan.items}


def chosen(*names: str, token: int = 2) -> StepResult:
    return StepResult({name: Sampled(token) for name in names})


def finishes(events: list[TokenEvent]) -> dict[str, FinishReason | None]:
    return {event.request_id: event.finish for event in events}


def asked(name: str = "r", num_prompt: int = 5, max_tokens: int = 8, **sampling: Any) -> Submit:
    made = request(name, num_prompt=num_prompt, max_tokens=max_tokens)
    return msgspec.structs.replace(made, sampling=msgspec.structs.replace(made.sampling, **sampling))


@pytest.mark.parametrize(("num_prompt", "goes_on"), [(8, True), (9, True), (10, False), (11, True), (15, True)])
def test_only_the_step_that_crosses_the_limit_of_rotary_frequencies_is_waited_for(
    num_prompt: int, goes_on: bool
) -> None:
    """With the token after the limit all is computed again; a prompt beyond it has its frequencies already."""
    rope = LengthRope(RopeKind.LONGROPE, 10)
    one = scheduler_of(asked(num_prompt=num_prompt), length_rope=rope)
    assert planned(one) == {"r": 0}
    assert planned(one) == ({"r": num_prompt} if goes_on else {})


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"num_logprobs": 2},
        {"prompt_logprobs": 2},
        {"min_tokens": 4, "stop_token_ids": (2,)},
        {"bad_words": ((3,), (4, 5))},
        {"presence_penalty": 1.0},
        {"logit_bias": ((3, 1.0),), "temperature": 1.0, "top_p": 0.9, "seed": 1},
    ],
    ids=str,
)
def test_a_token_is_computed_before_it_is_known(sampling: dict[str, Any]) -> None:
    one = scheduler_of(asked(**sampling))
    assert planned(one) == {"r": 0}
    assert planned(one) == {"r": 5}
    assert planned(one) == {"r": 6}, "two of them as well"
    scored = "prompt_logprobs" in sampling
    for number in range(3):
        result = StepResult({"r": Sampled(3)}, {"r": ()} if scored and not number else {})
        assert [event.token_ids for event in one.resolve(result)] == [(3,)]


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        ({"max_tokens": 1}, {}),
        ({"max_tokens": 0}, {}),
        ({}, {"max_model_len": 6}),
        ({}, {"length_rope": LengthRope(RopeKind.LONGROPE, 5)}),
    ],
    ids=str,
)
def test_a_token_that_ends_the_answer_or_has_all_computed_again_is_waited_for(
    sampling: dict[str, Any], options: dict[str, Any]
) -> None:
    one = scheduler_of(asked(**sampling), **options)
    assert one.submit(asked("other")) is None
    assert set(planned(one)) == {"r", "other"}
    assert "r" not in planned(one)
    (event,) = [event for event in one.resolve(chosen("r", "other", token=3)) if event.request_id == "r"]
    ends = "max_tokens" in sampling or "max_model_len" in options
    assert event.finish == (FinishReason.LENGTH if ends else None)
    assert ("r" in planned(one)) == (not ends)


def test_an_answer_is_not_computed_beyond_its_last_token() -> None:
    one = scheduler_of(asked(max_tokens=3))
    assert [planned(one) for _ in range(4)] == [{"r": 0}, {"r": 5}, {"r": 6}, {}]
    assert [finishes(one.resolve(chosen("r"))) for _ in range(3)] == [
        {"r": None},
        {"r": None},
        {"r": FinishReason.LENGTH},
    ]
    assert one.num_running == one.num_waiting == 0


def test_what_is_computed_for_a_request_that_has_ended_is_nothing_to_anyone() -> None:
    """Also not to another request of its name."""
    one = scheduler_of(asked(), asked("stops"))
    planned(one)
    planned(one)
    both = StepResult({"r": Sampled(3), "stops": Sampled(EOS)})
    assert finishes(one.resolve(both)) == {"r": None, "stops": FinishReason.STOP}
    one.cancel("r")
    assert one.submit(asked()) is None
    assert planned(one) == {"r": 4}, "its first block is known"
    assert one.resolve(chosen("r", "stops")) == []
    (event,) = one.resolve(chosen("r", token=7))
    assert event.token_ids == (7,)
    assert event.num_cached_tokens == 4


def test_a_preempted_request_computes_again_what_was_on_its_way() -> None:
    one = scheduler_of(asked("old", 4), asked("new", 4), num_blocks=3)
    assert planned(one) == {"old": 0, "new": 0}
    plan = one.plan({A, B})
    assert plan.preempted == ("new",)
    assert planned(one, plan) == {"old": 4}
    assert finishes(one.resolve(chosen("old", "new", token=3))) == {"old": None}
    assert one.num_waiting == 1


@pytest.mark.parametrize("is_known", [False, True])
def test_a_block_is_found_from_when_all_its_tokens_are_known(*, is_known: bool) -> None:
    one = scheduler_of(first := asked(num_prompt=BLOCK_TOKENS - 1))
    assert [planned(one) for _ in range(2)] == [{"r": 0}, {"r": BLOCK_TOKENS - 1}]
    if is_known:
        one.resolve(chosen("r", token=3))
    prompt = (*first.prompt_token_ids, 3, 3)
    assert one.submit(msgspec.structs.replace(first, request_id="another", prompt_token_ids=prompt)) is None
    assert planned(one)["another"] == (BLOCK_TOKENS if is_known else 0)


def test_an_adapter_of_a_step_in_flight_is_in_use() -> None:
    one = scheduler_of(msgspec.structs.replace(asked("r", max_tokens=9), adapter=A))
    planned(one)
    planned(one)
    one.resolve(chosen("r", token=EOS))
    assert one.num_running == 0
    assert one.running_adapters() == {A}
    assert one.has_work(A)
    assert not one.has_work(B)
    assert one.resolve(chosen("r")) == []
    assert one.running_adapters() == set()
    assert not one.has_work(A)


@pytest.mark.parametrize("way", ["failed", "not_finite"])
@pytest.mark.parametrize("cancelled", [False, True])
def test_who_shares_a_block_that_a_step_in_flight_did_not_compute_starts_over(way: str, *, cancelled: bool) -> None:
    """Also where the request that was to compute it is gone meanwhile."""
    simulation = Simulation(num_blocks=40, max_batch_tokens=64, max_batch_requests=8)
    one = simulation.scheduler
    prompt = request("p", num_prompt=9).prompt_token_ids
    assert one.submit(Submit("bad", prompt, None, asked().sampling)) is None
    assert planned(one) == {"bad": 0}
    if cancelled:
        assert one.cancel("bad") is not None
    assert one.submit(Submit("shares", (*prompt, 5), None, asked().sampling)) is None
    assert planned(one)["shares"] == 8
    bad: Any = {"failed": {"bad": "no"}} if way == "failed" else {"not_finite": frozenset({"bad"})}
    events = one.resolve(StepResult({}, **bad))
    assert finishes(events) == ({} if cancelled else {"bad": FinishReason.ERROR})
    if way == "not_finite" and not cancelled:
        assert events[0].code is ErrorCode.NOT_FINITE
    simulation.blocks.check()
    plan = one.plan(())
    assert [(item.request_id, item.start) for item in plan.items] == [("shares", 0)]
    planned(one, plan)
    stale = one.resolve(chosen("shares", "bad", token=9))
    assert stale == []
    (event,) = one.resolve(chosen("shares", token=7))
    assert event.token_ids == (7,)


def test_a_failing_step_ends_what_later_steps_compute_of_it() -> None:
    simulation = Simulation(num_blocks=40, max_batch_tokens=8, max_batch_requests=8)
    one = simulation.scheduler
    assert one.submit(first := asked(num_prompt=14)) is None
    assert [planned(one) for _ in range(2)] == [{"r": 0}, {"r": 8}]
    assert finishes(one.resolve(StepResult(failed={"r": "no"}))) == {"r": FinishReason.ERROR}
    assert one.submit(msgspec.structs.replace(first, request_id="again")) is None
    assert planned(one) == {"again": 0}
    assert one.resolve(chosen("r")) == []


@pytest.mark.parametrize("seed", range(40))
def test_a_life_one_step_ahead_gives_the_answers_of_one_that_waits(seed: int) -> None:
    """What each block holds, and who writes to it, is checked at each step."""
    lives: list[Simulation] = []

    def keep(simulation: Simulation, _: StepPlan) -> str:
        if simulation not in lives:
            lives.append(simulation)
        return ""

    for num_ahead in (0, 1):
        play(seed, keep, num_ahead=num_ahead)
    waits, ahead = (simulation.stories for simulation in lives)
    assert waits.keys() == ahead.keys()
    for name, story in waits.items():
        one, other = ([token for event in each.events for token in event.token_ids] for each in (story, ahead[name]))
        shorter, longer = sorted((one, other), key=len)
        assert longer[: len(shorter)] == shorter
        if story.ended and ahead[name].ended and not (story.cancelled or ahead[name].cancelled):
            assert one == other
