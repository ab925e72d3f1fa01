"""LoRA on what has a shape of its own: the output head, the input embedding, and experts. As `lora.py`, from pages of the pool.

An adapter's A and B of such a site are rows of one width each, `in_width` and `out_width`, one after the other in pages of
PAGE elements, of which each holds as many whole rows as fit: row q of a width lies in page q // (PAGE // width).
`pages` [adapters, ..] are the pages of each adapter; `entries` [adapters, sites, 4] say of each site: rank, the row where A begins, that
where B begins, each in rows of its own width, then nothing. Of experts, the rows of each follow those of the one before.

Of a token's K experts (`chosen` [tokens, K]; a number that no expert has is none), the pair (token, k) has row places[token, k]
of x and y. A program belongs to a pair, and does all pairs of its item with the same expert, if its own is the first of
them: so A and B of an expert are read once for all tokens of an adapter in the item.
"""

import triton
import triton.language as tl


@triton.jit
def _rows_at(pages, row, width, page):
    """Where in the pool some rows of a width begin, in elements."""
    fit = page // width
    return tl.load(pages + row // fit).to(tl.int64) * page + (row % fit) * width


@triton.jit
def _group(items, owners, chosen, places, num_experts, K: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr):
    """What a program works on: adapter, expert, and of each lane its row of `low`, its row of x and y, and whether there is one.

    K 0: no experts, a program belongs to an item. WIDE: the power of 2 from K on.
    """
    lane = tl.arange(0, TOKENS)
    if K == 0:
        item = tl.program_id(0)
        expert = 0
        low_row = tl.load(items + item * 3 + 1) + lane
        row = low_row
        is_row = lane < tl.load(items + item * 3 + 2)
    else:
        pair = tl.program_id(0)
        token = pair // K
        owner = tl.load(owners + token)
        item = tl.maximum(owner, 0)
        count = tl.where(owner >= 0, tl.load(items + item * 3 + 2), 0)
        expert = tl.load(chosen + pair).to(tl.int32)
        own, k = tl.load(items + item * 3 + 1) + lane, tl.arange(0, WIDE)
        fits = (lane < count)[:, None] & (k < K)[None, :]
        others = tl.load(chosen + own[:, None] * K + k[None, :], mask=fits, other=-1).to(tl.int32)
        is_same = fits & (others == expert)
        takes = tl.max(is_same.to(tl.int32), 1)
        num_before = tl.sum(tl.where(own < token, takes, 0), 0)
        takes = tl.where(num_before == 0, takes, 0)
        is_row = tl.where(expert < num_experts, takes, 0) > 0
        low_row = own * K + tl.sum(tl.where(is_same, k[None, :], 0), 1)
        row = tl.load(places + low_row, mask=is_row, other=0).to(tl.int32)
    return tl.load(items + item * 3), expert, low_row, row, is_row


@triton.jit(do_not_specialize=["pages_stride", "entries_stride", "site", "num_rows", "num_experts"])
def side_shrink(
    low, x, x_stride, pool, page, items, owners, pages, pages_stride, entries, entries_stride, site, chosen, places,
    num_experts, num_rows, in_width, low_rank,
    K: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """low[split, row, rank] = a part of A x, in float32. Grid: (items or pairs, tiles of RANKS, SPLITS)."""
    adapter, expert, low_row, row, is_row = _group(items, owners, chosen, places, num_experts, K, WIDE, TOKENS)
    if tl.max(is_row.to(tl.int32), 0) == 0:
        return
    entry = entries + adapter * entries_stride + site * 4
    rank, tile, split = tl.load(entry), tl.program_id(1), tl.program_id(2)
    if tile * RANKS >= rank:
        return
    r, k = tile * RANKS + tl.arange(0, RANKS), tl.arange(0, STEP)
    is_rank = r < rank
    rows = tl.load(entry + 1) + expert * rank + tl.where(is_rank, r, 0)
    a = pool + _rows_at(pages + adapter * pages_stride, rows, in_width, page)[None, :]
    tokens = x + row[:, None].to(tl.int64) * x_stride
    total = tl.zeros((TOKENS, RANKS), tl.float32)
    span = tl.cdiv(tl.cdiv(in_width, SPLITS), STEP) * STEP
    for at in range(split * span, min(split * span + span, in_width), STEP):
        fits = at + k < in_width
        some = tl.load(tokens + (at + k)[None, :], mask=is_row[:, None] & fits[None, :], other=0.0)
        weights = tl.load(a + (at + k)[:, None], mask=is_rank[None, :] & fits[:, None], other=0.0)
        total = tl.dot(some, weights, total, input_precision="ieee")
    out = low + (split * num_rows + low_row)[:, None].to(tl.int64) * low_rank + r[None, :]
    tl.store(out, total, mask=is_row[:, None] & is_rank[None, :])


@triton.jit(do_not_specialize=["pages_stride", "entries_stride", "site", "num_rows", "num_experts"])
def side_expand(
    y, y_stride, low, pool, page, items, owners, pages, pages_stride, entries, entries_stride, site, chosen, places,
    num_experts, num_rows, out_width, low_rank,
    K: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr, TOKENS: tl.constexpr, RANKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y[row, column] += B low. Grid: (items or pairs, tiles of WIDTH columns)."""
    adapter, expert, low_row, row, is_row = _group(items, owners, chosen, places, num_experts, K, WIDE, TOKENS)
    if tl.max(is_row.to(tl.int32), 0) == 0:
        return
    entry = entries + adapter * entries_stride + site * 4
    rank = tl.load(entry)
    if rank == 0:
        return
    n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_column = (n < out_width)[None, :]
    first = tl.load(entry + 2) + expert * rank
    total = tl.zeros((TOKENS, WIDTH), tl.float32)
    for at in range(0, rank, RANKS):
        r = at + tl.arange(0, RANKS)
        is_rank = r < rank
        b = pool + _rows_at(pages + adapter * pages_stride, first + tl.where(is_rank, r, 0), out_width, page)[:, None]
        weights = tl.load(b + n[None, :], mask=is_rank[:, None] & is_column, other=0.0)
        small = tl.zeros((TOKENS, RANKS), tl.float32)
        for split in tl.static_range(SPLITS):
            at_row = (split * num_rows + low_row)[:, None].to(tl.int64) * low_rank
            small += tl.load(low + at_row + r[None, :], mask=is_row[:, None] & is_rank[None, :], other=0.0)
        total = tl.dot(small.to(weights.dtype), weights, total, input_precision="ieee")
    out = y + row[:, None].to(tl.int64) * y_stride + n[None, :]
    fits = is_row[:, None] & is_column
    tl.store(out, (tl.load(out, mask=fits, other=0.0).to(tl.float32) + total).to(y.dtype.element_ty), mask=fits)


@triton.jit(do_not_specialize=["pages_stride", "entries_stride", "site"])
def embed(
    y, y_stride, token_ids, pool, page, items, pages, pages_stride, entries, entries_stride, site, out_width, scale,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y[token, column] += scale * B A[token's id]. A has a row of the rank's width for each id. Grid: (items, tiles of WIDTH)."""
    item, lane = tl.program_id(0), tl.arange(0, TOKENS)
    adapter, token = tl.load(items + item * 3), tl.load(items + item * 3 + 1) + lane
    is_row = lane < tl.load(items + item * 3 + 2)
    entry = entries + adapter * entries_stride + site * 4
    rank = tl.load(entry)
    if (tl.max(is_row.to(tl.int32), 0) == 0) | (rank == 0):
        return
    n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_column = (n < out_width)[None, :]
    ids = tl.load(token_ids + token, mask=is_row, other=0).to(tl.int32)
    own = pages + adapter * pages_stride
    a = pool + _rows_at(own, tl.load(entry + 1) + tl.where(is_row, ids, 0), rank, page)[:, None]
    total = tl.zeros((TOKENS, WIDTH), tl.float32)
    for at in range(0, rank, RANKS):
        r = at + tl.arange(0, RANKS)
        is_rank = r < rank
        b = pool + _rows_at(own, tl.load(entry + 2) + tl.where(is_rank, r, 0), out_width, page)[:, None]
        weights = tl.load(b + n[None, :], mask=is_rank[:, None] & is_column, other=0.0)
        small = tl.load(a + r[None, :], mask=is_row[:, None] & is_rank[None, :], other=0.0)
        total = tl.dot(small, weights, total, input_precision="ieee")
    out = y + token[:, None].to(tl.int64) * y_stride + n[None, :]
    fits = is_row[:, None] & is_column
    kept = tl.load(out, mask=fits, other=0.0).to(tl.float32) + scale * total
    tl.store(out, kept.to(y.dtype.element_ty), mask=fits)
