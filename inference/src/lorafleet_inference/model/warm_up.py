"""Steps that are run once before any request, because a kernel is compiled when it is first launched."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams
from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan
from lorafleet_inference.model.arena import HostPages
from lorafleet_inference.model.lora import LoraBank
from lorafleet_inference.model.slab import Slab

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.model.side_lora import SideBank

KEY = AdapterKey("", "warm-up")
"""No adapter has an empty name."""
REQUEST = "warm-up"
RANKS = (16, 32, 64, 128)
"""Between these Triton's kernels for LoRA differ."""
NUM_TOKENS = (1, 64)
"""Likewise, tokens of one adapter."""
FIRST_SPLIT_TOKENS = 256
"""From here on each doubling of the context is split among more programs."""


PLAIN = SamplingParams(max_tokens=0)
CHANGED = SamplingParams(max_tokens=0, logit_bias=((0, 1.0),))
"""Its logits are changed, and so in float32, before a token is chosen."""


def contexts(max_tokens: int) -> Iterator[StepPlan]:
    """Yield steps of one token after contexts of different lengths."""
    start = 1
    while start < max_tokens:
        yield plan(None, start, 1)
        start = max(FIRST_SPLIT_TOKENS, start * 2)
    yield plan(None, 0, 1, CHANGED)


def adapters(
    bank: LoraBank, sides: "SideBank | None", max_rank: int, max_tokens: int, dtype: torch.dtype
) -> Iterator[StepPlan]:
    """Yield steps of an adapter of different ranks; it is in both banks while each is run."""
    for rank in sorted({min(rank, max_rank) for rank in RANKS}):
        num_pages = bank.layout.num_pages(rank)
        pages = torch.zeros(num_pages, bank.layout.page, dtype=dtype)
        bank.install(KEY, range(num_pages), Slab(HostPages((pages,)), (rank,) * len(bank.layout.places)))
        if sides is not None:
            sides.stand_in(KEY)
        for length in NUM_TOKENS:
            if length <= max_tokens:
                yield plan(KEY, 0, length)
        bank.remove(KEY)
        if sides is not None:
            sides.remove(KEY)


def plan(adapter: AdapterKey | None, start: int, length: int, sampling: SamplingParams = PLAIN) -> StepPlan:
    """Return a step of one sequence: `length` tokens from position `start` on."""
    end = start + length
    blocks = tuple(range(-(-end // KV_BLOCK_TOKENS)))
    asked = NewRequest(REQUEST, adapter, (0,) * end, end, sampling, blocks)
    return StepPlan((StepItem(REQUEST, start, length),), gone=(REQUEST,), new=(asked,))
