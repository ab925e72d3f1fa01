"""Deltas read from the pool equal two products a token, over ranks and popularity."""

import numpy as np
import pytest
import torch

from lorafleet_inference.kernels.cpu import CpuKernels, LoraRows, RowTable

NUM_ADAPTERS = 6
RANKS = {
    "equal": [8] * NUM_ADAPTERS,
    "odd": [1, 2, 3, 5, 7, 13],
    "large": [16, 64, 256, 33, 4, 20],
    "missing modules": [0, 8, 0, 3, 1, 0],
    "nothing at all": [0] * NUM_ADAPTERS,
}
SEGMENTS = {
    "one token each": [1] * NUM_ADAPTERS,
    "some": [4, 2, 3, 9, 5, 1],
    "more than a block": [33, 1, 16, 17, 3, 40],
}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("widths", [(48, 32), (17, 5)])
def test_equals_two_products_a_token(kernels: CpuKernels, ranks: str, segments: str, widths: tuple[int, int]) -> None:
    torch.manual_seed(1)
    in_width, out_width = widths
    gap, width = 2, in_width + out_width + 3
    before_it = 5  # rows of another module
    pool = torch.randn(NUM_ADAPTERS * (256 + before_it), width)
    order = np.random.default_rng(1).permutation(len(pool)).astype(np.int64)
    own = [np.sort(order[at::NUM_ADAPTERS][: before_it + rank]) for at, rank in enumerate(RANKS[ranks])]
    bounds: list[tuple[int, int]] = []
    for length in SEGMENTS[segments]:
        begin = bounds[-1][1] + gap if bounds else 1  # between them are tokens of the base
        bounds.append((begin, begin + length))
    num_tokens = bounds[-1][1] + gap
    x, whole = torch.randn(num_tokens, in_width), torch.randn(num_tokens, out_width + 7)
    before, y = whole.clone(), whole[:, 3 : 3 + out_width]  # columns of what several modules give together
    right = y.double()
    for adapter, (begin, end) in enumerate(bounds):
        rows = pool[own[adapter][before_it:]].double()
        low = x[begin:end].double() @ rows[:, :in_width].t()
        right[begin:end] += low @ rows[:, in_width : in_width + out_width]
    tables = [
        RowTable.of(rows * width, np.array([before_it, rank], dtype=np.int32))
        for rows, rank in zip(own, RANKS[ranks], strict=True)
    ]
    LoraRows(kernels, bounds, tables).add([1], pool, x, y)
    assert torch.allclose(y.double(), right, rtol=1e-4, atol=1e-3)
    assert torch.equal(whole[:, :3], before[:, :3])
    assert torch.equal(whole[:, 3 + out_width :], before[:, 3 + out_width :])
