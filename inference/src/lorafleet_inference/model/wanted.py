"""What the kernel that chooses tokens has to know of each request: kept by row, so that it goes to the device with the batch.

Axes: R rows, S sequences of the step.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.model.uniform import MASK, uniform, uniforms

Floats = npt.NDArray[np.float64]
NUM_WANTED = 5


def wanted_of(draws: Sequence[tuple[SamplingParams, int, int]]) -> Floats:
    """Return what (parameters, seed, position) want [S, 5]: temperature, top_k, top_p, min_p and a uniform number."""
    return np.array([(*_params(one), uniform(seed, position)) for one, seed, position in draws], np.float64)


class WantedRows:
    """The same of requests that run, from step to step."""

    def __init__(self, num_rows: int) -> None:
        self._params = np.zeros((num_rows, NUM_WANTED - 1))
        """[R, 4]"""
        self._seeds = np.zeros(num_rows, np.uint64)

    def put(self, row: int, sampling: SamplingParams) -> None:
        """Take in what a request asks for."""
        self._params[row] = _params(sampling)
        self._seeds[row] = (sampling.seed or 0) & MASK

    def at(self, rows: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> Floats:
        """Return what rows [S] want for the tokens at positions [S], as `wanted_of`."""
        return np.column_stack((self._params[rows], uniforms(self._seeds[rows], positions)))


def _params(one: SamplingParams) -> tuple[float, float, float, float]:
    return one.temperature, one.top_k or math.inf, one.top_p, one.min_p
