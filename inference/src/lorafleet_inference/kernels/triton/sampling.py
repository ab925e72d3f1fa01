"""Chooses one token a row, without sorting the vocabulary: a row's threshold is searched, and one pass draws.

A row of what a request asks for (`wanted`, float64): temperature, top_k, top_p, min_p, and a uniform number in [0, 1).
Scores are (logit - largest) / temperature, so the largest is 0. Ordered by score, equal ones by token, what top_k and top_p
leave is a prefix: all tokens above a score, and so many of those at it. That score is found by its bits, of which numbers
keep the order when they are read as integers.
"""

import triton
import triton.language as tl

TEMPERATURE, TOP_K, TOP_P, MIN_P, UNIFORM = (tl.constexpr(at) for at in range(5))
NUM_WANTED = 5
WANTED = tl.constexpr(NUM_WANTED)
TINY = tl.constexpr(1e-37)
BOTTOM = tl.constexpr(-2139095041)
"""The key of -inf; that of 0 is 0."""


@triton.jit
def _logits(logits, at, size, CHUNK: tl.constexpr, EDGE: tl.constexpr):
    """Logits [CHUNK] float32 of the tokens from `at`; -inf behind the last one. Without EDGE that one is not among them."""
    token = at + tl.arange(0, CHUNK)
    if EDGE:
        some = tl.load(logits + token, mask=token < size, other=float("-inf"))
    else:  # several by one load, which a mask of unknown length would hinder
        some = tl.load(logits + token)
    return some.to(tl.float32)


@triton.jit
def _scores(logits, at, size, top, temperature, CHUNK: tl.constexpr, EDGE: tl.constexpr):
    """Scores [CHUNK] float32 of the tokens from `at`."""
    return tl.div_rn(_logits(logits, at, size, CHUNK, EDGE) - top, temperature)


@triton.jit
def _keys(scores):
    """Integers in the order of scores, which are not above 0."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _score(key):
    """The score of a key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _part_above(scores, keys, MASS: tl.constexpr):
    """What scores [CHUNK] add to `_above`, [CHUNK, PIVOTS]."""
    is_above = _keys(scores)[:, None] > keys[None, :]
    return tl.where(is_above, tl.exp(scores)[:, None] if MASS else 1.0, 0.0)


@triton.jit
def _above(logits, size, top, temperature, keys, MASS: tl.constexpr, CHUNK: tl.constexpr, PIVOTS: tl.constexpr):
    """How many tokens, or with MASS what sum of exp(score), lie above each of keys [PIVOTS]. A count is below 2^24, so exact."""
    found = tl.zeros((CHUNK, PIVOTS), tl.float32)
    edge = size // CHUNK * CHUNK
    for at in range(0, edge, CHUNK):
        found += _part_above(_scores(logits, at, size, top, temperature, CHUNK, False), keys, MASS)
    if edge < size:
        found += _part_above(_scores(logits, edge, size, top, temperature, CHUNK, True), keys, MASS)
    return tl.sum(found, 0)


@triton.jit
def _threshold(
    logits, size, top, temperature, low, limit, MASS: tl.constexpr, CHUNK: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """The smallest key above `low` above which less than `limit` lies; that of the largest score is one in any case.

    It is the key of some token, or low + 1.
    """
    high = tl.zeros((), tl.int32)
    low = low.to(tl.int32)
    j = tl.arange(0, PIVOTS)
    while high - low > 1:
        step = tl.maximum((high - low) // (PIVOTS + 1), 1)
        keys = tl.minimum(low + step * (j + 1), high)
        is_less = (_above(logits, size, top, temperature, keys, MASS, CHUNK, PIVOTS) < limit) | (keys == high)
        low = tl.maximum(low, tl.max(tl.where(is_less, low, keys), 0))
        high = tl.minimum(high, tl.min(tl.where(is_less, keys, high), 0))
    return high


@triton.jit
def _kept(logits, at, size, top, temperature, key, ties, seen, min_p, CHUNK: tl.constexpr):
    """Masses [CHUNK] float64 of the tokens from `at`, 0 of those that are out, and how many at the key were seen up to there."""
    scores = _scores(logits, at, size, top, temperature, CHUNK, True)
    keys, mass = _keys(scores), tl.exp(scores)
    is_tie = (keys == key).to(tl.int32)
    rank = seen + tl.cumsum(is_tie, 0) - is_tie
    is_kept = ((keys > key) | ((is_tie > 0) & (rank < ties))) & (mass >= min_p)
    return tl.where(is_kept, mass, 0.0).to(tl.float64), seen + tl.sum(is_tie, 0)


@triton.jit
def _largest(logits, size, CHUNK: tl.constexpr):
    """The largest logit, the first token that has it, and whether it is finite and no logit is NaN."""
    best = tl.full((CHUNK,), float("-inf"), tl.float32)
    first, is_nan, j = tl.zeros((CHUNK,), tl.int32), tl.zeros((CHUNK,), tl.int32), tl.arange(0, CHUNK)
    edge = size // CHUNK * CHUNK
    for at in range(0, edge, CHUNK):
        some = _logits(logits, at, size, CHUNK, False)
        is_nan |= (some != some).to(tl.int32)
        first = tl.where(some > best, at + j, first)
        best = tl.where(some > best, some, best)
    if edge < size:
        some = _logits(logits, edge, size, CHUNK, True)
        is_nan |= (some != some).to(tl.int32)
        first = tl.where(some > best, edge + j, first)
        best = tl.where(some > best, some, best)
    top = tl.max(best, 0)
    finite = (tl.max(is_nan, 0) == 0) & (top < float("inf")) & (top > float("-inf"))
    return top, tl.min(tl.where(best == top, first, size), 0), finite


@triton.jit
def _left(logits, size, top, temperature, top_k, top_p, CHUNK: tl.constexpr, PIVOTS: tl.constexpr):
    """What top_k and top_p leave: all tokens above a key, and how many of those at it."""
    key = tl.zeros((), tl.int32) + BOTTOM - 1
    ties = size
    if top_k < size:
        key = _threshold(logits, size, top, temperature, key, top_k, False, CHUNK, PIVOTS)
        above = _above(logits, size, top, temperature, key + tl.zeros((1,), tl.int32), False, CHUNK, 1)
        ties = (top_k - tl.sum(above, 0)).to(tl.int32)
    if top_p < 1.0:
        mass = tl.sum(_above(logits, size, top, temperature, key + tl.zeros((1,), tl.int32), True, CHUNK, 1), 0)
        if top_k < size:
            mass += ties * tl.exp(_score(key))
        limit = top_p * mass
        low = tl.where(top_k < size, key - 1, key)
        found = _threshold(logits, size, top, temperature, low, limit, True, CHUNK, PIVOTS)
        above = _above(logits, size, top, temperature, found + tl.zeros((1,), tl.int32), True, CHUNK, 1)
        room = tl.maximum(tl.ceil((limit - tl.sum(above, 0)) / tl.maximum(tl.exp(_score(found)), TINY)), 1.0)
        most = tl.where((found == key) & (top_k < size), ties, size)
        ties = tl.minimum(room, most.to(tl.float32)).to(tl.int32)
        key = found
    return key, ties


@triton.jit
def _drawn(logits, size, top, temperature, key, ties, min_p, uniform, CHUNK: tl.constexpr):
    """The first token, of those that are left, up to which their masses sum to more than a part `uniform` of all."""
    total, seen, last, j = tl.zeros((), tl.float64), tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.arange(0, CHUNK)
    for at in range(0, size, CHUNK):
        mass, seen = _kept(logits, at, size, top, temperature, key, ties, seen, min_p, CHUNK)
        total += tl.sum(mass, 0)
        last = tl.maximum(last, tl.max(tl.where(mass > 0, at + j, 0), 0))
    target, token = uniform * total, last  # the last one where rounding leaves none above the target
    before = tl.zeros((), tl.float64)
    at, seen, is_found = tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    while (at < size) & (is_found == 0):
        mass, seen = _kept(logits, at, size, top, temperature, key, ties, seen, min_p, CHUNK)
        after = before + tl.sum(mass, 0)
        if after > target:
            is_past = (before + tl.cumsum(mass, 0) > target) & (mass > 0)
            token = tl.min(tl.where(is_past, at + j, token), 0)
            is_found += 1
        before = after
        at += CHUNK
    return token


@triton.jit(do_not_specialize=["size"])
def choose(
    tokens, is_finite, logits, stride, wanted, size,
    CHUNK: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """tokens [rows] int64, is_finite [rows] int8, from logits [rows, size] of any float dtype. Grid: (rows,).

    A row whose largest logit is not finite, NaN included, has token 0. Temperature 0 takes the first of the largest.
    """
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    wanted += row * WANTED
    temperature = tl.load(wanted + TEMPERATURE).to(tl.float32)
    top, token, finite = _largest(logits, size, CHUNK)
    tl.store(is_finite + row, finite.to(tl.int8))
    if (temperature > 0.0) & finite:
        top_k, top_p = tl.load(wanted + TOP_K).to(tl.float32), tl.load(wanted + TOP_P).to(tl.float32)
        key, ties = _left(logits, size, top, temperature, top_k, top_p, CHUNK, PIVOTS)
        min_p, uniform = tl.load(wanted + MIN_P).to(tl.float32), tl.load(wanted + UNIFORM)
        token = _drawn(logits, size, top, temperature, key, ties, min_p, uniform, CHUNK)
    tl.store(tokens + row, tl.where(finite, token, 0).to(tl.int64))
