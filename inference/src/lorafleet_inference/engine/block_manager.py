"""KV blocks: who holds which, which hold the KV of known tokens, which may be taken. Pure: no torch, no clock.

A block is free, or referenced by one or more sequences, or cached: full, unreferenced, found again by its hash until it
is taken for something else, least recently used first. Only full blocks are shared, and a full block never changes.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import takewhile

from lorafleet_inference.engine.messages import AdapterKey

BlockHash = bytes


def chain_seed(adapter: AdapterKey | None, salt: str = "", rope_length: int = 0) -> BlockHash:
    """Return what the hash chain of a sequence starts from.

    Equal tokens have equal KV only under the same weights, the base's and the adapter's content, and with the same rotary
    frequencies. The tag keeps an adapter from ever meeting the base. Sequences of different `salt` never meet, so that
    nobody learns by the time of an answer what others have asked.
    """
    tagged = ("base",) if adapter is None else ("adapter", adapter.digest)
    return hashlib.sha256(repr((*tagged, salt, rope_length)).encode()).digest()


def activated(previous: BlockHash, adapter: AdapterKey, adapter_from: int) -> BlockHash:
    """Return what the chain of the base, whose last hash is `previous`, goes on from for the block in which an adapter begins.

    The first token that the adapter is computed for is at position `adapter_from`, in the block that comes next.
    """
    return hashlib.sha256(previous + repr(("activated", adapter.digest, adapter_from)).encode()).digest()


def next_hash(previous: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Return the hash of a full block that follows the block of hash `previous`."""
    return hashlib.sha256(previous + array("Q", token_ids).tobytes()).digest()


class BlockManager:
    """Hands out blocks 0 .. num_blocks - 1 of `block_tokens` tokens each."""

    def __init__(self, num_blocks: int, block_tokens: int, *, prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._prefix_caching = prefix_caching
        self._free: deque[int] = deque(range(num_blocks))
        self._references = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Unreferenced blocks with a hash; the least recently used first."""

    @property
    def num_available(self) -> int:
        """Blocks that can be taken now: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks this many tokens need."""
        return -(-num_tokens // self.block_tokens)

    def match(self, hashes: Iterable[BlockHash]) -> list[int]:
        """Return the blocks of the longest known beginning of a hash chain, without taking them."""
        if not self._prefix_caching:
            return []
        found = (self._block_of.get(block_hash) for block_hash in hashes)
        return [block for block in takewhile(lambda block: block is not None, found) if block is not None]

    def num_takable(self, shared: Collection[int]) -> int:
        """Return how many blocks could be taken after `share(shared)`."""
        return self.num_available - sum(self._references[block] == 0 for block in shared)

    def takable_after(self, shared: Collection[int], released: Iterable[Sequence[int]]) -> Iterator[int]:
        """Yield how many blocks could be taken after `share(shared)` and releasing the first, the first two, … holdings.

        `released`: the blocks of one sequence each. All of it takes time as there are blocks in them.
        """
        takable, kept = self.num_takable(shared), frozenset(shared)
        given_up: Counter[int] = Counter()
        for blocks in released:
            given_up.update(blocks)
            takable += sum(given_up[block] == self._references[block] and block not in kept for block in blocks)
            yield takable

    def share(self, blocks: Iterable[int]) -> None:
        """Reference blocks that `match` returned."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def take(self, num_blocks: int) -> list[int] | None:
        """Take fresh blocks, forgetting the least recently used cached ones; None, and nothing taken, if too few."""
        if num_blocks > self.num_available:
            return None
        return [self._take_one() for _ in range(num_blocks)]

    def publish(self, block: int, block_hash: BlockHash) -> None:
        """Make a full block findable, which is computed before anyone reads it. Another one of this content stays instead."""
        assert self._references[block] > 0, "only a held block can be published"
        if self._prefix_caching and self._hash_of[block] is None and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def unpublish(self, block: int) -> None:
        """Let nobody find a block any more, whether it is held or not."""
        known = self._hash_of[block]
        if known is not None:
            del self._block_of[known]
            self._hash_of[block] = None
            if self._references[block] == 0:
                del self._cached[block]
                self._free.append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference to each block of a sequence, given in the sequence's order.

        The end of a sequence is forgotten before its beginning, which is more likely to be found again.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, "a block was released twice"
            if self._references[block] == 0:
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def check(self) -> None:
        """Assert that each block is in exactly one state; for tests."""
        held = {block for block, count in enumerate(self._references) if count}
        states = [set(self._free), set(self._cached), held]
        assert sum(map(len, states)) == self.num_blocks == len(set().union(*states))
        assert len(self._free) == len(states[0])
        assert all(self._hash_of[block] == known for known, block in self._block_of.items())
        assert all(self._hash_of[block] is not None for block in self._cached)

    def _take_one(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._cached.popitem(last=False)
            known = self._hash_of[block]
            assert known is not None
            del self._block_of[known]
            self._hash_of[block] = None
        self._references[block] = 1
        return block
