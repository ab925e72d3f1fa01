"""What is computed between the products of a layer, each in one launch: at decode a launch costs more than its bytes.

Sums are float32, and each result is rounded once. Rows lie one behind the other, with a last stride of 1.
"""

import triton
import triton.language as tl

from lorafleet_inference.kernels.triton import dependent, fp8


@triton.jit
def add_norm(
    out, x, x_stride, residual, weight, width, eps,
    ADD: tl.constexpr, UNIT: tl.constexpr, PAD: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """residual += x, where ADD; out = row / rms(row) * weight, the row being residual's or else x's. Grid: (rows,).

    UNIT: the weight counts from one. PAD: a power of two, at least width.
    """
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, PAD)
    fits = n < width
    if DEPENDENT:  # the weights are the model's
        factor = tl.load(weight + n, mask=fits, other=0.0).to(tl.float32)
        dependent.begin()
    some = tl.load(x + row * x_stride + n, mask=fits, other=0.0).to(tl.float32)
    if ADD:
        at = residual + row * width + n
        sum = (some + tl.load(at, mask=fits, other=0.0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(at, sum, mask=fits)
        some = sum.to(tl.float32)
    if not DEPENDENT:
        factor = tl.load(weight + n, mask=fits, other=0.0).to(tl.float32)
    if UNIT:
        factor += 1.0
    some = some * tl.rsqrt(tl.sum(some * some, 0) / width + eps)
    tl.store(out + row * width + n, (some * factor).to(out.dtype.element_ty), mask=fits)


@triton.jit
def _sigmoid(x):
    """Of float32, without an exponential that overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, small, 1.0) / (1.0 + small)


@triton.jit
def gate(out, gate_up, stride, width, GELU: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """out = act(gate) * up, of rows [gate | up]. Grid: (rows, tiles of BLOCK columns). GELU: its form by tanh, else SiLU."""
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    fits = n < width
    if DEPENDENT:
        dependent.begin()
    some = tl.load(gate_up + row * stride + n, mask=fits, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + n, mask=fits, other=0.0).to(tl.float32)
    if GELU:  # 0.5 (1 + tanh(z)) is sigmoid(2 z)
        some = some * _sigmoid(1.5957691216057308 * (some + 0.044715 * some * some * some))
    else:
        some = some * _sigmoid(some)
    tl.store(out + row * width + n, (some * up).to(out.dtype.element_ty), mask=fits)


@triton.jit
def _normed(some, fits, kept, q_norm, k_norm, is_query, is_turning, scale, d, NORM: tl.constexpr, UNIT: tl.constexpr):
    """Elements `d` of heads, float32, with the norm of heads where there is one."""
    some = some.to(tl.float32)
    if NORM:
        of_query = tl.load(q_norm + d, mask=kept, other=0.0).to(tl.float32)
        of_key = tl.load(k_norm + d, mask=kept, other=0.0).to(tl.float32)
        weight = tl.where(is_query[:, None], of_query[None, :], of_key[None, :])
        if UNIT:
            weight += 1.0
        some = tl.where(is_turning[:, None], some * scale[:, None] * weight, some)
    return tl.where(fits, some, 0.0)


@triton.jit
def _top(some):
    """The largest magnitudes of heads."""
    return tl.max(fp8.magnitudes(some.to(tl.float32)), 1)


@triton.jit
def _put_exponents(keys, values, place, offset, top, is_key, is_value, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Put what heads' largest magnitudes say into the pages of keys and of values; returns it."""
    exponent, at = fp8.exponents(top), fp8.exponents_at(place, offset, BLOCK, WIDTH)
    tl.store(keys + at, exponent.to(tl.uint8), mask=is_key)
    tl.store(values + at, exponent.to(tl.uint8), mask=is_value)
    return exponent


@triton.jit
def _put(keys, values, at, some, exponent, fits, is_key, is_value, FP8: tl.constexpr):
    """Put a part of heads into the pages of keys and of values."""
    if FP8:
        some = fp8.codes(some.to(tl.float32), exponent[:, None])
    tl.store(keys + at, some, mask=fits & is_key[:, None])
    tl.store(values + at, some, mask=fits & is_value[:, None])


@triton.jit
def rotate_write(
    query, keys, values, qkv, qkv_stride, cos, cos_stride, sin, sin_stride, slots, q_norm, k_norm, eps,
    H: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
    HALF_PAD: tl.constexpr, REST_PAD: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr, UNIT: tl.constexpr,
    FP8: tl.constexpr,
):  # fmt: skip
    """Norm and rotate query and key heads, put keys and values into their pages and queries [tokens, H, WIDTH] into rows.

    Grid: (tokens, tiles of HEADS of the H + 2 G heads). The first 2 HALF elements of a head are rotated, by halves; cos and
    sin say it by their first HALF columns. A slot is a block * BLOCK + an offset; -1 for padding. FP8: pages of 8 bits.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d, e = tl.arange(0, HALF_PAD), tl.arange(0, REST_PAD)
    is_query, is_turning, is_head = head < H, head < H + G, head < H + 2 * G
    in_half, in_rest = d < HALF, e < WIDTH - 2 * HALF
    fits, rest_fits = is_head[:, None] & in_half[None, :], is_head[:, None] & in_rest[None, :]
    at = qkv + token * qkv_stride + head[:, None] * WIDTH
    low = tl.load(at + d[None, :], mask=fits, other=0.0)
    high = tl.load(at + HALF + d[None, :], mask=fits, other=0.0)
    scale = tl.full((HEADS,), 1.0, tl.float32)
    if NORM:
        squares = low.to(tl.float32) * low.to(tl.float32) + high.to(tl.float32) * high.to(tl.float32)
        sum = tl.sum(squares, 1)
        if WIDTH > 2 * HALF:
            some = tl.load(at + 2 * HALF + e[None, :], mask=rest_fits, other=0.0).to(tl.float32)
            sum += tl.sum(some * some, 1)
        scale = tl.rsqrt(sum / WIDTH + eps)
    a = _normed(low, fits, in_half, q_norm, k_norm, is_query, is_turning, scale, d, NORM, UNIT)
    b = _normed(high, fits, in_half, q_norm + HALF, k_norm + HALF, is_query, is_turning, scale, d, NORM, UNIT)
    c = tl.load(cos + token * cos_stride + d, mask=in_half, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * sin_stride + d, mask=in_half, other=0.0).to(tl.float32)[None, :]
    turned = tl.where(is_turning[:, None], a * c - b * s, a)
    b = tl.where(is_turning[:, None], b * c + a * s, b)
    kind = query.dtype.element_ty
    a, b = turned.to(kind), b.to(kind)
    out = query + (token * H + tl.where(is_query, head, 0))[:, None] * WIDTH
    tl.store(out + d[None, :], a, mask=fits & is_query[:, None])
    tl.store(out + HALF + d[None, :], b, mask=fits & is_query[:, None])
    if WIDTH > 2 * HALF:
        r = tl.load(at + 2 * HALF + e[None, :], mask=rest_fits, other=0.0)
        r = _normed(
            r, rest_fits, in_rest, q_norm + 2 * HALF, k_norm + 2 * HALF, is_query, is_turning, scale, e, NORM, UNIT
        )
        r = r.to(kind)
        tl.store(out + 2 * HALF + e[None, :], r, mask=rest_fits & is_query[:, None])
    slot = tl.load(slots + token)
    if slot >= 0:
        is_key, is_value = is_turning & (head >= H), is_head & (head >= H + G)
        group = tl.where(is_value, head - (H + G), tl.where(is_key, head - H, 0))
        place, offset = slot // BLOCK * G + group, slot % BLOCK
        exponent = group
        if FP8:
            top = tl.maximum(_top(a), _top(b))
            if WIDTH > 2 * HALF:
                top = tl.maximum(top, _top(r))
            exponent = _put_exponents(keys, values, place, offset, top, is_key, is_value, BLOCK, WIDTH)
        row = fp8.rows_at(place, offset, BLOCK, WIDTH, FP8)[:, None]
        _put(keys, values, row + d[None, :], a, exponent, fits, is_key, is_value, FP8)
        _put(keys, values, row + HALF + d[None, :], b, exponent, fits, is_key, is_value, FP8)
        if WIDTH > 2 * HALF:
            _put(keys, values, row + 2 * HALF + e[None, :], r, exponent, rest_fits, is_key, is_value, FP8)
