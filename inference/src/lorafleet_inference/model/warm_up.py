"""Steps that are run once before any request, because a kernel is compiled when it is first launched."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.engine.messages import MAX_LOGPROBS, AdapterKey, Pooling, PoolingKind, SamplingParams
from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan
from lorafleet_inference.engine.planner import MAX_SCORED_TOKENS, num_running
from lorafleet_inference.model.arena import HostPages
from lorafleet_inference.model.lora import LoraBank
from lorafleet_inference.model.sizing import num_blocks_for
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
SCORED = SamplingParams(max_tokens=0, prompt_logprobs=MAX_LOGPROBS)
CHOOSY = SamplingParams(
    max_tokens=9,
    temperature=0.9,
    top_k=1 << 20,
    top_p=0.9,
    min_p=0.001,
    typical_p=0.9,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((0, 1.0),),
    min_tokens=9,
    num_logprobs=MAX_LOGPROBS,
)
"""All that changes and ranks logits before a token is chosen from them, and what is told of it."""


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
        with standing_in(bank, sides, rank, dtype):
            for length in NUM_TOKENS:
                if length <= max_tokens:
                    yield plan(KEY, 0, length)


@contextmanager
def standing_in(bank: LoraBank, sides: "SideBank | None", rank: int, dtype: torch.dtype) -> Iterator[None]:
    """While this is open, there is an adapter of zeros, `KEY`, of this rank at all modules."""
    num_pages = bank.layout.num_pages(rank)
    pages = torch.zeros(num_pages, bank.layout.page, dtype=dtype)
    bank.install(KEY, range(num_pages), Slab(HostPages((pages,)), (rank,) * len(bank.layout.places)))
    if sides is not None:
        sides.stand_in(KEY)
    try:
        yield
    finally:
        bank.remove(KEY)
        if sides is not None:
            sides.remove(KEY)


@dataclass(frozen=True, slots=True)
class Largest:
    """What bounds the steps of an engine."""

    max_tokens: int
    """Of a step."""
    max_requests: int
    """That run at the same time."""
    max_model_len: int
    num_drafts: int
    """Tokens that are drafted for a request; 0: none."""

    @property
    def num_rows(self) -> int:
        """Requests in the largest step: those that answer, a prompt that is scored, and another one."""
        return num_running(self.max_requests, self.max_tokens) + 2

    @property
    def num_blocks(self) -> int:
        """KV blocks that these steps name."""
        return num_blocks_for(self.max_tokens)

    def steps(self, adapter: AdapterKey | None) -> Iterator[StepPlan]:
        """Yield the steps of which one takes the most memory beside the weights.

        The first is one prompt, whose embedding is wanted. In the second as many requests answer as may run, each choosing by all
        that it can ask for and telling the most, one of them after the longest context; of a prompt as many tokens are
        scored as a step scores; and the rest are another prompt's. Several name the same blocks of KV, in which nothing is kept.
        """
        length = min(self.max_tokens, self.max_model_len)
        yield plan(adapter, 0, length, pooling=Pooling(PoolingKind.MEAN))
        made = list(self._rows(adapter))
        yield StepPlan(tuple(item for item, _ in made), gone=(REQUEST,), new=tuple(request for _, request in made))

    def _rows(self, adapter: AdapterKey | None) -> Iterator[tuple[StepItem, NewRequest]]:
        left, drafts = self.max_tokens, min(self.num_drafts, 1)
        longest = self.max_model_len - 1 - drafts
        for number in range(num_running(self.max_requests, self.max_tokens)):
            start = min(1, longest) if number else longest
            if start < 1 or left < 1 + drafts:
                break
            left -= 1 + drafts
            request = _request(f"{REQUEST}-{number}", adapter, start + 1, CHOOSY, num_prompt=start, num_drafts=drafts)
            item = StepItem(request.request_id, start, 1 + drafts, True, 0, True, (0,) * drafts)
            yield item, request
        for name, sampling in (("scored", SCORED), ("other", PLAIN)):
            most = MAX_SCORED_TOKENS if sampling is SCORED else left
            length = min(left, most, self.max_model_len)
            if length > 0:
                left -= length
                request = _request(f"{REQUEST}-{name}", adapter, length, sampling)
                num_score = length - 1 if sampling is SCORED else 0
                yield StepItem(request.request_id, 0, length, num_score=num_score), request


def _request(
    name: str,
    adapter: AdapterKey | None,
    length: int,
    sampling: SamplingParams,
    *,
    num_prompt: int | None = None,
    num_drafts: int = 0,
) -> NewRequest:
    """Return a request of which `length` tokens are known, all of a prompt if nothing else is said; its blocks are all the same one."""
    blocks = (0,) * num_blocks_for(length + num_drafts)
    return NewRequest(name, adapter, (0,) * length, length if num_prompt is None else num_prompt, sampling, blocks)


def plan(
    adapter: AdapterKey | None,
    start: int,
    length: int,
    sampling: SamplingParams = PLAIN,
    pooling: Pooling | None = None,
) -> StepPlan:
    """Return a step of one sequence: `length` tokens from position `start` on."""
    end = start + length
    blocks = tuple(range(-(-end // KV_BLOCK_TOKENS)))
    asked = NewRequest(REQUEST, adapter, (0,) * end, end, sampling, blocks, pooling=pooling)
    return StepPlan((StepItem(REQUEST, start, length),), gone=(REQUEST,), new=(asked,))
