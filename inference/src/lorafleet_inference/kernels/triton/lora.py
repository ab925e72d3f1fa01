"""LoRA of a mixed batch: y += B_a (A_a x), each token with its own adapter a.

A site is some modules that read one x (query, key and value; gate and up) and write neighbouring columns of one y; here
its modules are called slices. `items` [items, 3] cuts the batch, sorted by adapter, into (adapter, first row, rows), at
most TOKENS rows of one adapter each; rows of 0 is padding. `slices` [slices, 8] says of each slice: module, width of a row of
the pool, where in a row B begins, column of y, width of y, rows that a page holds, then nothing.

A row of an adapter is, for one module, row r of A and behind it column r of B times the scale. Its rows lie in pages of `page`
elements: `pages` [adapters, ..], of which each holds as many whole rows of a width as fit. `entries` [adapters, modules, 2] say
of each module the rank and the number of the first row; no other rows are read.
Widths and `page` are multiples of ALIGN elements: without that being known, each weight is loaded by itself.
"""

import triton
import triton.language as tl

ALIGN = tl.constexpr(16)


@triton.jit
def _aligned(table, at):
    return tl.multiple_of(tl.load(table + at), ALIGN)


@triton.jit
def _item_of(items, item):
    """Return adapter, first row and rows of an item, asked for at once: what waits for one then waits for all."""
    return tl.load(items + item * 3), tl.load(items + item * 3 + 1), tl.load(items + item * 3 + 2)


@triton.jit
def _entry_of(entries, entries_stride, adapter, module):
    """Return rank and first row of an adapter at a module."""
    entry = entries + adapter * entries_stride + module * 2
    return tl.load(entry), tl.load(entry + 1)


@triton.jit
def _rows_of(pages, pages_stride, page, adapter, rows, fit, row_width):
    """Return where in the pool some rows of an adapter begin."""
    own = tl.load(pages + adapter * pages_stride + rows // fit).to(tl.int64)
    return own * page + (rows % fit) * row_width


@triton.jit(do_not_specialize=["pages_stride", "entries_stride", "num_tokens"])
def shrink(
    low, x, x_stride, pool, page, items, pages, pages_stride, entries, entries_stride, slices, num_tokens, in_width,
    low_rank,
    SLICES: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """low[split, slice, token, rank] = a part of A x, in float32. Grid: (items, tiles of RANKS, SLICES * SPLITS)."""
    item, tile = tl.program_id(0), tl.program_id(1)
    slice, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    adapter, first, count = _item_of(items, item)
    module, fit = tl.load(slices + slice * 8).to(tl.int32), tl.load(slices + slice * 8 + 5).to(tl.int32)
    row_width = _aligned(slices, slice * 8 + 1)
    if count == 0:
        return
    rank, first_row = _entry_of(entries, entries_stride, adapter, module)
    if tile * RANKS >= rank:
        return
    lane, r, k = tl.arange(0, TOKENS), tile * RANKS + tl.arange(0, RANKS), tl.arange(0, STEP)
    is_token, is_rank = (lane < count)[:, None], r < rank
    own = first_row + tl.where(is_rank, r, 0)
    a = pool + _rows_of(pages, pages_stride, page, adapter, own, fit, row_width)[None, :]
    tokens = x + (first + lane)[:, None].to(tl.int64) * x_stride
    total = tl.zeros((TOKENS, RANKS), tl.float32)
    span = tl.cdiv(tl.cdiv(in_width, SPLITS), STEP) * STEP
    for at in range(split * span, min(split * span + span, in_width), STEP):
        fits = at + k < in_width
        some = tl.load(tokens + (at + k)[None, :], mask=is_token & fits[None, :], other=0.0)
        weights = tl.load(a + (at + k)[:, None], mask=is_rank[None, :] & fits[:, None], other=0.0)
        total = tl.dot(some, weights, total, input_precision="ieee")
    out = low + ((split * SLICES + slice) * num_tokens + first + lane)[:, None].to(tl.int64) * low_rank + r[None, :]
    tl.store(out, total, mask=is_token & is_rank[None, :])


@triton.jit(do_not_specialize=["pages_stride", "entries_stride", "num_tokens"])
def expand(
    y, y_stride, low, pool, page, items, pages, pages_stride, entries, entries_stride, slices, num_tokens, low_rank,
    SLICES: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """y[token, column] += B low. Grid: (items, tiles of COLUMNS columns of the widest slice, SLICES).

    A program looks up once where its rows lie and then streams through its columns, WIDTH at a time; COLUMNS is a multiple of WIDTH.
    Of an adapter with more than RANKS ranks it comes through them again for each further RANKS.
    """
    item, begin, slice = tl.program_id(0), tl.program_id(1) * COLUMNS, tl.program_id(2)
    adapter, first, count = _item_of(items, item)
    module, fit = tl.load(slices + slice * 8).to(tl.int32), tl.load(slices + slice * 8 + 5).to(tl.int32)
    row_width, width = _aligned(slices, slice * 8 + 1), _aligned(slices, slice * 8 + 4)
    if (count == 0) | (begin >= width):
        return
    rank, first_row = _entry_of(entries, entries_stride, adapter, module)
    lane, n = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    is_token = (lane < count)[:, None]
    out = y + (first + lane)[:, None].to(tl.int64) * y_stride + _aligned(slices, slice * 8 + 3)
    behind = pool + _aligned(slices, slice * 8 + 2)
    end = tl.minimum(begin + COLUMNS, width.to(tl.int32))
    for at in range(0, rank, RANKS):
        if at > 0:
            tl.debug_barrier()  # what was stored to y is read again, perhaps by other threads
        r = at + tl.arange(0, RANKS)
        is_rank = r < rank
        own = first_row + tl.where(is_rank, r, 0)
        b = behind + _rows_of(pages, pages_stride, page, adapter, own, fit, row_width)[:, None]
        small = tl.zeros((TOKENS, RANKS), tl.float32)
        for split in tl.static_range(SPLITS):
            token = ((split * SLICES + slice) * num_tokens + first + lane)[:, None].to(tl.int64)
            small += tl.load(low + token * low_rank + r[None, :], mask=is_token & is_rank[None, :], other=0.0)
        for column in range(begin, end, WIDTH):
            here = (column + n)[None, :]
            weights = tl.load(b + here, mask=is_rank[:, None] & (here < width), other=0.0)
            fits = is_token & (here < width)
            old = tl.load(out + here, mask=fits, other=0.0).to(tl.float32)
            done = tl.dot(small.to(weights.dtype), weights, old, input_precision="ieee")
            tl.store(out + here, done.to(y.dtype.element_ty), mask=fits)


@triton.jit(do_not_specialize=["pages_stride", "entries_stride"])
def both(
    y, y_stride, x, x_stride, pool, page, items, pages, pages_stride, entries, entries_stride, slices, in_width,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Shrink and expand in one launch; each program computes A x anew. RANKS: no rank of the site is larger.

    Grid: (items, tiles of COLUMNS columns of the widest slice, slices). COLUMNS is a multiple of WIDTH.
    """
    item, begin, slice = tl.program_id(0), tl.program_id(1) * COLUMNS, tl.program_id(2)
    adapter, first, count = _item_of(items, item)
    module, fit = tl.load(slices + slice * 8).to(tl.int32), tl.load(slices + slice * 8 + 5).to(tl.int32)
    row_width, width = _aligned(slices, slice * 8 + 1), _aligned(slices, slice * 8 + 4)
    if (count == 0) | (begin >= width):
        return
    rank, first_row = _entry_of(entries, entries_stride, adapter, module)
    if rank == 0:
        return
    lane, r, k, n = tl.arange(0, TOKENS), tl.arange(0, RANKS), tl.arange(0, STEP), tl.arange(0, WIDTH)
    is_token, is_rank = (lane < count)[:, None], r < rank
    own = first_row + tl.where(is_rank, r, 0)
    rows = pool + _rows_of(pages, pages_stride, page, adapter, own, fit, row_width)
    a = rows[None, :]
    tokens = x + (first + lane)[:, None].to(tl.int64) * x_stride
    low = tl.zeros((TOKENS, RANKS), tl.float32)
    for at in range(0, in_width, STEP):
        fits = at + k < in_width
        some = tl.load(tokens + (at + k)[None, :], mask=is_token & fits[None, :], other=0.0)
        weights = tl.load(a + (at + k)[:, None], mask=is_rank[None, :] & fits[:, None], other=0.0)
        low = tl.dot(some, weights, low, input_precision="ieee")
    b = rows[:, None] + _aligned(slices, slice * 8 + 2)
    out = y + (first + lane)[:, None].to(tl.int64) * y_stride + _aligned(slices, slice * 8 + 3)
    for at in range(begin, tl.minimum(begin + COLUMNS, width.to(tl.int32)), WIDTH):
        here = (at + n)[None, :]
        weights = tl.load(b + here, mask=is_rank[:, None] & (here < width), other=0.0)
        fits = is_token & (here < width)
        old = tl.load(out + here, mask=fits, other=0.0).to(tl.float32)
        done = tl.dot(low.to(weights.dtype), weights, old, input_precision="ieee")
        tl.store(out + here, done.to(y.dtype.element_ty), mask=fits)
