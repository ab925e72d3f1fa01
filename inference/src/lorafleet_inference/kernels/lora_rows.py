"""LoRA of a mixed batch, straight from the rows of the adapter pool.

A row holds, for one module, row r of A and behind it column r of B. A token's delta is the sum over its adapter's rows of
(A_r . x) B_r. Modules that read the same x are one call, and a thread takes a block of an adapter's tokens with all of them.

Where an adapter has few tokens, reading is what it costs: each row is read once, from its beginning to its end, and while four are
computed the next four are asked for, at the end of a block those of the thread's next one. With more tokens A x is
computed first, then B (A x) by tiles that stay in registers, so that y is read and written once; meanwhile x and y of the next tokens
are asked for.
"""

from typing import Any

import numpy as np
from numba import cfunc, njit

from lorafleet_inference.kernels.pointers import float32_at, int64_at, prefetch, take_next
from lorafleet_inference.kernels.vectors import (
    LANES,
    LINE,
    ROWS,
    TILE,
    TOKENS,
    add_rows,
    add_tile_of_one,
    add_tile_of_three,
    dot_rows,
    dots_of_one,
    dots_of_three,
)

FAST = {"reassoc", "contract", "nsz", "arcp"}
F32 = np.float32
FLOATS = LINE // 4
"""Of a line."""
MOST_TOKENS, LEAST_TOKENS = 48, 12
"""Of a block."""
# What a call is given, in order. Block i: BEGINS[i] is the row in x and y of its first token, then its number of tokens and
# their adapter. A task is a block and PER_TASK of the modules. A row of y has Y_WIDTH elements; LOW has
# LOW_WIDTH for each and each task of a block.
(TASK, NUM_BLOCKS, BEGINS, COUNTS, ADAPTERS, LOW, LOW_WIDTH, POOL, X, IN_WIDTH, Y, Y_WIDTH, NUM_MODULES, PER_TASK) = (
    range(14)
)
MODULES = 14
"""From here on, of each module: how many columns of y are its own, which is the first, and addresses by adapter of ranks and rows.
Rows: addresses of where each of an adapter's rows begins, in elements of POOL."""
(OUT_WIDTH, FIRST, RANKS, ROW_TABLES) = range(4)
PER_MODULE = 4


@njit
def _rows_at(base: int, rows: Any, r: int, rank: int) -> Any:
    """Addresses of four rows; the last one stands for those that are not there."""
    last = rank - 1
    return (
        base + 4 * rows[r],
        base + 4 * rows[min(r + 1, last)],
        base + 4 * rows[min(r + 2, last)],
        base + 4 * rows[min(r + 3, last)],
    )


@njit
def _behind(rows: Any, offset: int) -> Any:
    return (rows[0] + offset, rows[1] + offset, rows[2] + offset, rows[3] + offset)


@njit(fastmath=FAST)
def _factors(x: int, rows: Any, ahead: Any, in_width: int, there: int) -> Any:
    """x . row of four rows, of which the first `there` are there; zeros for the others."""
    s0, s1, s2, s3 = dot_rows(x, rows, ahead, in_width // FLOATS)
    begin = in_width // FLOATS * FLOATS
    if begin < in_width:
        own = float32_at(x)
        a, b, c, d = float32_at(rows[0]), float32_at(rows[1]), float32_at(rows[2]), float32_at(rows[3])
        for i in range(begin, in_width):
            s0 += own[i] * a[i]
            s1 += own[i] * b[i]
            s2 += own[i] * c[i]
            s3 += own[i] * d[i]
    none = F32(0)
    return s0, s1 if there > 1 else none, s2 if there > 2 else none, s3 if there > 3 else none


@njit(fastmath=FAST)
def _add(y: int, rows: Any, ahead: Any, factors: Any, out_width: int) -> None:
    add_rows(y, rows, ahead, factors, out_width // FLOATS)
    begin = out_width // FLOATS * FLOATS
    if begin < out_width:
        own = float32_at(y)
        a, b, c, d = float32_at(rows[0]), float32_at(rows[1]), float32_at(rows[2]), float32_at(rows[3])
        for i in range(begin, out_width):
            own[i] += factors[0] * a[i] + factors[1] * b[i] + factors[2] * c[i] + factors[3] * d[i]


@njit
def _few(x: int, y: int, count: int, rank: int, base: int, rows: Any, following: Any, widths: Any) -> None:
    """`following`: four rows that are read after these."""
    in_width, out_width, y_width = widths
    for r in range(0, rank, ROWS):
        four = _rows_at(base, rows, r, rank)
        ahead = _rows_at(base, rows, r + ROWS, rank) if r + ROWS < rank else following
        for t in range(count):
            to, own = y + 4 * t * y_width, x + 4 * t * in_width
            factors = _factors(own, four, ahead, in_width, rank - r)
            _add(to, _behind(four, 4 * in_width), _behind(ahead, 4 * in_width), factors, out_width)
            ahead = four  # what is here already costs nothing to ask for


@njit(fastmath=FAST)
def _lows(x: int, count: int, rank: int, base: int, rows: Any, in_width: int, low: int, low_width: int) -> None:
    """low [count, low_width] = A x; behind an odd rank is what nobody reads."""
    x_bytes, low_bytes = 4 * in_width, 4 * low_width
    threes, begin = count // TOKENS * TOKENS, in_width // LANES * LANES
    for r in range(0, rank, ROWS):
        four = _rows_at(base, rows, r, rank)
        at = low + 4 * r
        for t in range(0, threes, TOKENS):
            own, ahead = x + t * x_bytes, TOKENS * x_bytes if r == 0 and t + TOKENS < threes else 0
            dots_of_three(own, x_bytes, own + ahead, four, in_width // LANES, at + t * low_bytes, low_bytes)
        for t in range(threes, count):
            own = x + t * x_bytes
            dots_of_one(own, x_bytes, own, four, in_width // LANES, at + t * low_bytes, low_bytes)
        if begin < in_width:
            for t in range(count):
                values, sums = float32_at(x + t * x_bytes), float32_at(at + t * low_bytes)
                for k in range(ROWS):
                    row = float32_at(four[k])
                    for i in range(begin, in_width):
                        sums[k] += values[i] * row[i]


@njit(fastmath=FAST)
def _tiles(y: int, count: int, rank: int, base: int, rows: int, widths: Any, low: int, low_width: int) -> None:
    """Add B low; `rows`: address of where the rows begin."""
    in_width, out_width, y_width = widths
    y_bytes, low_bytes = 4 * y_width, 4 * low_width
    threes, end = count // TOKENS * TOKENS, out_width // TILE * TILE
    for t in range(0, threes, TOKENS):
        for column in range(0, end, TILE):
            at, b = y + t * y_bytes + 4 * column, base + 4 * (in_width + column)
            for ahead in range(TOKENS, 2 * TOKENS):
                prefetch(at + ahead * y_bytes)
                prefetch(at + ahead * y_bytes + LINE)
            add_tile_of_three(at, y_bytes, b, rows, rank, low + t * low_bytes, low_bytes)
    for t in range(threes, count):
        for column in range(0, end, TILE):
            at, b = y + t * y_bytes + 4 * column, base + 4 * (in_width + column)
            add_tile_of_one(at, y_bytes, b, rows, rank, low + t * low_bytes, low_bytes)
    if end < out_width:
        numbers = int64_at(rows)
        for t in range(count):
            own, factors = float32_at(y + t * y_bytes), float32_at(low + t * low_bytes)
            for r in range(rank):
                row, factor = float32_at(base + 4 * (numbers[r] + in_width)), factors[r]
                for i in range(end, out_width):
                    own[i] += factor * row[i]


@njit
def _first_rows(p: Any, task: int) -> Any:
    """Addresses of the rows that a task reads first; of the pool where it reads none."""
    base, parts = p[POOL], p[NUM_MODULES] // p[PER_TASK]
    if task < p[NUM_BLOCKS] * parts:
        adapter = int64_at(p[ADAPTERS])[task // parts]
        module = MODULES + PER_MODULE * (task % parts * p[PER_TASK])
        rank = int64_at(p[module + RANKS])[adapter]
        if rank > 0:
            return _rows_at(base, int64_at(int64_at(p[module + ROW_TABLES])[adapter]), 0, rank)
    return (base, base, base, base)


@njit
def _compute(p: Any, task: int, after: int) -> None:
    parts, base = p[NUM_MODULES] // p[PER_TASK], p[POOL]
    block, first = task // parts, task % parts * p[PER_TASK]
    begin, count, adapter = int64_at(p[BEGINS])[block], int64_at(p[COUNTS])[block], int64_at(p[ADAPTERS])[block]
    x, y = p[X] + 4 * begin * p[IN_WIDTH], p[Y] + 4 * begin * p[Y_WIDTH]
    for number in range(first, first + p[PER_TASK]):
        at = MODULES + PER_MODULE * number
        rank = int64_at(p[at + RANKS])[adapter]
        if rank == 0:
            continue
        rows = int64_at(p[at + ROW_TABLES])[adapter]
        widths = (p[IN_WIDTH], p[at + OUT_WIDTH], p[Y_WIDTH])
        to = y + 4 * p[at + FIRST]
        if count < TOKENS:
            following = _first_rows(p, after)
            if number + 1 < first + p[PER_TASK] and int64_at(p[at + PER_MODULE + RANKS])[adapter] > 0:
                own = int64_at(int64_at(p[at + PER_MODULE + ROW_TABLES])[adapter])
                following = _rows_at(base, own, 0, int64_at(p[at + PER_MODULE + RANKS])[adapter])
            _few(x, to, count, rank, base, int64_at(rows), following, widths)
        else:
            low_width = parts * p[LOW_WIDTH]  # other modules of the same block may be computed meanwhile
            low = p[LOW] + 4 * (begin * low_width + task % parts * p[LOW_WIDTH])
            _lows(x, count, rank, base, int64_at(rows), p[IN_WIDTH], low, low_width)
            _tiles(to, count, rank, base, rows, widths, low, low_width)


@cfunc("void(CPointer(int64))", cache=True)
def lora_rows_float32(p: Any) -> None:
    """Entry for float32. A thread has its next task before it computes one, so as to know what to ask for."""
    num_tasks = p[NUM_BLOCKS] * (p[NUM_MODULES] // p[PER_TASK])
    task = take_next(int64_at(p[TASK]))
    while task < num_tasks:
        after = take_next(int64_at(p[TASK]))
        _compute(p, task, after)
        task = after
