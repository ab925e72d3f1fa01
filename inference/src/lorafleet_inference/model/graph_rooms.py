"""Which steps are captured: decode steps by their sequences, steps with prompts by their tokens. No torch, no device.

A step is computed by the smallest graph that it fits into; what it does not fill is padding. The ladders are a balance:
between two sizes a step computes what it does not need, and each size takes memory, and time at the start.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lorafleet_inference.config import KV_BLOCK_TOKENS

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Sequences of a captured decode step; more are computed without one."""
NUM_ITEMS = (4, 16, 64, 256)
"""Items of LoRA, where the step has so many rows."""
PROMPT_SIZES = (64, 128, 192, 256, 384, 512, 640, 768, 896, 1024)
"""Tokens of a captured step with prompts. With more the device has so much to do that it does not wait for Python."""
NUM_ALONE = 8
"""Sequences of a step without any that decodes."""
NUM_BESIDE = (32, SIZES[-1])
"""Sequences of a step with prompts and with some that decode."""
ITEM_TOKENS = 16
"""Of one item of LoRA, in captured steps."""
PIECE_TOKENS = 128
"""A prompt is attended in pieces of so many tokens at most, so that few programs are started for tokens that are not there."""
INT_BYTES = 4
RECORD_HEAD, RECORD_RANKS = 4, 16
"""Numbers of what is looked up once a step of an adapter at a module, before those of its ranks, and of how many ranks at least."""


@dataclass(frozen=True, slots=True, order=True)
class DecodeRoom:
    """The size of a captured step of one token each."""

    num_rows: int
    num_items: int
    """Of LoRA; 0: no adapters."""
    has_sides: bool = False
    """Whether head, embedding and experts may have LoRA."""
    has_affine: bool = False
    """Whether outputs of linear modules may be scaled and shifted."""


@dataclass(frozen=True, slots=True, order=True)
class PromptRoom:
    """The size of a captured step with prompts."""

    num_tokens: int
    num_rows: int
    """Sequences, and rows of logits."""
    has_decodes: bool
    """Whether some may have one token."""
    num_items: int
    """Of LoRA; 0: no adapters."""

    @property
    def num_pieces(self) -> int:
        """Return how many pieces prompts of so many tokens, in so many sequences, can have."""
        return self.num_tokens // PIECE_TOKENS + self.num_rows


def decode_sizes(max_requests: int) -> list[int]:
    """Return how many sequences the captured decode steps have, ascending."""
    return [size for size in SIZES if size < max_requests] + [min(max_requests, SIZES[-1])]


def decode_rooms(max_requests: int, *, has_lora: bool, has_sides: bool, has_affine: bool) -> Iterator[DecodeRoom]:
    """Yield the decode steps that are captured. What few adapters have, has the largest number of items alone."""
    for size in decode_sizes(max_requests):
        rooms = {min(size, most) for most in NUM_ITEMS} if has_lora else set[int]()
        for num_items in (0, *sorted(rooms)):
            yield DecodeRoom(size, num_items)
        if rooms and has_sides:
            yield DecodeRoom(size, max(rooms), has_sides=True)
        if rooms and has_affine:
            yield DecodeRoom(size, max(rooms), has_sides=has_sides, has_affine=True)


def prompt_rooms(max_tokens: int, max_requests: int, *, has_lora: bool) -> list[PromptRoom]:
    """Return the steps with prompts that are captured, in the order in which a step looks for one. `max_tokens`: of a step."""
    most = min(max_tokens, PROMPT_SIZES[-1])
    made: set[PromptRoom] = set()
    for size in (*(one for one in PROMPT_SIZES if one < most), most):
        for num_rows, has_decodes in ((NUM_ALONE, False), *((beside, True) for beside in NUM_BESIDE)):
            rows = min(num_rows, size, max_requests)
            made.add(PromptRoom(size, rows, has_decodes, 0))
            if has_lora:
                made.add(PromptRoom(size, rows, has_decodes, size // ITEM_TOKENS + rows))
    return sorted(made)


def prompt_room(
    rooms: list[PromptRoom], num_tokens: int, num_rows: int, num_items: int, *, has_decodes: bool
) -> PromptRoom | None:
    """Return the room of a step; None where it is too large for any.

    `num_rows`: its sequences, or its rows of logits if these are more.
    """
    size = min((one.num_tokens for one in rooms if one.num_tokens >= num_tokens), default=0)
    for one in rooms:
        if (
            one.num_tokens == size
            and one.num_rows >= num_rows
            and one.has_decodes >= has_decodes
            and bool(one.num_items) == bool(num_items)
            and one.num_items >= num_items
        ):
            return one
    return None


def record_bytes(num_modules: int, max_rank: int) -> int:
    """Return the bytes of what is looked up of one item of LoRA, as `kernels/triton/lora.py` says."""
    ranks = max(RECORD_RANKS, 1 << (max_rank - 1).bit_length())
    return num_modules * (RECORD_HEAD + ranks) * INT_BYTES


def captured_bytes(
    *,
    max_requests: int,
    max_tokens: int,
    max_model_len: int,
    logit_bytes: int,
    activations: int,
    graph_bytes: int,
    item_bytes: int,
    has_sides: bool,
    has_affine: bool,
) -> int:
    """Return the bytes of a device that captured steps take, about.

    `max_tokens`: of a step; `logit_bytes`: of all logits of one row; `activations`: bytes of the largest step of `max_tokens` tokens, in
    the layers; `graph_bytes`: what CUDA keeps of one graph; `item_bytes`: of `record_bytes`.
    """
    decodes = list(decode_rooms(max_requests, has_lora=True, has_sides=has_sides, has_affine=has_affine))
    prompts = prompt_rooms(max_tokens, max_requests, has_lora=True)
    num_rows = [*(one.num_rows for one in decodes), *(one.num_rows for one in prompts)]
    num_blocks = -(-max_model_len // KV_BLOCK_TOKENS)
    tables = sum(num_rows) * num_blocks * INT_BYTES
    # graphs share the memory of what they compute, and the place of their logits
    logits = 2 * max(num_rows) * logit_bytes
    largest = max(one.num_tokens for one in prompts)
    records = item_bytes * max([*(one.num_items for one in decodes), *(one.num_items for one in prompts)])
    return len(num_rows) * graph_bytes + tables + logits + records + activations * largest // max_tokens
