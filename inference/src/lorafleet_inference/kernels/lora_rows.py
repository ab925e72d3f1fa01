"""LoRA of single tokens, straight from the rows of the adapter pool.

A row of the pool holds, for each module, row r of A and after it column r of B. A token's delta is the sum over its
adapter's rows of (A_r . x) B_r, so each row is read once, from its beginning to its end. Reading is what it costs: what
the next rows need is fetched while these are computed. Threads take the tokens in turn.
"""

from typing import Any

import numpy as np
from numba import cfunc, njit

from lorafleet_inference.kernels.pointers import float32_at, int64_at, prefetch, take_next

FAST = {"reassoc", "contract", "nsz", "arcp"}
F32 = np.float32
# What a call is given, in order. Of token i of `num_tokens`: its row in x and y, its adapter. Of adapter a and this
# module: its rank. Row r of adapter a lies in pool row `pool_rows[a * max_rank + r]`.
(TASK, NUM_TOKENS, IN_WIDTH, OUT_WIDTH, POOL, POOL_WIDTH, COLUMN, X, Y, TOKEN_ROWS, TOKEN_ADAPTERS, RANKS, POOL_ROWS,
 MAX_RANK) = range(14)  # fmt: skip


@njit(fastmath=FAST)
def _four(x: Any, y: Any, rows: Any, in_width: int, out_width: int) -> None:
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
def _one(x: Any, y: Any, row: int, in_width: int, out_width: int) -> None:
    a = float32_at(row)
    s = F32(0)
    for i in range(in_width):
        s += x[i] * a[i]
    for i in range(in_width, in_width + out_width):
        y[i - in_width] += s * a[i]


@njit
def _row(base: int, rows: Any, r: int, row_bytes: int) -> int:
    return base + rows[r] * row_bytes


@cfunc("void(CPointer(int64))", cache=True)
def lora_rows_float32(p: Any) -> None:
    """Entry for float32."""
    in_width, out_width, row_bytes = p[IN_WIDTH], p[OUT_WIDTH], 4 * p[POOL_WIDTH]
    base, used_bytes = p[POOL] + 4 * p[COLUMN], 4 * (in_width + out_width)
    token_rows, adapters, ranks = int64_at(p[TOKEN_ROWS]), int64_at(p[TOKEN_ADAPTERS]), int64_at(p[RANKS])
    while True:
        task = take_next(int64_at(p[TASK]))
        if task >= p[NUM_TOKENS]:
            return
        x = float32_at(p[X] + 4 * token_rows[task] * in_width)
        y = float32_at(p[Y] + 4 * token_rows[task] * out_width)
        rank = ranks[adapters[task]]
        rows = int64_at(p[POOL_ROWS] + 8 * adapters[task] * p[MAX_RANK])
        fours = rank // 4 * 4
        for r in range(0, fours, 4):
            for after in range(r + 4, min(r + 8, rank)):
                ahead = _row(base, rows, after, row_bytes)
                for offset in range(0, used_bytes, 64):
                    prefetch(ahead + offset)
            four = (
                _row(base, rows, r, row_bytes),
                _row(base, rows, r + 1, row_bytes),
                _row(base, rows, r + 2, row_bytes),
                _row(base, rows, r + 3, row_bytes),
            )
            _four(x, y, four, in_width, out_width)
        for r in range(fours, rank):
            _one(x, y, _row(base, rows, r, row_bytes), in_width, out_width)
