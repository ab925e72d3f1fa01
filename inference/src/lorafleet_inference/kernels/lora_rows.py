"""LoRA of a mixed batch, straight from the rows of the adapter pool.

A row holds, for one module, row r of A and behind it column r of B. A token's delta is the sum over its adapter's rows of
(A_r . x) B_r, so each row is read once for up to BLOCK_TOKENS tokens, from its beginning to its end. Where an adapter has
one token, reading is what it costs: what the next rows need is fetched while these are computed. Threads take the blocks in
turn.
"""

from typing import Any

import numpy as np
from numba import cfunc, njit

from lorafleet_inference.kernels.pointers import float32_at, int64_at, prefetch, take_next

FAST = {"reassoc", "contract", "nsz", "arcp"}
F32 = np.float32
BLOCK_TOKENS = 16
# What a call is given, in order. Block i: BEGINS[i] is the row in x and y of its first token, then its number of tokens and
# their adapter. Of each adapter at this module: its rank, and in ROWS the address of where its rows begin, in elements of POOL.
# A row of y has Y_WIDTH elements, of which the first OUT_WIDTH are the module's.
(TASK, NUM_BLOCKS, IN_WIDTH, OUT_WIDTH, POOL, X, Y, BEGINS, COUNTS, ADAPTERS, RANKS, ROWS, Y_WIDTH) = range(13)


@njit(fastmath=FAST)
def _four_tokens(x: int, y: int, rows: Any, in_width: int, out_width: int, y_width: int) -> None:
    """Four rows for four tokens: sixteen products for eight values read."""
    a, b, c, d = float32_at(rows[0]), float32_at(rows[1]), float32_at(rows[2]), float32_at(rows[3])
    x0, x1 = float32_at(x), float32_at(x + 4 * in_width)
    x2, x3 = float32_at(x + 8 * in_width), float32_at(x + 12 * in_width)
    a0 = b0 = c0 = d0 = a1 = b1 = c1 = d1 = a2 = b2 = c2 = d2 = a3 = b3 = c3 = d3 = F32(0)
    for i in range(in_width):
        a0 += x0[i] * a[i]
        b0 += x0[i] * b[i]
        c0 += x0[i] * c[i]
        d0 += x0[i] * d[i]
        a1 += x1[i] * a[i]
        b1 += x1[i] * b[i]
        c1 += x1[i] * c[i]
        d1 += x1[i] * d[i]
        a2 += x2[i] * a[i]
        b2 += x2[i] * b[i]
        c2 += x2[i] * c[i]
        d2 += x2[i] * d[i]
        a3 += x3[i] * a[i]
        b3 += x3[i] * b[i]
        c3 += x3[i] * c[i]
        d3 += x3[i] * d[i]
    y0, y1 = float32_at(y), float32_at(y + 4 * y_width)
    y2, y3 = float32_at(y + 8 * y_width), float32_at(y + 12 * y_width)
    for i in range(in_width, in_width + out_width):
        y0[i - in_width] += a0 * a[i] + b0 * b[i] + c0 * c[i] + d0 * d[i]
        y1[i - in_width] += a1 * a[i] + b1 * b[i] + c1 * c[i] + d1 * d[i]
        y2[i - in_width] += a2 * a[i] + b2 * b[i] + c2 * c[i] + d2 * d[i]
        y3[i - in_width] += a3 * a[i] + b3 * b[i] + c3 * c[i] + d3 * d[i]


@njit(fastmath=FAST)
def _one_token(x: Any, y: Any, rows: Any, in_width: int, out_width: int) -> None:
    """Four rows at once, so that y is read and written a quarter as often."""
    a, b, c, d = float32_at(rows[0]), float32_at(rows[1]), float32_at(rows[2]), float32_at(rows[3])
    s0, s1, s2, s3 = F32(0), F32(0), F32(0), F32(0)
    for i in range(in_width):
        s0 += x[i] * a[i]
        s1 += x[i] * b[i]
        s2 += x[i] * c[i]
        s3 += x[i] * d[i]
    for i in range(in_width, in_width + out_width):
        y[i - in_width] += s0 * a[i] + s1 * b[i] + s2 * c[i] + s3 * d[i]


@njit(fastmath=FAST)
def _one_row(x: Any, y: Any, row: int, in_width: int, out_width: int) -> None:
    a = float32_at(row)
    s = F32(0)
    for i in range(in_width):
        s += x[i] * a[i]
    for i in range(in_width, in_width + out_width):
        y[i - in_width] += s * a[i]


@njit
def _row(base: int, rows: Any, r: int) -> int:
    return base + 4 * rows[r]


@njit
def _block(x: int, y: int, count: int, rank: int, base: int, rows: Any, widths: Any) -> None:
    """All rows of an adapter for neighbouring tokens; x and y are the addresses of the first one's."""
    in_width, out_width, y_width = widths
    x_bytes, y_bytes = 4 * in_width, 4 * y_width
    fours, in_fours = rank // 4 * 4, count // 4 * 4
    for r in range(0, fours, 4):
        for after in range(r + 4, min(r + 8, rank)):
            ahead = _row(base, rows, after)
            for offset in range(0, x_bytes + 4 * out_width, 64):
                prefetch(ahead + offset)
        four = (
            _row(base, rows, r),
            _row(base, rows, r + 1),
            _row(base, rows, r + 2),
            _row(base, rows, r + 3),
        )
        for t in range(0, in_fours, 4):
            _four_tokens(x + t * x_bytes, y + t * y_bytes, four, in_width, out_width, y_width)
        for t in range(in_fours, count):
            _one_token(float32_at(x + t * x_bytes), float32_at(y + t * y_bytes), four, in_width, out_width)
    for r in range(fours, rank):
        row = _row(base, rows, r)
        for t in range(count):
            _one_row(float32_at(x + t * x_bytes), float32_at(y + t * y_bytes), row, in_width, out_width)


@cfunc("void(CPointer(int64))", cache=True)
def lora_rows_float32(p: Any) -> None:
    """Entry for float32."""
    in_width, out_width, y_width = p[IN_WIDTH], p[OUT_WIDTH], p[Y_WIDTH]
    begins, counts = int64_at(p[BEGINS]), int64_at(p[COUNTS])
    adapters, ranks, rows = int64_at(p[ADAPTERS]), int64_at(p[RANKS]), int64_at(p[ROWS])
    while True:
        task = take_next(int64_at(p[TASK]))
        if task >= p[NUM_BLOCKS]:
            return
        adapter = adapters[task]
        _block(
            p[X] + 4 * begins[task] * in_width,
            p[Y] + 4 * begins[task] * y_width,
            counts[task],
            ranks[adapter],
            p[POOL],
            int64_at(rows[adapter]),
            (in_width, out_width, y_width),
        )
