"""LoRA by kernels equals two products a token, and reads the rows of the true ranks alone."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support.triton_launches import Launches, launches
from support.triton_sizes import SMALL

from lorafleet_inference.config import RANK_PAGE
from lorafleet_inference.kernels.triton.launch import launching
from lorafleet_inference.kernels.triton.rows import LoraStep, site_of
from lorafleet_inference.kernels.triton.step import StepBlock


@dataclass(frozen=True)
class Case:
    ranks: tuple[tuple[int, ...], ...]
    """By adapter and module."""
    counts: tuple[int, ...]
    """Tokens of each adapter."""
    in_width: int = 96
    out_widths: tuple[int, ...] = (64, 32, 48)
    num_base: int = 2
    """Tokens of the base before, and as many after."""


CASES = {
    "same": Case(((16, 8, 5),), (9,)),
    "uniform": Case(((8, 8, 8),) * 4, (3, 3, 3, 3)),
    "distinct": Case(tuple((rank, rank, rank) for rank in (1, 2, 3, 8, 16, 33)), (1,) * 6),
    "skewed": Case(((4, 0, 16), (0, 0, 0), (24, 3, 1)), (18, 1, 2)),
    "long segments": Case(((7, 16, 0), (20, 20, 20)), (70, 3)),
    "largest ranks": Case(((256,), (1,), (64,), (100,)), (2, 1, 17, 1), out_widths=(48,)),
    "one wide module": Case(((16,), (5,)), (1, 4), in_width=48, out_widths=(1104,)),
    "an x that is split": Case(((16, 80),), (5,), in_width=2064, out_widths=(32, 16)),
}

FLOAT32 = ("skewed", "long segments", "largest ranks")
DTYPES = [(name, torch.bfloat16) for name in CASES] + [(name, torch.float32) for name in FLOAT32]


class Setup:
    """A pool with a NaN wherever nothing of an adapter lies, and what torch answers."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        at = itertools.accumulate((0, *(case.in_width + width for width in case.out_widths)))
        self.columns = [
            (slice(one, one + case.in_width), slice(one + case.in_width, one + case.in_width + width))
            for one, width in zip(at, case.out_widths, strict=False)
        ]
        num_pages = [max(1, -(-max(ranks) // RANK_PAGE)) for ranks in case.ranks]
        free = (torch.randperm(sum(num_pages)) + 1).tolist()
        self.pages = [[free.pop() for _ in range(number)] for number in num_pages]
        pool = torch.full(((sum(num_pages) + 2) * RANK_PAGE, self.columns[-1][1].stop), float("nan"), dtype=dtype)
        num_tokens = sum(case.counts) + 2 * case.num_base
        x, y = torch.randn(num_tokens, case.in_width).to(dtype), torch.randn(num_tokens, sum(case.out_widths)).to(dtype)
        right, begin = y.double(), case.num_base
        self.segments = []
        for ranks, count, pages in zip(case.ranks, case.counts, self.pages, strict=True):
            rows = (torch.tensor(pages)[:, None] * RANK_PAGE + torch.arange(RANK_PAGE)).flatten()
            column = 0
            for rank, (a, b) in zip(ranks, self.columns, strict=True):
                pool[rows[:rank], a] = (torch.randn(rank, case.in_width) / case.in_width**0.5).to(dtype)
                width = b.stop - b.start
                pool[rows[:rank], b] = (torch.randn(rank, width) / max(rank, 1) ** 0.5).to(dtype)
                low = (x[begin : begin + count].double() @ pool[rows[:rank], a].double().t()).to(dtype)
                right[begin : begin + count, column : column + width] += low.double() @ pool[rows[:rank], b].double()
                column += width
            self.segments.append((begin, begin + count))
            begin += count
        self.ranks = [np.array(ranks, dtype=np.int32) for ranks in case.ranks]
        self.x, self.y, self.pool, self.right = x.to(device), y.to(device), pool.to(device), right

    def run(self, *, fused: bool = True, order: int | None = None) -> Launches:
        """Add to y, all modules at one site or each at its own, and return what was launched."""
        with launches(order) as seen:
            self.add(fused=fused)
        return seen

    def add(self, *, fused: bool = True) -> None:
        """Add to y."""
        step = LoraStep(SMALL, StepBlock(self.x.device), self.segments, self.pages, self.ranks)
        modules = range(len(self.columns))
        if fused:
            self._add(step, modules, self.y)
            return
        for module, part in zip(modules, self.y.split(self._widths(), 1), strict=True):
            self._add(step, [module], part)

    def _add(self, step: LoraStep, modules: Sequence[int], y: torch.Tensor) -> None:
        site = site_of(modules, [self.columns[module] for module in modules], self.x.device)
        assert site is not None
        step.add(site, self.pool, self.x, y)

    def _widths(self) -> list[int]:
        return [b.stop - b.start for _, b in self.columns]

    def check(self) -> None:
        """y is what two products a token make of it, and without a NaN."""
        tolerance = 2e-2 if self.y.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(self.y.cpu().double(), self.right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "dtype"), DTYPES, ids=str)
def test_equals_two_products_a_token(device: torch.device, name: str, dtype: torch.dtype) -> None:
    setup = Setup(CASES[name], dtype, device)
    setup.run()
    setup.check()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["skewed", "long segments"])
def test_any_order_of_the_programs_does(device: torch.device, name: str, order: int) -> None:
    setup = Setup(CASES[name], torch.bfloat16, device)
    setup.run(order=order)
    setup.check()


@pytest.mark.parametrize("name", ["skewed", "long segments"])
def test_each_module_by_itself(device: torch.device, name: str) -> None:
    setup = Setup(CASES[name], torch.float32, device)
    setup.run(fused=False)
    setup.check()


@pytest.mark.parametrize("name", CASES)
def test_reads_true_ranks_and_touched_rows_alone(device: torch.device, name: str) -> None:
    if device.type == "cuda":
        pytest.skip("bytes are counted by the interpreter")
    case, size = CASES[name], 2
    setup = Setup(case, torch.bfloat16, device)
    seen = setup.run()
    a = sum(sum(ranks) for ranks in case.ranks) * case.in_width * size
    b = sum(rank * width for ranks in case.ranks for rank, width in zip(ranks, case.out_widths, strict=True)) * size
    rows = sum(count for ranks, count in zip(case.ranks, case.counts, strict=True) if any(ranks))
    touched = size * sum(
        count * width
        for ranks, count in zip(case.ranks, case.counts, strict=True)
        for rank, width in zip(ranks, case.out_widths, strict=True)
        if rank
    )
    if "both" in seen.kernels:
        first = last = "both"
        assert seen.read["both", "pool"] == a + b
    else:
        first, last = "shrink", "expand"
        assert (seen.read["shrink", "pool"], seen.read["expand", "pool"]) == (a, b)
        assert seen.written["shrink", "low"] == seen.read["expand", "low"]
    assert seen.read[first, "x"] == rows * case.in_width * size
    assert seen.read[last, "y"] == seen.written[last, "y"] == touched


def test_one_launch_for_few_tokens_and_two_for_many(device: torch.device) -> None:
    assert Setup(CASES["distinct"], torch.float32, device).run().kernels == ["both"]
    assert Setup(CASES["long segments"], torch.float32, device).run().kernels == ["shrink", "expand"]
    assert Setup(CASES["largest ranks"], torch.float32, device).run().kernels == ["shrink", "expand"]


def test_a_module_that_no_adapter_of_the_step_changes_costs_nothing(device: torch.device) -> None:
    case = Case(((4, 0, 16), (2, 0, 3)), (3, 1))
    setup = Setup(case, torch.float32, device)
    assert setup.run(fused=False).kernels == ["both", "both"]
    setup.check()


@pytest.mark.parametrize("name", ["skewed", "long segments"])
def test_padding_of_the_items_does_nothing(device: torch.device, name: str) -> None:
    def padded(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
        at = kernel.arg_names.index("items")
        behind = torch.tensor([(2**30, 2**30, 0)] * 2, dtype=torch.int32, device=device)
        items = torch.cat([args[at], behind])
        kernel[(grid[0] + 2, *grid[1:])](*args[:at], items, *args[at + 1 :], **constants)

    setup = Setup(CASES[name], torch.float32, device)
    with launching(padded):
        setup.add()
    setup.check()


def test_widths_that_are_no_multiple_of_16_are_left_to_torch(device: torch.device) -> None:
    assert site_of([0], [(slice(0, 24), slice(32, 64))], device) is None
    assert site_of([0], [(slice(0, 32), slice(32, 52))], device) is None
    assert site_of([0], [(slice(0, 32), slice(32, 64))], device) is not None
