"""Products with weights of 4 and 8 bits: a number is brought back in registers, and in memory for many tokens only.

codes [rows, width / codes of a byte] uint8, the first of two in the lower half; scales, and zeros where ZEROS, [.., across]: one for
a block of HEIGHT rows and GROUP columns. number = (meaning of the code - zero) * scale in float32, rounded once to the dtype of x,
as `model/quantization/weight.py` says it: both ways give the same weights.
KIND: 0 whole numbers; 1 e4m3; 2 an index into table [16].
ORDER: blocks[k] is the block of its row that column k belongs to; columns are sorted by it.
"""

import triton
import triton.language as tl


@triton.jit
def _by_block(
    grid, blocks, n, fits_rows, at, k, width, across,
    HEIGHT: tl.constexpr, GROUP: tl.constexpr, ORDER: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Return what a grid says of rows n and columns at .. at + STEP, float32 [rows, 1 or STEP]."""
    row = grid + (n // HEIGHT * across)[:, None]
    if ORDER:
        block = tl.load(blocks + k, mask=k < width, other=0)
        some = tl.load(row + block[None, :], mask=fits_rows[:, None] & (k < width)[None, :], other=0.0)
    elif GROUP % STEP == 0:  # these columns are of one block
        some = tl.load(row + at // GROUP, mask=fits_rows[:, None], other=0.0)
    else:
        fits = fits_rows[:, None] & (k < width)[None, :]
        some = tl.load(row + (k // GROUP)[None, :], mask=fits, other=0.0)
    return some.to(tl.float32)


@triton.jit
def _numbers(
    codes, scales, zeros, table, blocks, n, fits_rows, at, width, across,
    KIND: tl.constexpr, PER_BYTE: tl.constexpr, HEIGHT: tl.constexpr, GROUP: tl.constexpr, ORDER: tl.constexpr,
    ZEROS: tl.constexpr, MIDPOINT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Return the numbers of rows n and columns at .. at + STEP, float32 [rows, STEP]."""
    byte = at // PER_BYTE + tl.arange(0, STEP // PER_BYTE)
    row = codes + n[:, None].to(tl.int64) * (width // PER_BYTE)
    fits = fits_rows[:, None] & (byte < width // PER_BYTE)[None, :]
    code = tl.load(row + byte[None, :], mask=fits, other=0)
    if PER_BYTE == 2:
        code = tl.interleave(code & 15, code >> 4)
    if KIND == 1:  # the bits of a float16 that is 256 times smaller
        bits = (code & 128).to(tl.uint16) << 8 | (code & 127).to(tl.uint16) << 7
        some = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    elif KIND == 2:
        some = tl.load(table + code.to(tl.int32))
    else:
        some = code.to(tl.float32)
    k = at + tl.arange(0, STEP)
    if ZEROS:
        some -= _by_block(zeros, blocks, n, fits_rows, at, k, width, across, HEIGHT, GROUP, ORDER, STEP)
    else:
        some -= MIDPOINT
    return some * _by_block(scales, blocks, n, fits_rows, at, k, width, across, HEIGHT, GROUP, ORDER, STEP)


@triton.jit
def _product(
    x, x_stride, codes, scales, zeros, table, blocks, n, fits_rows, t, is_token, width, across,
    KIND: tl.constexpr, PER_BYTE: tl.constexpr, HEIGHT: tl.constexpr, GROUP: tl.constexpr, ORDER: tl.constexpr,
    ZEROS: tl.constexpr, MIDPOINT: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Return x W of tokens t and rows n of the weight, float32 [rows, tokens]."""
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    tokens = x + t[None, :].to(tl.int64) * x_stride
    for at in range(0, width, STEP):
        weights = _numbers(
            codes, scales, zeros, table, blocks, n, fits_rows, at, width, across,
            KIND, PER_BYTE, HEIGHT, GROUP, ORDER, ZEROS, MIDPOINT, STEP,
        )  # fmt: skip
        k = at + tl.arange(0, STEP)
        some = tl.load(tokens + k[:, None], mask=is_token[None, :] & (k < width)[:, None], other=0.0)
        total = tl.dot(weights.to(some.dtype), some, total, input_precision="ieee")
    return total


@triton.jit
def _store(y, y_stride, total, n, fits_rows, t, is_token):
    out = y + t[None, :].to(tl.int64) * y_stride + n[:, None]
    tl.store(out, total.to(y.dtype.element_ty), mask=fits_rows[:, None] & is_token[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def multiply(
    y, y_stride, x, x_stride, codes, scales, zeros, table, blocks, bias, num_tokens, rows, width, across,
    KIND: tl.constexpr, PER_BYTE: tl.constexpr, HEIGHT: tl.constexpr, GROUP: tl.constexpr, ORDER: tl.constexpr,
    ZEROS: tl.constexpr, MIDPOINT: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """y[token, row] = x W + bias. Grid: (tiles of ROWS rows of the weight, tiles of TOKENS tokens)."""
    n, t = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    fits_rows, is_token = n < rows, t < num_tokens
    total = _product(
        x, x_stride, codes, scales, zeros, table, blocks, n, fits_rows, t, is_token, width, across,
        KIND, PER_BYTE, HEIGHT, GROUP, ORDER, ZEROS, MIDPOINT, STEP, ROWS, TOKENS,
    )  # fmt: skip
    if BIAS:
        total += tl.load(bias + n, mask=fits_rows, other=0.0).to(tl.float32)[:, None]
    _store(y, y_stride, total, n, fits_rows, t, is_token)


@triton.jit
def multiply_grouped(
    y, y_stride, x, x_stride, codes, scales, zeros, table, blocks, experts, ends, num_experts, codes_stride,
    scales_stride, blocks_stride, rows, width, across,
    KIND: tl.constexpr, PER_BYTE: tl.constexpr, HEIGHT: tl.constexpr, GROUP: tl.constexpr, ORDER: tl.constexpr,
    ZEROS: tl.constexpr, MIDPOINT: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    BY_PAIR: tl.constexpr,
):  # fmt: skip
    """y[pair, row] = x W of the pair's expert, whose matrices lie one behind the other. Pairs are sorted by expert.

    `experts` [pairs]: the expert of each, `num_experts` for none; `ends` [num_experts]: where the pairs of each end. Pairs without
    an expert are not written. A program does all pairs of an expert, so that what nobody chose is not read.
    Grid: (tiles of ROWS rows of the weights, experts), or with BY_PAIR, where pairs are fewer: (.., pairs), of which the
    first of each expert does all of these.
    """
    one = tl.program_id(
        1
    )  # below, -1 and not 0 stands for what is masked: Triton's interpreter takes a scalar 0 for none
    if BY_PAIR:
        expert = tl.load(experts + one).to(tl.int32)
        before = tl.load(experts + one - 1, mask=one > 0, other=-1).to(tl.int32)
        is_first = (expert != before) & (expert < num_experts)
        begin, end = one, tl.load(ends + expert, mask=is_first, other=-1)
    else:
        expert = one
        begin, end = tl.maximum(tl.load(ends + one - 1, mask=one > 0, other=-1), 0), tl.load(ends + one)
    if begin >= end:
        return
    codes += expert.to(tl.int64) * codes_stride
    scales += expert.to(tl.int64) * scales_stride
    zeros += expert.to(tl.int64) * scales_stride
    blocks += expert * blocks_stride
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    fits_rows = n < rows
    for at in range(begin, end, TOKENS):
        t = at + tl.arange(0, TOKENS)
        is_token = t < end
        total = _product(
            x, x_stride, codes, scales, zeros, table, blocks, n, fits_rows, t, is_token, width, across,
            KIND, PER_BYTE, HEIGHT, GROUP, ORDER, ZEROS, MIDPOINT, STEP, ROWS, TOKENS,
        )  # fmt: skip
        _store(y, y_stride, total, n, fits_rows, t, is_token)


@triton.jit
def bring_back(
    out, codes, scales, zeros, table, blocks, rows, width, across,
    KIND: tl.constexpr, PER_BYTE: tl.constexpr, HEIGHT: tl.constexpr, GROUP: tl.constexpr, ORDER: tl.constexpr,
    ZEROS: tl.constexpr, MIDPOINT: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out [rows, width] = the numbers. Grid: (tiles of ROWS rows, tiles of STEP columns)."""
    n, at = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * STEP
    fits_rows = n < rows
    some = _numbers(
        codes, scales, zeros, table, blocks, n, fits_rows, at, width, across,
        KIND, PER_BYTE, HEIGHT, GROUP, ORDER, ZEROS, MIDPOINT, STEP,
    )  # fmt: skip
    k = at + tl.arange(0, STEP)
    place = out + n[:, None].to(tl.int64) * width + k[None, :]
    tl.store(place, some.to(out.dtype.element_ty), mask=fits_rows[:, None] & (k < width)[None, :])
