"""Blocks are in one state each, shared only with equal content under equal weights, and forgotten in order of use."""

from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.engines import key_of

from lorafleet_inference.engine.block_manager import BlockHash, BlockManager, chain_seed, next_hash
from lorafleet_inference.engine.messages import AdapterKey

NUM_BLOCKS, BLOCK_TOKENS = 7, 2
ADAPTERS = (None, key_of("a"), key_of("b"))


def chain(adapter: AdapterKey | None, token_ids: tuple[int, ...]) -> list[BlockHash]:
    hashes, last = [], chain_seed(adapter)
    for at in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        last = next_hash(last, token_ids[at : at + BLOCK_TOKENS])
        hashes.append(last)
    return hashes


class Holding(RuleBasedStateMachine):
    """Sequences that come and go, beside a naive account of what each block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS, BLOCK_TOKENS, prefix_caching=True)
        self.held: list[list[int]] = []
        self.content: dict[int, tuple[AdapterKey | None, tuple[int, ...]]] = {}
        """Of published blocks: whose prefix they end."""

    @rule(
        adapter=st.sampled_from(ADAPTERS),
        token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=8).map(tuple),
    )
    def start(self, adapter: AdapterKey | None, token_ids: tuple[int, ...]) -> None:
        shared = self.manager.match(chain(adapter, token_ids[:-1]))
        for index, block in enumerate(shared):
            assert self.content[block] == (adapter, token_ids[: (index + 1) * BLOCK_TOKENS])
        num_fresh = self.manager.blocks_for(len(token_ids)) - len(shared)
        fits = num_fresh <= self.manager.num_takable(shared)
        self.manager.share(shared)
        fresh = self.manager.take(num_fresh)
        assert (fresh is not None) == fits
        if fresh is None:
            self.manager.release(shared)
            return
        assert not set(fresh) & {block for blocks in self.held for block in blocks}, "a block has two owners"
        for block in fresh:
            self.content.pop(block, None)
        blocks = shared + fresh
        self.held.append(blocks)
        for index, block_hash in enumerate(chain(adapter, token_ids)):
            self.manager.publish(blocks[index], block_hash)
            prefix = (adapter, token_ids[: (index + 1) * BLOCK_TOKENS])
            if prefix not in self.content.values():
                self.content[blocks[index]] = prefix

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.held))), unique=True, min_size=1))
        released = [self.held[at] for at in chosen]
        kept = self.held[data.draw(st.sampled_from(range(len(self.held))))][:1]
        shared = kept if data.draw(st.booleans()) else []
        expected = list(self.manager.takable_after(shared, released))
        self.manager.share(shared)
        for blocks, num_takable in zip(released, expected, strict=True):
            self.manager.release(blocks)
            assert self.manager.num_available == num_takable
        self.manager.release(shared)
        self.held = [blocks for at, blocks in enumerate(self.held) if at not in chosen]

    @invariant()
    def each_block_is_in_one_state(self) -> None:
        self.manager.check()
        assert self.manager.num_used == len({block for blocks in self.held for block in blocks})


Holding.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestHolding = Holding.TestCase


def test_the_least_recently_released_content_is_forgotten_first() -> None:
    manager = BlockManager(3, BLOCK_TOKENS, prefix_caching=True)
    seen: OrderedDict[int, BlockHash] = OrderedDict()
    for number in range(3):
        (block,) = manager.take(1) or ()
        seen[block] = next_hash(chain_seed(None), (number, number))
        manager.publish(block, seen[block])
    for block in seen:
        manager.release([block])
    assert manager.take(1) == [next(iter(seen))]
    assert [bool(manager.match(chain(None, (n, n)))) for n in range(3)] == [False, True, True]


def test_the_end_of_a_sequence_is_forgotten_before_its_beginning() -> None:
    manager = BlockManager(2, BLOCK_TOKENS, prefix_caching=True)
    blocks = manager.take(2) or []
    for block, block_hash in zip(blocks, chain(None, (1, 2, 3, 4)), strict=True):
        manager.publish(block, block_hash)
    manager.release(blocks)
    manager.take(1)
    assert manager.match(chain(None, (1, 2, 3, 4))) == blocks[:1]


@pytest.mark.parametrize("other", [None, AdapterKey("x", "sha256:" + "1" * 64)])
def test_equal_tokens_under_other_weights_are_other_content(other: AdapterKey | None) -> None:
    one = AdapterKey("x", "sha256:" + "0" * 64)
    assert chain(one, (1, 2)) != chain(other, (1, 2))


def test_a_name_is_not_content_so_equal_adapters_share() -> None:
    assert chain(AdapterKey("x", "sha256:0"), (1, 2)) == chain(AdapterKey("y", "sha256:0"), (1, 2))


def test_without_prefix_caching_nothing_is_found() -> None:
    manager = BlockManager(2, BLOCK_TOKENS, prefix_caching=False)
    blocks = manager.take(1) or []
    manager.publish(blocks[0], next_hash(chain_seed(None), (1, 2)))
    assert manager.match(chain(None, (1, 2))) == []
    manager.release(blocks)
    assert manager.num_available == 2


def test_a_salt_keeps_equal_sequences_apart_and_none_is_the_empty_one() -> None:
    for adapter in ADAPTERS:
        assert chain_seed(adapter) == chain_seed(adapter, "")
        assert len({chain_seed(adapter, salt) for salt in ("", "one", "two")}) == 3


def test_what_nobody_holds_is_neither_published_nor_released() -> None:
    """Else its content could change under whoever finds it, or it would have two owners."""
    manager = BlockManager(2, BLOCK_TOKENS, prefix_caching=True)
    blocks = manager.take(1) or []
    manager.release(blocks)
    with pytest.raises(AssertionError):
        manager.publish(blocks[0], chain_seed(None))
    with pytest.raises(AssertionError):
        manager.release(blocks)


def test_keys_rotated_by_other_frequencies_are_other_content() -> None:
    for adapter in ADAPTERS:
        assert chain_seed(adapter) == chain_seed(adapter, rope_length=0)
        assert len({chain_seed(adapter, "salt", rope_length) for rope_length in (0, 1, 2)}) == 3


def test_a_block_that_is_taken_back_is_found_by_nobody_and_may_be_published_again() -> None:
    manager = BlockManager(NUM_BLOCKS, BLOCK_TOKENS, prefix_caching=True)
    first, second = chain(None, (0, 0)), chain(None, (1, 1))
    blocks = manager.take(1)
    assert blocks is not None
    manager.publish(blocks[0], first[0])
    assert manager.match(first) == blocks
    for _ in range(2):  # one that nobody finds may be taken back again
        manager.unpublish(blocks[0])
        assert manager.match(first) == []
    manager.publish(blocks[0], second[0])
    assert manager.match(second) == blocks
    manager.release(blocks)
    manager.check()
    manager.unpublish(blocks[0])
    manager.check()
    assert manager.match(second) == [], "also when nobody holds it any more"
    assert manager.num_available == NUM_BLOCKS
    assert sorted(manager.take(NUM_BLOCKS) or ()) == list(range(NUM_BLOCKS)), "and it can be taken"
