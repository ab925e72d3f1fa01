"""Rows of 8 bits are within the error that is stated of them, and each way to write and read them gives the same."""

import pytest
import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.cpu import CpuKernels

ROUNDING = 2.0**-4
"""Of an element, half of the last bit of a number with a leading one."""
STEP = 2.0**-18 / 0.875
"""Of the row's largest element, half of the step of numbers without."""
WIDTH = 16


def hard_rows() -> torch.Tensor:
    """[rows, WIDTH] float32: of all magnitudes, on edges and between, and such as hold no number."""
    torch.manual_seed(0)
    halves = torch.tensor([448.0] + [2.0**-9 * (at + 0.5) for at in range(WIDTH - 1)])  # between two codes
    powers = 2.0 ** -torch.arange(float(WIDTH))
    rows = [torch.randn(WIDTH) * 10.0**power for power in range(-30, 31, 3)]
    rows += [torch.zeros(WIDTH), halves, 1.75 * powers, 1.7500001 * powers, -powers, powers * 2.0**-120]
    rows += [torch.full((WIDTH,), value) for value in (1e-39, 1e38, 1.4e38, 1.5e38, 3.4e38, float("-inf"))]
    rows.append(torch.ones(WIDTH).index_fill(0, torch.tensor([5]), float("nan")))
    return torch.stack(rows)


def test_each_code_says_what_e4m3_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8)[None]
    right = codes.view(torch.float8_e4m3fn).float()
    told = fp8_pages.decode(codes, torch.tensor([127 + 8], dtype=torch.uint8), torch.float32)
    assert torch.equal(told.nan_to_num(7.0), right.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_of_an_element_is_bounded(dtype: torch.dtype) -> None:
    rows = hard_rows().to(dtype)
    rows = rows[(rows.float().abs().amax(-1) < 1.48e38)]
    told = fp8_pages.decode(*fp8_pages.encode(rows), dtype).double()
    right = rows.double()
    bound = torch.maximum(ROUNDING * right.abs(), STEP * right.abs().amax(-1, keepdim=True)).clamp(min=2.0**-126)
    assert ((told - right).abs() <= bound).all()
    assert len(rows) > (15 if dtype == torch.float16 else 25)


def test_zeros_stay_zeros_and_largest_elements_do_not_saturate() -> None:
    rows = torch.tensor([[0.0, 0.0], [448.0, -1.0], [464.0, 3.5], [1e30, 0.0]])
    told = fp8_pages.decode(*fp8_pages.encode(rows), torch.float32)
    assert torch.equal(told[:2], rows[:2])
    assert told[2].tolist() == [448.0, 3.5], "between two numbers, of which 480 is the odd one"
    assert told[3, 0] == pytest.approx(1e30, rel=ROUNDING)


def test_row_that_is_not_finite_says_nan_alone() -> None:
    rows = torch.ones(3, 4)
    rows[1, 2] = float("inf")
    told = fp8_pages.decode(*fp8_pages.encode(rows), torch.float32)
    assert told[1].isnan().all()
    assert torch.equal(told[[0, 2]], rows[[0, 2]])


def test_compiled_kernel_writes_the_same_bytes(kernels: CpuKernels) -> None:
    rows = hard_rows()
    groups = 3
    source = rows[None].repeat(groups, 1, 1) * torch.tensor([1.0, -1.0, 0.25])[:, None, None]
    num_blocks = -(-len(rows) // KV_BLOCK_TOKENS) + 1
    slots = torch.randperm(num_blocks * KV_BLOCK_TOKENS)[: len(rows)]
    ours, right = (
        torch.full((num_blocks, groups, KV_BLOCK_TOKENS, WIDTH + 1), 77, dtype=torch.uint8) for _ in range(2)
    )
    fp8_pages.write(source, right, slots // KV_BLOCK_TOKENS, slots % KV_BLOCK_TOKENS)
    assert kernels.write_pages(source, ours, slots)
    assert torch.equal(ours, right)
    assert not kernels.write_pages(source.bfloat16(), ours, slots), "left to torch"


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("spread", "usual"), [(0.5, 0.1), (2.0, 0.3)])
def test_error_of_attention_is_within_the_formula(width: int, spread: float, usual: float) -> None:
    """Scores are off by at most e = scale sum |q| (error of k), so weights by a factor of exp(2 e), and values by their own error.

    `usual`: of the answer's length, how long the error is at most where errors of elements cancel.
    """
    torch.manual_seed(width)
    tokens, scale = 200, width**-0.5
    query = torch.randn(width, dtype=torch.float64) * spread
    keys, values = (torch.randn(tokens, width) for _ in range(2))
    keys[:, ::17] *= 8  # channels that are larger than others, as models have
    told = [fp8_pages.decode(*fp8_pages.encode(some), torch.float32).double() for some in (keys, values)]
    keys, values = keys.double(), values.double()

    def bounds(rows: torch.Tensor) -> torch.Tensor:
        return torch.maximum(ROUNDING * rows.abs(), STEP * rows.abs().amax(-1, keepdim=True))

    weights = (keys @ query * scale).softmax(0)
    right = weights @ values
    ours = (told[0] @ query * scale).softmax(0) @ told[1]
    off = (bounds(keys) @ query.abs() * scale).max()
    largest = (values.abs() + bounds(values)).amax(0)
    bound = (torch.exp(2 * off) - 1) * largest + weights @ bounds(values)
    assert ((ours - right).abs() <= bound).all()
    assert (ours - right).norm() < usual * right.norm()
