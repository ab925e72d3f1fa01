"""Attention of one token each of many sequences, straight over the pages that hold their keys and values.

Axes: B sequences, H query heads, G key-value heads, R = H / G, D width of keys, E of values, P positions of a page,
M pages of the longest sequence. Pages are [num_blocks, G, P, D]: those of one block lie together, so memory is read in
its order; what the page after this one needs is fetched while this one is computed, because reading is what it costs.
Of pages in 8 bits (`fp8_pages.py`), scores and weights are multiplied with the factors of rows.

The work is cut into tasks, each some key-value heads of one sequence, which threads take in turn.
"""

from typing import Any

import numpy as np
from numba import cfunc, njit

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels.fp8_pages import POISON
from lorafleet_inference.kernels.pointers import (
    bfloat16_at,
    float32_at,
    fp8_at,
    int32_at,
    int64_at,
    load,
    power_of_two,
    prefetch,
    take_next,
)

P = KV_BLOCK_TOKENS
FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered; infinities keep their meaning."""
F32 = np.float32
LOWEST = F32(-3.0e38)

# What a call is given, in order; from QUERY on mostly addresses, 0 where there is none.
(TASK, THREAD, HEADS, TOKENS, KEY_WIDTH, VALUE_WIDTH, GROUPS, SEQUENCES, TABLE_WIDTH, WINDOW, SPANS, SPAN_GROUPS, QUERY,
 KEYS, VALUES, OUT, TABLES, ROWS, LASTS, FACTORS, SINKS, KEY_BIAS, BIAS_WIDTH, SCRATCH, SCRATCH_FLOATS) = range(25)  # fmt: skip


def scratch_floats(span_heads: int, table_width: int, key_width: int, value_width: int) -> int:
    """Return the float32 that one thread needs: weights of its heads, a row of bits, queries, sums."""
    return span_heads * (table_width * P + key_width + value_width) + table_width * P


@njit(fastmath=FAST)
def _scores(query: Any, page: Any, width: int, out: Any, next_page: int, page_bytes: int) -> None:
    """Dot products of one query with the keys of a page: out [P]."""
    for offset in range(0, page_bytes, 64):
        prefetch(next_page + offset)
    for at in range(0, P, 4):
        a = at * width
        b, c, d = a + width, a + 2 * width, a + 3 * width
        s0, s1, s2, s3 = F32(0), F32(0), F32(0), F32(0)
        for i in range(width):
            s0 += query[i] * load(page, a + i)
            s1 += query[i] * load(page, b + i)
            s2 += query[i] * load(page, c + i)
            s3 += query[i] * load(page, d + i)
        out[at], out[at + 1], out[at + 2], out[at + 3] = s0, s1, s2, s3


@njit(fastmath=FAST)
def _add_values(weights: Any, page: Any, width: int, sums: Any, seen: Any, next_page: int, page_bytes: int) -> None:
    """Add to sums [E] the values of a page at positions seen[0] to before seen[1], each times its weight.

    The others are not touched: what lies there is nobody's, and a weight of 0 times NaN would be NaN.
    """
    for offset in range(0, page_bytes, 64):
        prefetch(next_page + offset)
    begin, end = seen
    first_four, last_four = min((begin + 3) // 4 * 4, end), max(end // 4 * 4, begin)
    for at in range(begin, first_four):
        for i in range(width):
            sums[i] += weights[at] * load(page, at * width + i)
    for at in range(max(first_four, last_four), end):
        for i in range(width):
            sums[i] += weights[at] * load(page, at * width + i)
    for at in range(first_four, last_four, 4):
        a = at * width
        b, c, d = a + width, a + 2 * width, a + 3 * width
        w0, w1, w2, w3 = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
        for i in range(width):
            sums[i] += w0 * load(page, a + i) + w1 * load(page, b + i) + w2 * load(page, c + i) + w3 * load(page, d + i)


@njit(fastmath=FAST)
def _exponentials(row: Any, bits: Any, powers: Any, begin: int, end: int, top: float) -> Any:
    """Replace row [begin, end) by exp(row - top) and return the sum; `bits` and `powers` are one scratch, by two types.

    A polynomial for the fraction, bits of the exponent for the rest: a loop that the compiler turns into vectors.
    """
    for t in range(begin, end):
        x = max((row[t] - top) * F32(1.4426950408889634), F32(-126.0))
        whole = np.floor(x + F32(0.5))
        f = x - whole
        bits[t] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        y = F32(1.535336188319500e-4)
        y = y * f + F32(1.339887440266574e-3)
        y = y * f + F32(9.618437357674640e-3)
        y = y * f + F32(5.550332471162809e-2)
        y = y * f + F32(2.402264791363012e-1)
        y = y * f + F32(6.931472028550421e-1)
        row[t] = y * f + F32(1.0)
    total = F32(0)
    for t in range(begin, end):
        row[t] *= powers[t]
        total += row[t]
    return total


@njit(fastmath=FAST)
def _cap(row: Any, begin: int, end: int, softcap: float) -> None:
    for t in range(begin, end):
        row[t] = softcap * np.tanh(row[t] / softcap)


@njit(fastmath=FAST)
def _weights(row: Any, bits: int, begin: int, end: int, has_sink: bool, sink: float) -> None:
    """Softmax over row [begin, end); all NaN where a score is not finite, which a maximum would hide."""
    top = sink if has_sink else LOWEST
    poison = F32(0)
    for t in range(begin, end):
        top = max(top, row[t])
        poison += row[t] * F32(0)
    total = _exponentials(row, int32_at(bits), float32_at(bits), begin, end, top)
    if has_sink:
        total += np.exp(sink - top)
    factor = F32(1.0) / total + poison
    for t in range(begin, end):
        row[t] *= factor


@njit(fastmath=FAST)
def _page_bytes(item: int, width: int) -> int:
    return P * (width + 1) if item == 1 else item * P * width


@njit(fastmath={"contract"})
def _multiply(row: Any, exponents: Any, begin: int, end: int) -> None:
    """Multiply elements [begin, end) of a row with the factors that exponents say; 0 says 0, the largest NaN."""
    for t in range(begin, end):
        exponent = exponents[t]
        if exponent == POISON:
            row[t] = np.float32(np.nan)
        elif exponent == 0:
            row[t] = F32(0)
        else:
            row[t] *= power_of_two(np.int32(exponent) - np.int32(127))


@njit(fastmath=FAST)
def _read_keys(p: Any, keys: Any, item: int, table: int, num_pages: int, span: Any, queries: int, weights: int) -> None:
    """Scores of all heads of a task with all pages of its sequence."""
    tables, width, groups = int64_at(p[TABLES]), p[KEY_WIDTH], p[GROUPS]
    first_group, num_groups = span
    repeats, row_floats, page_bytes = p[HEADS] // groups, p[TABLE_WIDTH] * P, _page_bytes(item, width)
    for j in range(num_pages):
        block = p[KEYS] + (tables[table + j] * groups + first_group) * page_bytes
        after = p[KEYS] + (tables[table + min(j + 1, num_pages - 1)] * groups + first_group) * page_bytes
        for h in range(num_groups * repeats):
            page = h // repeats * page_bytes
            query, scores = float32_at(queries + 4 * h * width), float32_at(weights + 4 * (h * row_floats + j * P))
            _scores(query, keys(block + page), width, scores, after + page, page_bytes if h % repeats == 0 else 0)
            if item == 1:
                _multiply(scores, fp8_at(block + page + P * width), 0, P)


@njit(fastmath=FAST)
def _read_values(p: Any, values: Any, item: int, table: int, seen: Any, span: Any, weights: int, sums: int) -> None:
    """Sums of values of all heads of a task over positions seen[0] to before seen[1] of the pages of its sequence."""
    tables, width, groups = int64_at(p[TABLES]), p[VALUE_WIDTH], p[GROUPS]
    first_group, num_groups = span
    repeats, row_floats, page_bytes = p[HEADS] // groups, p[TABLE_WIDTH] * P, _page_bytes(item, width)
    begin, end = seen
    num_pages = (end + P - 1) // P
    for j in range(num_pages):
        part = (max(begin - j * P, 0), min(end - j * P, P))
        block = p[VALUES] + (tables[table + j] * groups + first_group) * page_bytes
        after = p[VALUES] + (tables[table + min(j + 1, num_pages - 1)] * groups + first_group) * page_bytes
        for h in range(num_groups * repeats):
            page = h // repeats * page_bytes
            some, total = float32_at(weights + 4 * (h * row_floats + j * P)), float32_at(sums + 4 * h * width)
            ahead = page_bytes if h % repeats == 0 else 0
            if item == 1:
                _multiply(some, fp8_at(block + page + P * width), part[0], part[1])
            _add_values(some, values(block + page), width, total, part, after + page, ahead)


@njit(fastmath=FAST)
def _attend(p: Any, pages: Any, item: int) -> None:
    """Tasks until none is left. `pages` makes typed pointers to pages; `item` is the bytes of an element there."""
    heads, groups, span_groups = p[HEADS], p[GROUPS], p[SPAN_GROUPS]
    key_width, value_width, row_floats = p[KEY_WIDTH], p[VALUE_WIDTH], p[TABLE_WIDTH] * P
    repeats = heads // groups
    rows, lasts, factors = int64_at(p[ROWS]), int64_at(p[LASTS]), float32_at(p[FACTORS])
    weights = p[SCRATCH] + 4 * p[SCRATCH_FLOATS] * take_next(int64_at(p[THREAD]))
    bits = weights + 4 * span_groups * repeats * row_floats
    queries = bits + 4 * row_floats
    sums = queries + 4 * span_groups * repeats * key_width
    while True:
        task = take_next(int64_at(p[TASK]))
        if task >= p[SEQUENCES] * p[SPANS]:
            return
        sequence, first_group = task // p[SPANS], task % p[SPANS] * span_groups
        span = (first_group, min(span_groups, groups - first_group))
        first_head, num_heads = first_group * repeats, span[1] * repeats
        row, last = rows[sequence], lasts[sequence]
        seen = max(0, last + 1 - p[WINDOW])
        table, begin, end = sequence * p[TABLE_WIDTH] + seen // P, seen % P, last + 1 - seen // P * P
        num_pages = (end + P - 1) // P
        for h in range(num_heads):
            source = float32_at(p[QUERY] + 4 * ((first_head + h) * p[TOKENS] + row) * key_width)
            query = float32_at(queries + 4 * h * key_width)
            for i in range(key_width):
                query[i] = source[i] * factors[0]
        _read_keys(p, pages, item, table, num_pages, span, queries, weights)
        for h in range(num_heads):
            some = float32_at(weights + 4 * h * row_floats)
            if factors[1] > 0:
                _cap(some, begin, end, factors[1])
            if p[KEY_BIAS] != 0:
                bias = float32_at(p[KEY_BIAS] + 4 * ((first_head + h) * p[BIAS_WIDTH] + seen - begin))
                for t in range(begin, end):
                    some[t] += bias[t]
            has_sink = p[SINKS] != 0
            sink = float32_at(p[SINKS])[first_head + h] if has_sink else F32(0)
            _weights(some, bits, begin, end, has_sink, sink)
        for i in range(num_heads * value_width):
            float32_at(sums)[i] = F32(0)
        _read_values(p, pages, item, table, (begin, end), span, weights, sums)
        out = float32_at(p[OUT] + 4 * (row * heads + first_head) * value_width)
        for i in range(num_heads * value_width):
            out[i] = float32_at(sums)[i]


@cfunc("void(CPointer(int64))", cache=True)
def decode_float32(p: Any) -> None:
    """Entry for float32 pages."""
    _attend(p, float32_at, 4)


@cfunc("void(CPointer(int64))", cache=True)
def decode_bfloat16(p: Any) -> None:
    """Entry for bfloat16 pages."""
    _attend(p, bfloat16_at, 2)


@cfunc("void(CPointer(int64))", cache=True)
def decode_fp8(p: Any) -> None:
    """Entry for pages in 8 bits."""
    _attend(p, fp8_at, 1)
