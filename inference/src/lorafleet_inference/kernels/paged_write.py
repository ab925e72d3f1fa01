"""Writes keys or values of the tokens of a step to their pages: each head's row once, by threads that take tokens in turn."""

from typing import Any

import numpy as np
from numba import cfunc, njit

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels.fp8_pages import POISON, ROUND_UP
from lorafleet_inference.kernels.pointers import bits_of, float32_at, fp8_at, int64_at, power_of_two, take_next

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


@njit
def _encode(row: Any, width: int, codes: Any, exponents: Any, offset: int) -> None:
    """Put a row of float32 into codes, and its exponent to exponents[offset], as `fp8_pages.py` says."""
    top = np.int64(0)
    for i in range(width):
        top = max(top, bits_of(row[i]) & 0x7FFFFFFF)
    exponent = (top + ROUND_UP) >> 23
    if exponent >= POISON - 1:
        exponents[offset] = POISON
        for i in range(width):
            codes[i] = 0
        return
    exponents[offset] = exponent
    factor = power_of_two(np.int32(127 - exponent))
    for i in range(width):
        scaled = row[i] * factor
        bits = bits_of(scaled)
        size = bits & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + (size >> 20 & 1)) >> 20) - (112 << 3)
        # the last bit of a number next to 64 is the step of codes without a leading one
        small = bits_of(abs(scaled) + np.float32(64.0)) - 0x42800000
        codes[i] = (small if size < 0x38800000 else normal) | (bits >> 24 & 128)


@cfunc("void(CPointer(int64))", cache=True)
def write_fp8(p: Any) -> None:
    """Entry: as `write_float32`, to pages of 8 bits."""
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
                page = p[PAGES] + (block * groups + group) * P * (width + 1)
                _encode(row, width, fp8_at(page + offset * width), fp8_at(page + P * width), offset)
