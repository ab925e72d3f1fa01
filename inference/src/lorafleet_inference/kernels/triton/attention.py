"""Attention over paged KV: one token a sequence (`decode`, `merge`) and several (`prefill`).

Pages: keys [blocks, G, BLOCK, D], values [blocks, G, BLOCK, E]. The HEADS query heads that share a key head are rows of
one product. Scores are kept in base 2: `scale` carries log2(e). A window counts the token itself. Sinks [H] are scores of
a key without a value; bias [H, ..] is added to the scaled scores of the key at each position. What lies in the pages at
positions that a row does not see is not read, or has no part in any product.

FP8: pages are those of `kernels/fp8_pages.py`. Scores and weights are multiplied with the factors of rows, so that codes alone
go through the products.
"""

import triton
import triton.language as tl

from lorafleet_inference.kernels.triton import fp8

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _factors(pages, place, offset, is_there, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """The factors of rows of 8 bits."""
    at = fp8.exponents_at(place, offset, BLOCK, WIDTH)
    return fp8.factors(tl.load(pages + at, mask=is_there, other=0))


@triton.jit
def _scores(
    q, keys, blocks, group, seen, bounds, at, bias, bias_stride, head, scale, softcap, num_groups,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, STEP: tl.constexpr, SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr, FP8: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Scores [rows, STEP] of the keys from `at`, the places and offsets of these, and which of them some row sees.

    `seen`: first and last position that each row sees; `bounds`: that any row sees. Without EDGE all rows see all of them.
    """
    n, d = at + tl.arange(0, STEP), tl.arange(0, PAD)
    is_there = (n >= bounds[0]) & (n <= bounds[1]) if EDGE else n >= 0
    page = tl.load(blocks + n // BLOCK, mask=is_there, other=0) if EDGE else tl.load(blocks + n // BLOCK)
    place, offset = page.to(tl.int64) * num_groups + group, n % BLOCK
    row = keys + fp8.rows_at(place, offset, BLOCK, WIDTH, FP8)
    k = tl.load(row[None, :] + d[:, None], mask=is_there[None, :] & (d < WIDTH)[:, None], other=0)
    if FP8:
        scores = tl.dot(q, fp8.numbers(k, q.dtype), input_precision="ieee")
        scores *= (_factors(keys, place, offset, is_there, BLOCK, WIDTH) * scale)[None, :]
    else:
        scores = tl.dot(q, k, input_precision="ieee") * scale
    if SOFTCAP:
        cap = softcap * LOG2E
        scores = cap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2E / cap)) + 1.0))
    if BIAS:
        some = tl.load(bias + head[:, None] * bias_stride + n[None, :], mask=is_there[None, :], other=0.0)
        scores += some.to(tl.float32) * LOG2E
    if EDGE:
        scores = tl.where((n[None, :] >= seen[0][:, None]) & (n[None, :] <= seen[1][:, None]), scores, float("-inf"))
    return scores, place, offset, is_there


@triton.jit
def _fold(
    top, sum, total, scores, values, place, offset, is_there, kind: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Add some keys to a running softmax. `kind`: in which dtype weights and values are multiplied."""
    e = tl.arange(0, PAD)
    row = values + fp8.rows_at(place, offset, BLOCK, WIDTH, FP8)
    v = tl.load(row[:, None] + e[None, :], mask=is_there[:, None] & (e < WIDTH)[None, :], other=0)
    new = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new == float("-inf"), 0.0, new)
    p = tl.exp2(scores - base[:, None])
    shrunk = tl.exp2(top - base)
    sum = sum * shrunk + tl.sum(p, 1)
    if FP8:
        v = fp8.numbers(v, kind)
        p *= _factors(values, place, offset, is_there, BLOCK, WIDTH)[None, :]
    return new, sum, tl.dot(p.to(kind), v, total * shrunk[:, None], input_precision="ieee")


@triton.jit(do_not_specialize=["table_stride", "bias_stride", "window"])
def decode(
    out, parts, tops, query, q_token, q_head, keys, values, tables, table_stride, lasts, rows, sinks, bias, bias_stride,
    scale, softcap, window, num_groups,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, VALUE: tl.constexpr, PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, BIAS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One token a sequence. Grid: (sequences, G, SPLITS).

    `lasts`: position of each sequence's token, -1 for padding; `rows`: its row of query and out. With SPLITS > 1 fills
    parts [sequences, H, SPLITS, E] and tops [sequences, H, SPLITS, 2] instead of out.
    """
    at, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(lasts + at)
    if last < 0:
        return
    first = tl.maximum(last + 1 - window, 0) if WINDOW else 0
    h, d, e = tl.arange(0, M), tl.arange(0, PAD), tl.arange(0, VALUE_PAD)
    is_head, head = h < HEADS, group * HEADS + tl.where(h < HEADS, h, 0)
    token = tl.load(rows + at).to(tl.int64)
    query += token * q_token + head[:, None] * q_head + d[None, :]
    q = tl.load(query, mask=is_head[:, None] & (d < WIDTH)[None, :], other=0.0)
    begin = first // STEP * STEP
    span = tl.cdiv(tl.cdiv(last + 1 - begin, SPLITS), STEP) * STEP
    begin = begin + split * span
    top = tl.full((M,), float("-inf"), tl.float32)
    sum = tl.zeros((M,), tl.float32)
    if SINKS:
        if split == 0:
            top = tl.load(sinks + head).to(tl.float32) * LOG2E
            sum = tl.full((M,), 1.0, tl.float32)
    total = tl.zeros((M, VALUE_PAD), tl.float32)
    seen = (tl.full((M,), 0, tl.int32) + first, tl.full((M,), 0, tl.int32) + last)
    for n in range(begin, tl.minimum(begin + span, last + 1), STEP):
        scores, place, offset, is_there = _scores(
            q, keys, tables + at * table_stride, group, seen, (first, last), n, bias, bias_stride, head, scale, softcap,
            num_groups, BLOCK, WIDTH, PAD, STEP, SOFTCAP, BIAS, FP8, True,
        )  # fmt: skip
        top, sum, total = _fold(
            top, sum, total, scores, values, place, offset, is_there, q.dtype, BLOCK, VALUE, VALUE_PAD, FP8
        )
    fits = is_head[:, None] & (e < VALUE)[None, :]
    heads = num_groups * HEADS
    if SPLITS == 1:
        done = total / sum[:, None]
        tl.store(out + (token * heads + head)[:, None] * VALUE + e[None, :], done.to(out.dtype.element_ty), mask=fits)
    else:
        part = (at * heads + head) * SPLITS + split
        tl.store(parts + part[:, None] * VALUE + e[None, :], total, mask=fits)
        tl.store(tops + part * 2, top, mask=is_head)
        tl.store(tops + part * 2 + 1, sum, mask=is_head)


@triton.jit
def merge(
    out, parts, tops, lasts, rows,
    H: tl.constexpr, VALUE: tl.constexpr, VALUE_PAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join what the splits of `decode` left. Grid: (sequences, H). SPLITS is a power of two."""
    at, head = tl.program_id(0), tl.program_id(1)
    if tl.load(lasts + at) < 0:
        return
    s, e = tl.arange(0, SPLITS), tl.arange(0, VALUE_PAD)
    part = (at * H + head) * SPLITS + s
    top, sum = tl.load(tops + part * 2), tl.load(tops + part * 2 + 1)
    weight = tl.exp2(top - tl.max(top, 0))
    some = tl.load(parts + part[:, None] * VALUE + e[None, :], mask=(e < VALUE)[None, :], other=0.0)
    done = tl.sum(some * weight[:, None], 0) / tl.sum(sum * weight, 0)
    token = tl.load(rows + at).to(tl.int64)
    tl.store(out + (token * H + head) * VALUE + e, done.to(out.dtype.element_ty), mask=e < VALUE)


@triton.jit(do_not_specialize=["table_stride", "bias_stride", "window"])
def prefill(
    out, query, q_token, q_head, keys, values, tables, table_stride, chunks, sinks, bias, bias_stride, scale, softcap,
    window, num_groups,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, VALUE: tl.constexpr, PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    SINKS: tl.constexpr, BIAS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Several tokens a sequence, whose keys are in the pages already. Grid: (tiles of M // HEADS tokens, chunks, G).

    `chunks` [chunks, 4]: row of tables, first token in the batch, its position, tokens; tokens of 0 is padding.
    """
    tile, group = tl.program_id(0) * (M // HEADS), tl.program_id(2)
    chunks += tl.program_id(1) * 4
    count = tl.minimum(tl.load(chunks + 3) - tile, M // HEADS)
    if count <= 0:
        return
    blocks = tables + tl.load(chunks) * table_stride
    token, position = tl.load(chunks + 1).to(tl.int64) + tile, tl.load(chunks + 2) + tile
    m, d, e = tl.arange(0, M), tl.arange(0, PAD), tl.arange(0, VALUE_PAD)
    of, head = m // HEADS, group * HEADS + m % HEADS
    is_row = of < count
    query += (token + of)[:, None] * q_token + head[:, None] * q_head + d[None, :]
    q = tl.load(query, mask=is_row[:, None] & (d < WIDTH)[None, :], other=0.0)
    last = position + tl.where(is_row, of, 0)
    begin, end = tl.maximum(position + 1 - window, 0) if WINDOW else 0, position + count - 1
    first = tl.maximum(last + 1 - window, 0) if WINDOW else tl.zeros((M,), tl.int32)
    seen, bounds = (first, last), (begin, end)
    top = tl.full((M,), float("-inf"), tl.float32)
    sum = tl.zeros((M,), tl.float32)
    if SINKS:
        top = tl.load(sinks + head).to(tl.float32) * LOG2E
        sum = tl.full((M,), 1.0, tl.float32)
    total = tl.zeros((M, VALUE_PAD), tl.float32)
    start = begin // STEP * STEP
    middle = start if WINDOW else (position + 1) // STEP * STEP  # before it all rows see all keys
    for n in range(start, middle, STEP):
        scores, place, offset, is_there = _scores(
            q, keys, blocks, group, seen, bounds, n, bias, bias_stride, head, scale, softcap, num_groups,
            BLOCK, WIDTH, PAD, STEP, SOFTCAP, BIAS, FP8, False,
        )  # fmt: skip
        top, sum, total = _fold(
            top, sum, total, scores, values, place, offset, is_there, q.dtype, BLOCK, VALUE, VALUE_PAD, FP8
        )
    for n in range(middle, end + 1, STEP):
        scores, place, offset, is_there = _scores(
            q, keys, blocks, group, seen, bounds, n, bias, bias_stride, head, scale, softcap, num_groups,
            BLOCK, WIDTH, PAD, STEP, SOFTCAP, BIAS, FP8, True,
        )  # fmt: skip
        top, sum, total = _fold(
            top, sum, total, scores, values, place, offset, is_there, q.dtype, BLOCK, VALUE, VALUE_PAD, FP8
        )
    heads = num_groups * HEADS
    done = (total / sum[:, None]).to(out.dtype.element_ty)
    fits = is_row[:, None] & (e < VALUE)[None, :]
    tl.store(out + ((token + of) * heads + head)[:, None] * VALUE + e[None, :], done, mask=fits)


@triton.jit
def _put(pages, place, offset, row, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, FP8: tl.constexpr):
    """Put a row into its page."""
    d = tl.arange(0, PAD)
    some = tl.load(row + d, mask=d < WIDTH, other=0.0)
    if FP8:
        some = some.to(tl.float32)
        exponent = fp8.exponents(tl.max(fp8.magnitudes(some), 0))
        tl.store(pages + fp8.exponents_at(place, offset, BLOCK, WIDTH), exponent.to(tl.uint8))
        some = fp8.codes(some, exponent)
    tl.store(pages + fp8.rows_at(place, offset, BLOCK, WIDTH, FP8) + d, some, mask=d < WIDTH)


@triton.jit
def write(
    keys, values, key, value, k_token, k_head, v_token, v_head, slots, num_groups,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, VALUE: tl.constexpr, PAD: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Put keys and values into their pages. Grid: (tokens, G). A slot is block * BLOCK + offset; -1 for padding."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    place, offset = slot // BLOCK * num_groups + group, slot % BLOCK
    _put(keys, place, offset, key + token * k_token + group * k_head, BLOCK, WIDTH, PAD, FP8)
    _put(values, place, offset, value + token * v_token + group * v_head, BLOCK, VALUE, PAD, FP8)
