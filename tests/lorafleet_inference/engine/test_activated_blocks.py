"""An activated adapter (aLoRA) shares blocks with the base up to its invocation, and from there on with nobody else."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenarios import KEYS, MAX_MODEL_LEN, simulation_of
from support.simulation import BLOCK_TOKENS, Simulation

from lorafleet_inference.engine.messages import AdapterKey, SamplingParams, Submit

INVOCATION = (5, 6)


def conversation(rng: random.Random, simulation: Simulation) -> tuple[int, ...]:
    """Draw a prompt of few different tokens; it may go on where an earlier request ended."""
    ended = [story for story in simulation.stories.values() if story.ended]
    before: list[int] = []
    if ended and rng.random() < 0.5:
        story = rng.choice(ended)
        before = [*story.request.prompt_token_ids, *(one for event in story.events for one in event.token_ids)]
    more = [rng.randrange(6, 10) for _ in range(rng.randrange(1, 12))]
    return (*before[: MAX_MODEL_LEN - 12], *more)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_no_block_is_shared_that_other_weights_computed(seed: int) -> None:
    """Two activated adapters, one plain one and the base, short of memory; answers have invocations too, and n is 1 to 3."""
    rng = random.Random(seed)
    simulation = simulation_of(rng, seed, {KEYS[0]: (7,), KEYS[1]: (8, 7)})
    simulation.token = lambda request_id, position: random.Random(f"{seed}{request_id}{position}").randrange(6, 10)
    for number in range(25):
        for each in range(rng.randrange(3)):
            prompt, adapter = conversation(rng, simulation), rng.choice((None, *KEYS))
            scored = 0 if rng.random() < 0.2 else None
            sampling = SamplingParams(max_tokens=rng.randrange(1, 12), temperature=0, prompt_logprobs=scored)
            salt = rng.choice(("", "", "salt"))
            for choice in range(rng.choice((1, 1, 3))):
                simulation.submit(Submit(f"r{number}.{each}.{choice}", prompt, adapter, sampling, cache_salt=salt))
        if simulation.stories and rng.random() < 0.1:
            simulation.set_back(rng.choice(KEYS))
        simulation.step(KEYS)


def test_a_block_in_which_it_begins_elsewhere_is_not_shared() -> None:
    """Equal tokens up to the end of a block, and an invocation that stands across that end in one of two prompts."""
    simulation = Simulation(
        num_blocks=20, max_batch_tokens=64, max_batch_requests=8, invocations={KEYS[0]: (8, 7), KEYS[1]: (8, 7)}
    )
    assert BLOCK_TOKENS == 4
    across, within = (9, 8, 7, 8, 7, 9, 9), (9, 8, 7, 8, 9, 9, 9)
    for number, (adapter, prompt, num_hit) in enumerate(
        [(KEYS[0], across, 0), (KEYS[0], within, 0), (KEYS[1], within, 0), (None, within, 0), (KEYS[0], within, 4)]
    ):
        simulation.submit(Submit(str(number), prompt, adapter, SamplingParams(max_tokens=1, temperature=0)))
        assert simulation.step(KEYS).num_hit_tokens == num_hit, number


def tokens_to_the_first(simulation: Simulation, adapter: AdapterKey, prompt: tuple[int, ...]) -> int:
    """Submit a request and return how many tokens are computed until its first one is chosen."""
    simulation.submit(Submit(adapter.name, prompt, adapter, SamplingParams(max_tokens=1, temperature=0)))
    count = 0
    while not simulation.stories[adapter.name].ended:
        count += simulation.step(KEYS).num_tokens
    return count


def test_over_a_long_shared_context_it_computes_its_invocation_alone() -> None:
    simulation = Simulation(
        num_blocks=3 * 8300 // BLOCK_TOKENS,
        max_batch_tokens=512,
        max_batch_requests=8,
        max_model_len=8300,
        invocations={KEYS[0]: INVOCATION, KEYS[1]: INVOCATION},
    )
    context = tuple(10 + number % 97 for number in range(8192))
    simulation.submit(Submit("base", context, None, SamplingParams(max_tokens=1, temperature=0)))
    while not simulation.stories["base"].ended:
        simulation.step(KEYS)
    prompt = (*context, *INVOCATION, 9)
    assert tokens_to_the_first(simulation, KEYS[0], prompt) == 3
    assert tokens_to_the_first(simulation, KEYS[1], prompt) == 3
    assert tokens_to_the_first(simulation, KEYS[2], prompt) == len(prompt), "plain LoRA shares nothing with the base"
