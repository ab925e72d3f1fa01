"""Deltas read from the pool equal two products a token, over ranks and popularity."""

import pytest
import torch

from lorafleet_inference.kernels.cpu import CpuKernels, LoraRows

NUM_ADAPTERS, NUM_TOKENS = 6, 11
RANKS = {
    "equal": [8] * NUM_ADAPTERS,
    "odd": [1, 2, 3, 5, 7, 13],
    "large": [16, 64, 256, 33, 4, 20],
    "missing modules": [0, 8, 0, 3, 1, 0],
    "nothing at all": [0] * NUM_ADAPTERS,
}
POPULARITY = {
    "identical": [2] * NUM_TOKENS,
    "uniform": [number % NUM_ADAPTERS for number in range(NUM_TOKENS)],
    "distinct": list(range(NUM_ADAPTERS)),
    "skewed": [0, 0, 0, 0, 0, 0, 1, 1, 1, 3, 5],
}


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("widths", [(48, 32), (17, 5)])
def test_equals_two_products_a_token(kernels: CpuKernels, ranks: str, popularity: str, widths: tuple[int, int]) -> None:
    torch.manual_seed(1)
    in_width, out_width = widths
    column, pool_rows_each = 9, 256
    pool = torch.randn(NUM_ADAPTERS * pool_rows_each, column + in_width + out_width + 3)
    order = torch.randperm(len(pool)).tolist()
    pool_rows = [order[at * pool_rows_each : (at + 1) * pool_rows_each] for at in range(NUM_ADAPTERS)]
    adapters = POPULARITY[popularity]
    token_rows = torch.randperm(NUM_TOKENS)[: len(adapters)].tolist()
    x, y = torch.randn(NUM_TOKENS, in_width), torch.randn(NUM_TOKENS, out_width)
    right = y.double()
    for row, adapter in zip(token_rows, adapters, strict=True):
        rows = pool[pool_rows[adapter][: RANKS[ranks][adapter]]].double()
        low = rows[:, column : column + in_width] @ x[row].double()
        right[row] += low @ rows[:, column + in_width : column + in_width + out_width]
    both = LoraRows(kernels, token_rows, adapters, pool_rows, [[5, rank] for rank in RANKS[ranks]])
    both.add(1, pool, column, x, y)
    assert torch.allclose(y.double(), right, rtol=1e-4, atol=1e-3)
