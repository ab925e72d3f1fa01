"""Sequences that grow beyond the limit of their rotary frequencies are computed again, once, and alone."""

from support.simulation import Simulation, request

from lorafleet_inference.engine.messages import LengthRope, RopeKind
from lorafleet_inference.engine.token_events import FinishReason

LIMIT = 10
LONGROPE, DYNAMIC = LengthRope(RopeKind.LONGROPE, LIMIT), LengthRope(RopeKind.DYNAMIC, LIMIT)


def run(simulation: Simulation) -> list[tuple[str, int, int, int]]:
    """Step until all requests ended; return (request, start, end, rope length) of each item."""
    items = []
    while not all(story.ended for story in simulation.stories.values()):
        plan = simulation.step()
        assert plan.items, "a step without work would wait for a message"
        known = simulation.known.of
        items += [(one.request_id, one.start, one.end, known[one.request_id].new.rope_length) for one in plan.items]
    return items


def simulation_of(rope: LengthRope) -> Simulation:
    return Simulation(num_blocks=40, max_batch_tokens=8, max_batch_requests=4, length_rope=rope)


def test_a_sequence_is_computed_again_once_when_it_grows_beyond_the_limit() -> None:
    simulation = simulation_of(LONGROPE)
    simulation.submit(request("grows", num_prompt=LIMIT - 2, max_tokens=6))
    items = run(simulation)
    assert items == [
        ("grows", 0, 8, 0),
        ("grows", 8, 9, 0),
        ("grows", 9, 10, 0),
        ("grows", 0, 8, LIMIT + 1),
        ("grows", 8, 11, LIMIT + 1),
        ("grows", 11, 12, LIMIT + 1),
        ("grows", 12, 13, LIMIT + 1),
    ]
    assert simulation.num_preempted == 1
    story = simulation.stories["grows"]
    assert [len(event.token_ids) for event in story.events] == [1] * 6
    assert story.events[-1].finish is FinishReason.LENGTH


def test_an_answer_that_ends_at_the_limit_is_not_computed_again() -> None:
    simulation = simulation_of(LONGROPE)
    simulation.submit(request("ends", num_prompt=LIMIT - 2, max_tokens=3))
    run(simulation)
    assert simulation.num_preempted == 0


def test_a_prompt_beyond_the_limit_is_long_from_its_first_part_on() -> None:
    simulation = simulation_of(LONGROPE)
    simulation.submit(request("long", num_prompt=2 * LIMIT, max_tokens=3))
    assert {rope_length for *_, rope_length in run(simulation)} == {LIMIT + 1}
    assert simulation.num_preempted == 0


def test_sequences_share_what_was_computed_with_the_same_frequencies_only() -> None:
    for rope, num_shared in ((LONGROPE, 2 * LIMIT), (DYNAMIC, 0)):
        simulation = simulation_of(rope)
        for name, num_prompt in (("short", LIMIT), ("long", 2 * LIMIT), ("longer", 2 * LIMIT + 2)):
            simulation.submit(request(name, num_prompt=num_prompt, max_tokens=1, seed=7))
            run(simulation)
        cached = {name: story.events[0].num_cached_tokens for name, story in simulation.stories.items()}
        assert cached == {"short": 0, "long": 0, "longer": num_shared}


def test_dynamic_frequencies_follow_the_prompt_and_nothing_is_computed_again() -> None:
    simulation = simulation_of(DYNAMIC)
    simulation.submit(request("long", num_prompt=LIMIT + 3, max_tokens=4))
    simulation.submit(request("grows", num_prompt=LIMIT - 2, max_tokens=8))
    assert {(name, rope_length) for name, _, _, rope_length in run(simulation)} == {("long", LIMIT + 3), ("grows", 0)}
    assert simulation.num_preempted == 0


def test_one_that_is_to_be_computed_again_may_be_cancelled() -> None:
    simulation = simulation_of(LONGROPE)
    simulation.submit(request("leaves", num_prompt=LIMIT, max_tokens=6))
    while not simulation.stories["leaves"].events:
        simulation.step()
    simulation.cancel("leaves")
    simulation.step()
    assert simulation.blocks.num_used == 0
