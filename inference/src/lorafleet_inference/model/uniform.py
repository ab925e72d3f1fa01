"""Numbers that look random and are the same whenever a token is drawn again: of a request's seed and a position, and nothing else."""

import numpy as np
import numpy.typing as npt

MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64."""


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1)."""
    state = _mix((seed & MASK) ^ _mix(position + 1))
    return (state >> 11) / (1 << 53)


def uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the same for many at once: seeds modulo 2^64, positions at least 0."""
    state = _mixed(seeds ^ _mixed(positions.astype(np.uint64) + np.uint64(1)))
    return (state >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _mix(value: int) -> int:
    value = (value + _STEP) & MASK
    value = ((value ^ (value >> 30)) * _FIRST) & MASK
    value = ((value ^ (value >> 27)) * _SECOND) & MASK
    return value ^ (value >> 31)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """As `_mix`: arrays of unsigned numbers wrap."""
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))
