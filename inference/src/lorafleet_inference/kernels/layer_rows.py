"""What a layer does between its products, row by row: norm with residual, gate, rotation.

Each reads its rows once and writes them once, where plain torch takes several passes. Threads take blocks of rows in turn.
"""

from typing import Any

import numpy as np
from numba import cfunc, njit

from lorafleet_inference.kernels.pointers import float32_at, int64_at, power_of_two, take_next

FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered; infinities and what is no number keep their meaning."""
F32 = np.float32
BLOCK_ROWS = 8
"""Rows that a thread takes at once."""
# What each call is given, in order; widths and strides in elements, the rest addresses, 0 where there is none.
(TASK, ROWS, WIDTH, X, X_STRIDE, OUT) = range(6)
# norm
(WEIGHT, RESIDUAL, NUMBERS) = range(6, 9)  # NUMBERS: eps, and what is added to the weight
# gate
IS_GELU = 6
# rotation of rows of heads; FACTORS: as NUMBERS, of the norms of heads
(NUM_QUERIES, NUM_TURNED, NUM_HEADS, ROTARY, COS, SIN, TABLE_STRIDE, Q_NORM, K_NORM, FACTORS) = range(6, 16)


@njit(fastmath=FAST, error_model="numpy")
def _norm_row(x: Any, residual: Any, has_residual: bool, weight: Any, out: Any, width: int, numbers: Any) -> None:
    total = F32(0)
    if has_residual:
        for i in range(width):
            one = residual[i] + x[i]
            residual[i] = one
            total += one * one
    else:
        for i in range(width):
            total += x[i] * x[i]
    factor = F32(1) / np.sqrt(total / F32(width) + numbers[0])
    offset = numbers[1]
    source = residual if has_residual else x
    for i in range(width):
        out[i] = source[i] * factor * (weight[i] + offset)


@cfunc("void(CPointer(int64))", cache=True)
def norm_float32(p: Any) -> None:
    """Entry: out [rows, width] = norm of x, or of the residual after x was added to it."""
    width, has_residual = p[WIDTH], p[RESIDUAL] != 0
    while True:
        begin = take_next(int64_at(p[TASK])) * BLOCK_ROWS
        if begin >= p[ROWS]:
            return
        for row in range(begin, min(begin + BLOCK_ROWS, p[ROWS])):
            _norm_row(
                float32_at(p[X] + 4 * row * p[X_STRIDE]),
                float32_at(p[RESIDUAL] + 4 * row * width),
                has_residual,
                float32_at(p[WEIGHT]),
                float32_at(p[OUT] + 4 * row * width),
                width,
                float32_at(p[NUMBERS]),
            )


@njit(fastmath=FAST, error_model="numpy")
def _sigmoid(x: float) -> float:
    """By a polynomial for the fraction of the exponent and bits for the rest: a loop over it becomes vectors."""
    scaled = max(min(x * F32(-1.4426950408889634), F32(126)), F32(-126))
    whole = np.floor(scaled + F32(0.5))
    f = scaled - whole
    y = F32(1.535336188319500e-4)
    y = y * f + F32(1.339887440266574e-3)
    y = y * f + F32(9.618437357674640e-3)
    y = y * f + F32(5.550332471162809e-2)
    y = y * f + F32(2.402264791363012e-1)
    y = y * f + F32(6.931472028550421e-1)
    return F32(1) / (F32(1) + (y * f + F32(1)) * power_of_two(np.int32(whole)))


@njit(fastmath=FAST, error_model="numpy")
def _silu_row(gate: Any, up: Any, out: Any, width: int) -> None:
    for i in range(width):
        out[i] = gate[i] * _sigmoid(gate[i]) * up[i]


@njit(fastmath=FAST, error_model="numpy")
def _gelu_row(gate: Any, up: Any, out: Any, width: int) -> None:
    """tanh(z) = 2 sigmoid(2 z) - 1"""
    for i in range(width):
        x = gate[i]
        inner = F32(1.5957691216057308) * (x + F32(0.044715) * x * x * x)
        out[i] = x * _sigmoid(inner) * up[i]


@cfunc("void(CPointer(int64))", cache=True)
def gate_float32(p: Any) -> None:
    """Entry: out [rows, width] = act(gate) * up of x [rows, 2 width]."""
    width = p[WIDTH]
    while True:
        begin = take_next(int64_at(p[TASK])) * BLOCK_ROWS
        if begin >= p[ROWS]:
            return
        for row in range(begin, min(begin + BLOCK_ROWS, p[ROWS])):
            gate = p[X] + 4 * row * p[X_STRIDE]
            up, out = float32_at(gate + 4 * width), float32_at(p[OUT] + 4 * row * width)
            if p[IS_GELU] != 0:
                _gelu_row(float32_at(gate), up, out, width)
            else:
                _silu_row(float32_at(gate), up, out, width)


@njit(fastmath=FAST, error_model="numpy")
def _turn(x: Any, out: Any, width: int, rotary: int, cos: Any, sin: Any) -> None:
    half = rotary // 2
    for i in range(half):
        low, high = x[i], x[i + half]
        out[i] = low * cos[i] - high * sin[i]
        out[i + half] = high * cos[i + half] + low * sin[i + half]
    for i in range(rotary, width):
        out[i] = x[i]


@cfunc("void(CPointer(int64))", cache=True)
def rotate_float32(p: Any) -> None:
    """Entry: out [rows, heads * width] = x, its first NUM_TURNED heads normed where they are, and rotated.

    cos and sin [rows, rotary]
    """
    width, rotary, turned = p[WIDTH], p[ROTARY], p[NUM_TURNED]
    while True:
        begin = take_next(int64_at(p[TASK])) * BLOCK_ROWS
        if begin >= p[ROWS]:
            return
        for row in range(begin, min(begin + BLOCK_ROWS, p[ROWS])):
            cos = float32_at(p[COS] + 4 * row * p[TABLE_STRIDE])
            sin = float32_at(p[SIN] + 4 * row * p[TABLE_STRIDE])
            source, target = p[X] + 4 * row * p[X_STRIDE], p[OUT] + 4 * row * p[NUM_HEADS] * width
            for head in range(turned):
                x, out = float32_at(source + 4 * head * width), float32_at(target + 4 * head * width)
                norm = p[Q_NORM] if head < p[NUM_QUERIES] else p[K_NORM]
                if norm != 0:
                    _norm_row(x, x, False, float32_at(norm), out, width, float32_at(p[FACTORS]))
                    x = out
                _turn(x, out, width, rotary, cos, sin)
            rest, out = float32_at(source), float32_at(target)
            for i in range(turned * width, p[NUM_HEADS] * width):
                out[i] = rest[i]
