"""LoRA of a mixed batch: y += B_a (A_a x), each token with its own adapter a.

A site is some modules that read one x (query, key and value; gate and up) and write neighbouring columns of one y; here
its modules are called slices. `items` [items, 3] cuts the batch, sorted by adapter, into (adapter, first row, rows), at
most TOKENS rows of one adapter each; rows of 0 is padding.

A row of an adapter is, for one module, row r of A and behind it column r of B times the scale. Its rows lie in pages of `page`
elements: `pages` [adapters, ..], of which each holds as many whole rows of a width as fit. `entries` [adapters, modules, 2] say
of each module the rank and the number of the first row; no other rows are read. Modules have places, in which those of a site
are neighbours: `places` [modules, 4] says which module has one, how many of its rows a page holds, and the width of a row.

That is looked up once a step, by `record`: a record says of an item at a place its rank, its first row of x and y, its rows, and
where in the pool each row of the adapter begins. So the other kernels, whose programs know their place and item, wait twice for
memory: for a record, and for all that it says. `slices` [slices, 2] says of each slice: column of y, width of y.

DEPENDENT kernels ask for records, and `shrink` and `expand` for their first weights, before they wait for the launches ahead of
them: no launch but `record` writes what they read till then.

Widths, and where a row begins in the pool, are multiples of ALIGN elements; records and `places` count in ALIGNs. Without that being
known, each weight is loaded by itself.
"""

import triton
import triton.language as tl

from lorafleet_inference.kernels.triton import dependent

ALIGN = tl.constexpr(16)
HEAD = tl.constexpr(4)
"""Numbers of a record before those of its rows."""


@triton.jit
def _aligned(table, at):
    return tl.multiple_of(tl.load(table + at), ALIGN)


@triton.jit(do_not_specialize=["num_places", "num_items", "stride", "pages_stride", "entries_stride"])
def record(
    records, stride, items, num_items, places, num_places, pages, pages_stride, page, entries, entries_stride,
    PLACES: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """records[place, item] = rank, first row of x and y, rows, nothing, where its rows begin. Grid: (items, tiles of PLACES).

    records [modules, items, stride], of which what is behind the rank of an item is left as it is. `page`: in ALIGNs.
    """
    item, place = tl.program_id(0), tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    is_place = place < num_places
    adapter, first, count = tl.load(items + item * 3), tl.load(items + item * 3 + 1), tl.load(items + item * 3 + 2)
    module = tl.load(places + place * 4, mask=is_place, other=0)
    fit = tl.load(places + place * 4 + 1, mask=is_place, other=1)
    width = tl.load(places + place * 4 + 2, mask=is_place, other=0)
    entry, is_there = entries + adapter * entries_stride + module * 2, tl.where(is_place, count, 0) > 0
    rank, first_row = tl.load(entry, mask=is_there, other=0), tl.load(entry + 1, mask=is_there, other=0)
    out = records + (place.to(tl.int64) * num_items + item) * stride
    tl.store(out, rank, mask=is_place)
    tl.store(out + 1, first + tl.zeros_like(rank), mask=is_place)
    tl.store(out + 2, count + tl.zeros_like(rank), mask=is_place)
    own_pages = pages + adapter * pages_stride
    for at in range(0, tl.max(rank, 0), RANKS):
        r = (at + tl.arange(0, RANKS))[None, :]
        is_rank, row = r < rank[:, None], first_row[:, None] + r
        number = tl.load(own_pages + row // fit[:, None], mask=is_rank, other=0)
        tl.store(out[:, None] + HEAD + r, number * page + row % fit[:, None] * width[:, None], mask=is_rank)


@triton.jit
def _record_of(records, stride, num_items, place, item):
    """Return a record, and rank, first row of x and y, and rows: asked for at once, what waits for one waits for all."""
    own = records + (place.to(tl.int64) * num_items + item) * stride
    return own, tl.load(own), tl.load(own + 1), tl.load(own + 2)


@triton.jit
def _begins(pool, own, r):
    """Return where some rows of an adapter begin. Behind its rank that is anywhere: it may be asked for before the rank is known."""
    return pool + tl.load(own + HEAD + r).to(tl.int64) * ALIGN


@triton.jit
def _shrink_tile(
    out, tokens, is_token, a, ranks, rank, total, begin, end, RANKS: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """out[token, rank] = total + a part of A x, of some ranks and of x from `begin` to `end`."""
    r, k = ranks + tl.arange(0, RANKS), tl.arange(0, STEP)
    for at in range(begin, end, STEP):
        fits = at + k < end
        some = tl.load(tokens[:, None] + (at + k)[None, :], mask=is_token[:, None] & fits[None, :], other=0.0)
        weights = tl.load(a[None, :] + (at + k)[:, None], mask=(r < rank)[None, :] & fits[:, None], other=0.0)
        total = tl.dot(some, weights, total, input_precision="ieee")
    tl.store(out[:, None] + r[None, :], total, mask=is_token[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["stride", "num_items", "place", "num_tokens"])
def shrink(
    low, x, x_stride, pool, records, stride, num_items, place, num_tokens, in_width, low_rank,
    SLICES: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
    LOOP: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """low[split, slice, token, rank] = a part of A x, in float32. Grid: (items, tiles of RANKS, SLICES * SPLITS).

    LOOP: the grid may have fewer tiles than an adapter, and a program goes on with the ones behind those.
    """
    item, tile = tl.program_id(0), tl.program_id(1) * RANKS
    slice, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    lane = tl.arange(0, TOKENS)
    own, rank, first, count = _record_of(records, stride, num_items, place + slice, item)
    a = _begins(pool, own, tile + tl.arange(0, RANKS))
    is_token = lane < count
    tokens = x + (first + lane).to(tl.int64) * x_stride
    out = low + ((split * SLICES + slice) * num_tokens + first + lane).to(tl.int64) * low_rank
    span = tl.cdiv(tl.cdiv(in_width, SPLITS), STEP) * STEP
    begin, end = split * span, min(split * span + span, in_width)
    total, start = tl.zeros((TOKENS, RANKS), tl.float32), begin
    if DEPENDENT:
        here, is_rank = begin + tl.arange(0, STEP), tile + tl.arange(0, RANKS) < rank
        weights = tl.load(a[None, :] + here[:, None], mask=is_rank[None, :] & (here < end)[:, None], other=0.0)
        dependent.begin()
        fits = (lane < tl.where(tile < rank, count, 0))[:, None] & (here < end)[None, :]
        total = tl.dot(
            tl.load(tokens[:, None] + here[None, :], mask=fits, other=0.0), weights, total, input_precision="ieee"
        )
        start = begin + STEP
    if LOOP:
        for ranks in range(tile, rank, tl.num_programs(1) * RANKS):
            if ranks > tile:
                a = _begins(pool, own, ranks + tl.arange(0, RANKS))
                if DEPENDENT:
                    total, start = tl.zeros((TOKENS, RANKS), tl.float32), begin
            _shrink_tile(out, tokens, is_token, a, ranks, rank, total, start, end, RANKS, STEP)
    elif tile < rank:
        _shrink_tile(out, tokens, is_token, a, tile, rank, total, start, end, RANKS, STEP)


@triton.jit
def _sum_of_parts(low, token, low_rank, parts, is_token, r, rank, SPLITS: tl.constexpr):
    """Return A x of some ranks."""
    fits = is_token & (r < rank)[None, :]
    total = tl.load(low + token[:, None] * low_rank + r[None, :], mask=fits, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(low + (token + split * parts)[:, None] * low_rank + r[None, :], mask=fits, other=0.0)
    return total


@triton.jit
def _add_columns(y, out, is_token, small, weights, is_column):
    """Add B A x to some columns of y."""
    fits = is_token & is_column
    old = tl.load(out, mask=fits, other=0.0).to(tl.float32)
    done = tl.dot(small.to(weights.dtype), weights, old, input_precision="ieee")
    tl.store(out, done.to(y.dtype.element_ty), mask=fits)


@triton.jit(do_not_specialize=["stride", "num_items", "place", "num_tokens"])
def expand(
    y, y_stride, low, pool, records, stride, num_items, place, slices, num_tokens, in_width, low_rank,
    SLICES: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """y[token, column] += B low. Grid: (items, tiles of COLUMNS columns of the widest slice, SLICES).

    A program looks up once where its rows lie and then streams through its columns, WIDTH at a time; COLUMNS is a multiple of WIDTH.
    Of an adapter with more than RANKS ranks it comes through them again for each further RANKS.
    """
    item, begin, slice = tl.program_id(0), tl.program_id(1) * COLUMNS, tl.program_id(2)
    lane, n = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    own, rank, first, count = _record_of(records, stride, num_items, place + slice, item)
    column_of_y, width = _aligned(slices, slice * 2), _aligned(slices, slice * 2 + 1)
    b = _begins(pool, own, tl.arange(0, RANKS))
    end = tl.minimum(begin + COLUMNS, width)
    is_token = (lane < count)[:, None]
    out = y + (first + lane)[:, None].to(tl.int64) * y_stride + column_of_y
    token, parts = (slice * num_tokens + first + lane).to(tl.int64), (num_tokens * SLICES).to(tl.int64)
    if DEPENDENT:
        r, here = tl.arange(0, RANKS), (begin + n)[None, :]
        early = tl.load(b[:, None] + in_width + here, mask=(r < rank)[:, None] & (here < width), other=0.0)
        dependent.begin()
    if (rank == 0) | (begin >= width):
        return
    start = begin
    if DEPENDENT:
        small = _sum_of_parts(low, token, low_rank, parts, is_token, r, rank, SPLITS)
        _add_columns(y, out + here, is_token, small, early, here < width)
        start = begin + WIDTH
    for at in range(0, rank, RANKS):
        r = at + tl.arange(0, RANKS)
        if at > 0:
            tl.debug_barrier()  # what was stored to y is read again, perhaps by other threads
            b = _begins(pool, own, r)
            if DEPENDENT:
                start = begin
        small = _sum_of_parts(low, token, low_rank, parts, is_token, r, rank, SPLITS)
        for column in range(start, end, WIDTH):
            here = (column + n)[None, :]
            weights = tl.load(b[:, None] + in_width + here, mask=(r < rank)[:, None] & (here < width), other=0.0)
            _add_columns(y, out + here, is_token, small, weights, here < width)


@triton.jit(do_not_specialize=["stride", "num_items", "place"])
def both(
    y, y_stride, x, x_stride, pool, records, stride, num_items, place, slices, in_width,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Shrink and expand in one launch; each program computes A x anew. RANKS: no rank of the site is larger.

    Grid: (items, tiles of COLUMNS columns of the widest slice, slices). COLUMNS is a multiple of WIDTH.
    """
    item, begin, slice = tl.program_id(0), tl.program_id(1) * COLUMNS, tl.program_id(2)
    lane, r, k, n = tl.arange(0, TOKENS), tl.arange(0, RANKS), tl.arange(0, STEP), tl.arange(0, WIDTH)
    own, rank, first, count = _record_of(records, stride, num_items, place + slice, item)
    column_of_y, width = _aligned(slices, slice * 2), _aligned(slices, slice * 2 + 1)
    rows = _begins(pool, own, r)
    is_token, is_rank = (lane < count)[:, None], r < rank
    a = rows[None, :]
    if DEPENDENT:  # a first tile of A until then would take more registers than there are
        dependent.begin()
    if (rank == 0) | (begin >= width):
        return
    tokens = x + (first + lane)[:, None].to(tl.int64) * x_stride
    low = tl.zeros((TOKENS, RANKS), tl.float32)
    for at in range(0, in_width, STEP):
        fits = at + k < in_width
        some = tl.load(tokens + (at + k)[None, :], mask=is_token & fits[None, :], other=0.0)
        weights = tl.load(a + (at + k)[:, None], mask=is_rank[None, :] & fits[:, None], other=0.0)
        low = tl.dot(some, weights, low, input_precision="ieee")
    b = rows[:, None] + in_width
    out = y + (first + lane)[:, None].to(tl.int64) * y_stride + column_of_y
    for at in range(begin, tl.minimum(begin + COLUMNS, width), WIDTH):
        here = (at + n)[None, :]
        weights = tl.load(b + here, mask=is_rank[:, None] & (here < width), other=0.0)
        _add_columns(y, out + here, is_token, low, weights, here < width)
