"""From which token on an activated adapter is computed, and that the prefix cache tells such blocks apart."""

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
