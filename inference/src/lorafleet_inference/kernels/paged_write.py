"""Writes keys or values of the tokens of a step to their pages: one copy of each head's row, by threads that take tokens in turn."""

from typing import Any

from numba import cfunc

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels.pointers import float32_at, int64_at, take_next

P = KV_BLOCK_TOKENS
BLOCK_TOKENS = 16
# What a call is given, in order; widths and strides in elements.
(TASK, TOKENS, GROUPS, WIDTH, SOURCE, GROUP_STRIDE, TOKEN_STRIDE, PAGES, SLOTS) = range(9)


@cfunc("void(CPointer(int64))", cache=True)
def write_float32(p: Any) -> None:
    """Entry: source [groups, tokens, width] to pages [blocks, groups, P, width], the token t to slot SLOTS[t]."""
    width, groups = p[WIDTH], p[GROUPS]
    slots = int64_at(p[SLOTS])
    while True:
        begin = take_next(int64_at(p[TASK])) * BLOCK_TOKENS
        if begin >= p[TOKENS]:
            return
        for token in range(begin, min(begin + BLOCK_TOKENS, p[TOKENS])):
            block, offset = slots[token] // P, slots[token] % P
            for group in range(groups):
                row = float32_at(p[SOURCE] + 4 * (group * p[GROUP_STRIDE] + token * p[TOKEN_STRIDE]))
                page = float32_at(p[PAGES] + 4 * ((block * groups + group) * P + offset) * width)
                for i in range(width):
                    page[i] = row[i]
