"""The numbers of `kernels/fp8_pages.py` in registers, by arithmetic on bits: GPUs before Ada have no e4m3.

A code's seven lower bits, moved, are those of a float32 that is 2 ** 112 times smaller than e4m3(code) / 256, also where it has no
leading one.
"""

import triton
import triton.language as tl


@triton.jit
def rows_at(place, offset, BLOCK: tl.constexpr, WIDTH: tl.constexpr, FP8: tl.constexpr):
    """Where rows begin in pages of 8 bits, or in those of a dtype: `place` is the number of a block's head, `offset` of a token in it."""
    if FP8:
        return place * (BLOCK * (WIDTH + 1)) + offset * WIDTH
    return (place * BLOCK + offset) * WIDTH


@triton.jit
def exponents_at(place, offset, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Where the exponents of rows of 8 bits lie."""
    return place * (BLOCK * (WIDTH + 1)) + BLOCK * WIDTH + offset


@triton.jit
def numbers(code, kind: tl.constexpr):
    """e4m3(code) / 256 in a dtype, exactly."""
    bits = (code.to(tl.int8, bitcast=True).to(tl.int32) << 20) & -0x78100000  # sign, and what is under it
    return (bits.to(tl.float32, bitcast=True) * 5.192296858534828e33).to(kind)


@triton.jit
def factors(exponent):
    """What the numbers of rows are multiplied with, float32."""
    power = (exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    return tl.where(exponent == 255, float("nan"), power)


@triton.jit
def magnitudes(some):
    """Magnitudes of float32, as whole numbers that are ordered like them: of these a NaN is the largest."""
    return some.to(tl.uint32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def exponents(top):
    """Exponents of rows by their largest magnitudes, uint32."""
    found = (top + 0x1FFFFF) >> 23
    return tl.where(found >= 254, 255, found)


@triton.jit
def codes(some, exponent):
    """Codes of float32, rounded to the nearest even; uint8."""
    scaled = some * ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    bits = scaled.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + (size >> 20 & 1)) >> 20) - (112 << 3)
    # the last bit of a number next to 64 is the step of codes without a leading one
    small = (tl.abs(scaled) + 64.0).to(tl.uint32, bitcast=True) - 0x42800000
    code = tl.where(size < 0x38800000, small, normal) | (bits >> 24 & 128)
    return tl.where(exponent == 255, 0, code).to(tl.uint8)
