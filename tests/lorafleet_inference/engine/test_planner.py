"""How a step's tokens are chosen: who claims a place of whom, what a step has room for, and what is charged."""

import msgspec
import pytest
from support.engines import key_of
from support.simulation import VOCAB_SIZE, Simulation, compute, request

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.fairness import ANSWER_WEIGHT, PROMPT_WEIGHT
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams, Submit
from lorafleet_inference.engine.pace import MIN_BUSY_PROMPT_TOKENS, MIN_PROMPT_TOKENS, Pace, StepBound
from lorafleet_inference.engine.plan import Sampled, StepPlan, StepResult
from lorafleet_inference.engine.planner import MAX_SCORED_TOKENS
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.vocabulary import Vocabulary

A, B, C, D = (key_of(name) for name in "abcd")
ALL = (A, B, C, D)
LONG = 1000


def simulation_of(
    num_blocks: int = 1000,
    *,
    max_batch_tokens: int = 64,
    max_batch_requests: int = 8,
    max_model_len: int = LONG,
    prefix_caching: bool = True,
) -> Simulation:
    return Simulation(
        num_blocks=num_blocks,
        max_batch_tokens=max_batch_tokens,
        max_batch_requests=max_batch_requests,
        max_model_len=max_model_len,
        prefix_caching=prefix_caching,
    )


def asked(
    request_id: str, adapter: AdapterKey | None, num_prompt: int, *, priority: int = 0, scored: bool = False
) -> Submit:
    """A request with a long answer."""
    plain = request(request_id, adapter, num_prompt=num_prompt, max_tokens=20)
    sampling = msgspec.structs.replace(plain.sampling, prompt_logprobs=0) if scored else plain.sampling
    return msgspec.structs.replace(plain, priority=priority, sampling=sampling)


def sizes(plan: StepPlan) -> dict[str, int]:
    """Tokens of the requests of a step."""
    return {item.request_id: item.num_tokens for item in plan.items}


@pytest.mark.parametrize(("max_batch_tokens", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (8, 4), (12, 5)])
def test_half_of_a_steps_tokens_stays_for_prompts_but_one_request_runs_always(max_batch_tokens: int, most: int) -> None:
    simulation = simulation_of(max_batch_tokens=max_batch_tokens, max_batch_requests=5)
    for number in range(6):
        simulation.submit(asked(f"r{number}", None, 1))
    counts = []
    for _ in range(8):
        simulation.step()
        counts.append(simulation.scheduler.num_running)
    assert max(counts) == most


def test_a_plan_says_how_many_tokens_it_could_have_had() -> None:
    simulation = simulation_of(max_batch_tokens=512)
    simulation.submit(asked("r", None, 3))
    assert simulation.step().max_tokens == 512
    slow = StepBound(Pace(0.25, fixed=0.1, prompt_token=0.01, answer_token=0.01))
    assert simulation.step(bound=slow).max_tokens == 1 + MIN_PROMPT_TOKENS, "one answer goes on, and prompts"


@pytest.mark.parametrize(
    ("quiet", "busy_sizes", "quiet_size"),
    [
        (None, MIN_PROMPT_TOKENS, MIN_PROMPT_TOKENS),
        (frozenset(), MIN_BUSY_PROMPT_TOKENS, MIN_BUSY_PROMPT_TOKENS),
        (frozenset({B}), MIN_BUSY_PROMPT_TOKENS, MIN_PROMPT_TOKENS),
    ],
)
def test_prompts_of_who_asks_for_much_go_on_by_smaller_pieces(
    quiet: frozenset[AdapterKey] | None, busy_sizes: int, quiet_size: int
) -> None:
    """Where a step takes longer than it should, however few tokens it has."""
    bound = StepBound(Pace(0.25, fixed=0.1, prompt_token=0.01, answer_token=0.01), quiet)
    simulation = simulation_of(max_batch_tokens=2048)
    for number in range(3):
        simulation.submit(asked(f"a{number}", A, 900))
    assert sizes(simulation.step(ALL, bound=bound)) == {"a0": busy_sizes}
    simulation.submit(asked("b", B, 150))
    assert sizes(simulation.step(ALL, bound=bound)) == {"b": quiet_size}, "a newcomer's step is its own"
    left = 150 - quiet_size
    plan = sizes(simulation.step(ALL, bound=bound))
    if quiet:
        assert plan == {"b": left, "a0": busy_sizes}, "what it leaves is the others', as far as they may"
    assert sum(number for name, number in plan.items() if name[0] == "a") <= busy_sizes


def test_what_a_quiet_one_takes_is_not_the_busy_ones_room() -> None:
    bound = StepBound(Pace(0.25, fixed=0.1, prompt_token=0.01, answer_token=0.01), frozenset({B}))
    simulation = simulation_of(max_batch_tokens=2048)
    simulation.submit(asked("b", B, 20))
    simulation.submit(asked("a", A, 900))
    assert sizes(simulation.step(ALL, bound=bound)) == {"b": 20, "a": MIN_BUSY_PROMPT_TOKENS}


def test_room_of_busy_prompts_is_shared_by_all_of_them() -> None:
    """Also with newcomers among them, and nobody gets a part of no tokens."""
    bound = StepBound(Pace(0.25, fixed=0.1, prompt_token=0.01, answer_token=0.01), frozenset({C}))
    simulation = simulation_of(max_batch_tokens=2048)
    for number in range(4):
        for name, adapter in (("a", A), ("b", B)):
            simulation.submit(asked(f"{name}{number}", adapter, 40))
    assert sorted(sizes(simulation.step(ALL, bound=bound)).values()) == [16, 40, 40]
    for _ in range(6):
        plan = simulation.step(ALL, bound=bound)
        assert plan.num_tokens - plan.num_answer_tokens <= MIN_BUSY_PROMPT_TOKENS
    assert plan.num_answer_tokens == plan.num_tokens == 8, "all prompts came to their end"


def test_fast_steps_are_bound_for_all_alike() -> None:
    """Pieces are small only where larger ones do not fit the target."""
    bound = StepBound(Pace(1.0, fixed=0.1, prompt_token=0.001, answer_token=0.01, most_prompt_tokens=4000), frozenset())
    simulation = simulation_of(max_batch_tokens=2048)
    simulation.submit(asked("a", A, 970))
    assert sizes(simulation.step(ALL, bound=bound)) == {"a": 900}


def test_a_newcomer_that_fits_takes_nobodys_place() -> None:
    simulation = simulation_of()
    for name in ("a0", "a1", "a2"):
        simulation.submit(asked(name, A, 3))
    simulation.step(ALL)
    simulation.submit(asked("b", B, 3))
    plan = simulation.step(ALL)
    assert (plan.preempted, plan.first_scheduled) == ((), ("b",))
    assert sizes(plan) == {"a0": 1, "a1": 1, "a2": 1, "b": 3}


def test_as_few_give_way_as_a_newcomer_needs_beside_what_is_known_of_its_prompt() -> None:
    simulation = simulation_of(10, max_batch_requests=3)
    simulation.submit(request("b0", B, num_prompt=9, max_tokens=1, seed=1))
    simulation.step(ALL)
    for name in ("a0", "a1", "a2"):
        simulation.submit(asked(name, A, 5))
    simulation.step(ALL)
    simulation.submit(request("b1", B, num_prompt=9, seed=1))
    plan = simulation.step(ALL)
    assert (plan.preempted, plan.first_scheduled) == (("a2",), ("b1",))
    assert sizes(plan) == {"a0": 1, "a1": 1, "b1": 1}


@pytest.mark.parametrize(("num_prompt", "preempted"), [(24, ("a1",)), (25, ())])
def test_a_newcomer_may_take_all_that_the_others_can_give_up(num_prompt: int, preempted: tuple[str, ...]) -> None:
    """Two blocks are free and four can be given up; the oldest keeps its two."""
    simulation = simulation_of(8)
    simulation.submit(asked("a0", A, 5))
    simulation.submit(asked("a1", A, 13))
    simulation.step(ALL)
    assert simulation.blocks.num_available == 2
    simulation.submit(request("b", B, num_prompt=num_prompt, max_tokens=1))
    assert simulation.step(ALL).preempted == preempted


def test_a_newcomer_that_fits_starts_after_one_that_others_make_way_for() -> None:
    """Nobody else starts in a step that had to preempt, though there were room."""
    simulation = simulation_of(10)
    simulation.submit(asked("a0", A, 13))
    simulation.submit(asked("a1", A, 13))
    simulation.step(ALL)
    simulation.submit(asked("b", B, 4))
    simulation.submit(asked("c", C, 18))
    plan = simulation.step(ALL)
    assert (plan.preempted, plan.first_scheduled) == (("a1",), ("c",))
    assert simulation.blocks.num_available == 1
    assert sizes(plan) == {"a0": 1, "c": 18}
    assert simulation.step(ALL).first_scheduled == ("b",)


def test_newcomers_leave_decode_its_room_and_get_a_token_each() -> None:
    simulation = simulation_of(max_batch_tokens=8, max_batch_requests=4)
    for name in ("a0", "a1", "a2", "a3"):
        simulation.submit(asked(name, A, 2))
    simulation.step(ALL)
    for name, adapter in (("b", B), ("c", C), ("d", D)):
        simulation.submit(asked(name, adapter, 20))
    plan = simulation.step(ALL)
    assert plan.preempted == ("a3", "a2", "a1")
    assert sizes(plan) == {"b": 5, "c": 1, "d": 1, "a0": 1}


def test_a_newcomer_takes_no_place_in_a_step_whose_tokens_are_given_away() -> None:
    """Prompts of one adapter are under way, the later the more urgent."""
    simulation = simulation_of(max_batch_tokens=8, max_batch_requests=3)
    for name, priority in (("a0", 2), ("a1", 1), ("a2", 0)):
        simulation.submit(asked(name, A, 20, priority=priority))
        assert sizes(simulation.step(ALL)) == {name: 8}
    simulation.submit(asked("b", B, 20))
    simulation.submit(asked("c", C, 20))
    plan = simulation.step(ALL)
    assert (plan.preempted, sizes(plan)) == (("a1",), {"b": 8})
    plan = simulation.step(ALL)
    assert (plan.preempted, sizes(plan)) == (("a2",), {"c": 8})


def test_a_newcomer_whose_prompt_is_one_token_ends_nobodys_turn() -> None:
    """Those that were served more decode after it, also where their next token needs a block."""
    simulation = simulation_of(max_batch_requests=4)
    for name in ("a0", "a1", "a2"):
        simulation.submit(asked(name, A, 4))
    simulation.submit(asked("d", D, 1))
    simulation.step(ALL)
    simulation.submit(asked("b", B, 1))
    plan = simulation.step(ALL)
    assert plan.preempted == ("a2",)
    assert sizes(plan) == {"b": 1, "a0": 1, "d": 1, "a1": 1}
    assert [one.request_id for one in plan.grown] == ["a0", "a1"]


def test_nobody_gets_a_block_in_a_step_that_has_no_token_for_it() -> None:
    """Two prompts make way for two newcomers, which leave one token to the two answers."""
    simulation = simulation_of(max_batch_tokens=8, max_batch_requests=4)
    simulation.submit(asked("a0", A, 1))
    simulation.submit(asked("a1", A, 1))
    simulation.step(ALL)
    simulation.submit(asked("a2", A, 20, priority=2))
    simulation.step(ALL)
    simulation.submit(asked("a3", A, 20, priority=1))
    simulation.step(ALL)
    assert sizes(simulation.step(ALL)) == {"a0": 1, "a1": 1, "a3": 6}
    simulation.submit(asked("b", B, 20))
    simulation.submit(asked("c", C, 20))
    plan = simulation.step(ALL)
    assert (plan.preempted, sizes(plan)) == (("a2", "a3"), {"b": 6, "c": 1, "a0": 1})
    assert [one.request_id for one in plan.grown] == ["a0"]
    assert "a1" in sizes(simulation.step(ALL))


def test_answers_go_on_when_one_before_them_has_just_lost_its_blocks() -> None:
    """All four are at the end of a block, and one block is free; the adapter served more by now loses its latest."""
    simulation = simulation_of(9)
    for name, adapter, num_prompt in (("a0", A, 4), ("a1", A, 4), ("a2", A, 8), ("b", B, 16)):
        simulation.submit(asked(name, adapter, num_prompt))
    assert len(simulation.step(ALL).items) == 4
    plan = simulation.step(ALL)
    assert (plan.preempted, sizes(plan)) == (("a2",), {"a0": 1, "a1": 1, "b": 1})
    assert [one.request_id for one in plan.grown] == ["a0", "a1", "b"]


def test_a_plan_says_who_has_stopped_running_since_the_one_before() -> None:
    simulation = simulation_of(max_batch_requests=3)
    for name in ("a0", "a1", "a2"):
        simulation.submit(asked(name, A, 3))
    assert simulation.step(ALL).gone == ()
    simulation.cancel("a1")
    simulation.submit(asked("b", B, 3))
    simulation.submit(asked("c", C, 3))
    plans = [simulation.step(ALL) for _ in range(3)]
    assert [plan.preempted for plan in plans] == [(), ("a2",), ()]
    assert [plan.gone for plan in plans] == [("a1",), ("a2",), ()]


def test_a_block_that_an_answer_fills_is_found_by_who_starts_in_that_step() -> None:
    simulation = simulation_of()
    first = asked("first", None, 3)
    simulation.submit(first)
    for _ in range(5):
        simulation.step()
    answer = [token for event in simulation.stories["first"].events for token in event.token_ids]
    known = (*first.prompt_token_ids, *answer)
    assert len(known) == 8
    simulation.submit(Submit("second", (*known, 9), None, SamplingParams(max_tokens=2)))
    plan = simulation.step()
    assert {item.request_id: item.start for item in plan.items} == {"first": 7, "second": 8}


def test_what_continues_an_answer_is_told_from_the_last_token_of_a_prompt() -> None:
    simulation = simulation_of(max_batch_tokens=4)
    simulation.submit(asked("r", None, 5))
    assert [simulation.step().num_answer_tokens for _ in range(4)] == [0, 0, 1, 1]


def test_blocks_of_one_token_are_filled_one_by_one() -> None:
    blocks = BlockManager(8, 1, prefix_caching=True)
    scheduler = Scheduler(
        blocks,
        max_batch_tokens=8,
        max_batch_requests=2,
        max_model_len=8,
        eos_token_ids=(),
        vocabulary_of=lambda _: Vocabulary(VOCAB_SIZE, VOCAB_SIZE),
    )
    scheduler.submit(request("r", num_prompt=3, max_tokens=4))
    used = []
    while scheduler.num_running + scheduler.num_waiting:
        plan = scheduler.plan(())
        used.append(blocks.num_used)
        compute(scheduler, plan, StepResult({item.request_id: Sampled(2) for item in plan.items}))
    assert used == [3, 4, 5, 6]


def test_prompts_of_adapters_that_run_wait_for_the_first_token_of_one_that_did_not() -> None:
    simulation = simulation_of(max_batch_tokens=8)
    simulation.submit(asked("a0", A, 20))
    simulation.submit(asked("a1", A, 3))
    assert sizes(simulation.step(ALL)) == {"a0": 8}
    simulation.submit(asked("b", B, 3))
    assert sizes(simulation.step(ALL)) == {"b": 3}
    assert sizes(simulation.step(ALL)) == {"b": 1, "a0": 7}


@pytest.mark.parametrize(
    ("num_prompt", "expected"),
    [
        (MAX_SCORED_TOKENS, {"first": MAX_SCORED_TOKENS, "second": 1}),
        (MAX_SCORED_TOKENS + 1, {"first": MAX_SCORED_TOKENS + 1}),
        (MAX_SCORED_TOKENS + 2, {"first": MAX_SCORED_TOKENS}),
    ],
)
def test_the_rows_for_scored_tokens_are_used_to_the_last(num_prompt: int, expected: dict[str, int]) -> None:
    """The last token of a prompt needs none: nothing of the prompt follows it."""
    simulation = simulation_of(max_batch_tokens=1024)
    simulation.submit(asked("first", None, num_prompt, scored=True))
    simulation.submit(asked("second", None, 9, scored=True))
    assert sizes(simulation.step()) == expected


def test_adapters_whose_prompts_are_scored_wait_for_rows_and_hold_nobody_up() -> None:
    simulation = simulation_of(max_batch_tokens=1024)
    simulation.submit(asked("a", A, 300, scored=True))
    simulation.submit(asked("b", B, 300, scored=True))
    simulation.submit(asked("c", C, 3))
    assert sizes(simulation.step(ALL)) == {"a": MAX_SCORED_TOKENS, "c": 3}
    assert sizes(simulation.step(ALL)) == {"c": 1, "b": MAX_SCORED_TOKENS}


def test_running_prompts_that_are_scored_take_turns_at_the_rows() -> None:
    """Who finds no row left has no part in the step, and not one of no tokens."""
    simulation = simulation_of(max_batch_tokens=1024)
    for name, adapter in (("a", A), ("b", B)):
        simulation.submit(asked(name, adapter, 900, scored=True))
        assert sizes(simulation.step(ALL)) == {name: MAX_SCORED_TOKENS}
    turns = [sizes(simulation.step(ALL)) for _ in range(4)]
    assert [set(turn.values()) for turn in turns[:2]] == [{MAX_SCORED_TOKENS}] * 2
    assert {name for turn in turns for name in turn} == {"a", "b"}


def test_a_newcomer_whose_prompt_is_scored_takes_no_place_without_rows() -> None:
    """The prompt that runs beside it asks for no scores, and goes on."""
    simulation = simulation_of(max_batch_tokens=512, max_batch_requests=3)
    for name, num_prompt, priority in (("a0", 900, 0), ("a1", 3, -1), ("a2", 3, -1)):
        simulation.submit(asked(name, A, num_prompt, priority=priority))
    assert sizes(simulation.step(ALL)) == {"a1": 3, "a2": 3, "a0": 506}
    simulation.submit(asked("b", B, 300, scored=True))
    simulation.submit(asked("c", C, 300, scored=True))
    plan = simulation.step(ALL)
    assert plan.preempted == ("a2",)
    assert sizes(plan) == {"b": MAX_SCORED_TOKENS, "a1": 1, "a0": 255}


def test_a_prompt_that_is_set_back_waits_for_the_rows_of_all_its_tokens() -> None:
    simulation = simulation_of(max_batch_tokens=400)
    simulation.submit(asked("long", A, 399, priority=-1))
    simulation.submit(asked("short", A, 2, scored=True))
    assert sizes(simulation.step(ALL)) == {"long": 399, "short": 1}
    simulation.set_back(A)
    simulation.submit(asked("scored", B, 300, scored=True))
    assert sizes(simulation.step(ALL)) == {"long": 4, "scored": MAX_SCORED_TOKENS}


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("set_back_after", [None, 1, 2, 4, 5])
@pytest.mark.parametrize("num_prompt", [7, 9])
def test_an_adapter_is_charged_once_for_each_token(
    num_prompt: int, set_back_after: int | None, prefix_caching: bool
) -> None:
    """Whatever is computed again; the last token of an answer is not computed."""
    simulation = simulation_of(max_batch_tokens=4, prefix_caching=prefix_caching)
    simulation.submit(request("r", A, num_prompt=num_prompt, max_tokens=5))
    while not simulation.stories["r"].ended:
        simulation.step(ALL)
        if simulation.num_steps == set_back_after:
            simulation.set_back(A)
    assert simulation.scheduler.service(A) == num_prompt * PROMPT_WEIGHT + 4 * ANSWER_WEIGHT
