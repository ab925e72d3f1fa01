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
@pytest.mark.parametrize("widths", [(48, 32), (17, 5), (41, 110)])
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


@pytest.mark.parametrize("segments", SEGMENTS)
def test_modules_with_the_same_input_are_one_call(kernels: CpuKernels, segments: str) -> None:
    """Of unlike widths and ranks, of which an adapter may have none at some and no adapter has any at one."""
    torch.manual_seed(2)
    in_width, widths = 36, (40, 16, 16, 70)
    ranks = np.array(
        [[8, 0, 0, 5], [0, 3, 0, 0], [1, 1, 0, 16], [0, 0, 0, 0], [4, 4, 0, 4], [2, 64, 0, 9]], dtype=np.int32
    )
    lengths = SEGMENTS[segments]
    ends = np.cumsum(lengths).tolist()
    bounds = list(zip([0, *ends[:-1]], ends, strict=True))
    x, y = torch.randn(ends[-1], in_width), torch.randn(ends[-1], sum(widths))
    right, pool = y.double(), torch.randn(int(ranks.sum()) * (in_width + max(widths)))
    at, tables = 0, []
    for (begin, end), own in zip(bounds, ranks, strict=True):
        offsets: list[int] = []
        for module, rank in enumerate(own):
            row = in_width + widths[module]
            rows = pool[at : at + rank * row].view(rank, row).double()
            column = sum(widths[:module])
            low = x[begin:end].double() @ rows[:, :in_width].t()
            right[begin:end, column : column + widths[module]] += low @ rows[:, in_width:]
            offsets += range(at, at + rank * row, row)
            at += rank * row
        tables.append(RowTable.of(np.array(offsets, dtype=np.int64), own))
    columns = np.cumsum([0, *widths]).tolist()
    lora = LoraRows(kernels, bounds, tables)
    for _ in range(200):  # threads that take modules of the same tokens do not meet each time
        found = y.clone()
        lora.add(range(4), pool, x, found, *columns)
        assert torch.allclose(found.double(), right, rtol=1e-4, atol=1e-3)
