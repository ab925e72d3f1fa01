"""From which token on an activated adapter is computed, and that the prefix cache tells such blocks apart."""

from itertools import product

import pytest
from support.engines import key_of

from lorafleet_inference.engine.activation import NEVER, activation
from lorafleet_inference.engine.block_manager import BlockManager, activated, chain_seed
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams, Submit
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.vocabulary import Vocabulary

A, B = key_of("a"), key_of("b")


@pytest.mark.parametrize(
    ("prompt", "invocation", "begin"),
    [
        ((1, 2, 3), (), 0),
        ((), (7,), NEVER),
        ((1, 2, 3), (7,), NEVER),
        ((7, 2, 3), (7,), 0),
        ((1, 2, 7), (7,), 2),
        ((7, 8, 1, 7, 8, 2), (7, 8), 3),
        ((7, 8, 1, 8, 2), (7, 8), 0),
        ((1, 8), (7, 8), NEVER),
        ((7, 7, 7), (7, 7), 1),
        ((8, 9, 8), (9, 8), 1),
        ((1, 2, 1, 2, 2, 1), (2, 1, 2, 2), 1),
        ((3, 1, 1, 2, 1, 1, 1), (3, 1, 1, 2, 1, 1), 0),
    ],
)
def test_it_begins_with_the_last_invocation_of_the_prompt(
    prompt: tuple[int, ...], invocation: tuple[int, ...], begin: int
) -> None:
    assert activation(prompt, invocation) == begin
    assert begin == NEVER or begin <= len(prompt)


def test_a_chain_goes_on_by_what_stands_before_by_the_adapter_and_by_where_it_begins() -> None:
    base, other = chain_seed(None), chain_seed(None, "salt")
    hashes = [activated(base, A, 5), activated(base, A, 6), activated(base, B, 5), activated(other, A, 5)]
    assert len({*hashes, base, other, chain_seed(A)}) == 7
    assert activated(base, A, 5) == hashes[0]


@pytest.mark.parametrize(("adapter", "begin"), [(A, 2), (B, 0), (None, 0)], ids=["activated", "another", "the base"])
def test_steps_are_told_where_it_begins(adapter: AdapterKey | None, begin: int) -> None:
    scheduler = Scheduler(
        BlockManager(9, 4, prefix_caching=True),
        max_batch_tokens=64,
        max_batch_requests=8,
        max_model_len=64,
        eos_token_ids=(1,),
        vocabulary_of=lambda _: Vocabulary(99, 99),
        invocation_of={A: (7, 8), B: ()}.__getitem__,  # of adapters alone
    )
    request = Submit("r", (1, 2, 7, 8, 3), adapter, SamplingParams(max_tokens=2, temperature=0))
    assert scheduler.submit(request) is None
    (new,) = scheduler.plan((A, B)).new
    assert new.adapter_from == begin


def test_it_is_found_wherever_it_stands() -> None:
    """All short prompts and invocations of two tokens, so that beginnings of it stand in every way before it and within it."""
    prompts = [prompt for length in range(9) for prompt in product((1, 2), repeat=length)]
    for invocation in (one for length in range(1, 6) for one in product((1, 2), repeat=length)):
        for prompt in prompts:
            places = [at for at in range(len(prompt)) if prompt[at : at + len(invocation)] == invocation]
            assert activation(prompt, invocation) == max(places, default=NEVER), (prompt, invocation)


class Counted(int):
    """A token id that counts how often it is compared."""

    num_compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.num_compared += 1
        return int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize("invocation", [[6, *[5] * 63], [*[5] * 32, 6, *[5] * 31], [*[5] * 63, 6]])
def test_a_prompt_that_almost_has_it_everywhere_is_looked_through_once(invocation: list[int]) -> None:
    """It is looked for in the engine, between the steps of all: a long prompt must not hold them up."""
    prompt = [Counted(5) for _ in range(2000)]
    Counted.num_compared = 0
    assert activation(prompt, invocation) == NEVER
    assert Counted.num_compared <= 4 * (len(prompt) + len(invocation))
