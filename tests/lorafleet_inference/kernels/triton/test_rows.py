"""LoRA by kernels equals two products a token, and reads the rows of the true ranks alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.triton_launches import Launches, launches
from support.triton_sizes import SMALL

from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.kernels.triton import rows
from lorafleet_inference.kernels.triton.blocks import MIN_DOT, Blocks
from lorafleet_inference.kernels.triton.rows import (
    ALIGN,
    EXPAND_RANKS,
    SHRINK_TILES,
    AdapterTables,
    LoraStep,
    _num_tiles,
    site_of,
)
from lorafleet_inference.kernels.triton.step import Given, StepBlock
from lorafleet_inference.model.graph_rooms import record_bytes


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
    page: int = 0
    """Elements of a page at least."""


CASES = {
    "same": Case(((16, 8, 5),), (9,)),
    "uniform": Case(((8, 8, 8),) * 4, (3, 3, 3, 3)),
    "distinct": Case(tuple((rank, rank, rank) for rank in (1, 2, 3, 8, 16, 33)), (1,) * 6),
    "skewed": Case(((4, 0, 16), (0, 0, 0), (24, 3, 1)), (18, 1, 2)),
    "long segments": Case(((7, 16, 0), (20, 20, 20)), (70, 3)),
    "modules that some lack": Case(((0, 8, 0), (16, 0, 16), (0, 0, 24)), (2, 3, 1), out_widths=(64, 32, 64), page=1000),
    "largest ranks": Case(((256,), (1,), (64,), (100,)), (2, 1, 17, 1), out_widths=(48,)),
    "one wide module": Case(((16,), (5,)), (1, 4), in_width=48, out_widths=(1104,)),
    "an x that is split": Case(((16, 80),), (5,), in_width=2064, out_widths=(32, 16)),
}

FLOAT32 = ("skewed", "long segments", "largest ranks")
DTYPES = [(name, torch.bfloat16) for name in CASES] + [(name, torch.float32) for name in FLOAT32]


class Setup:
    """A pool with a NaN wherever nothing of an adapter lies, and what torch answers."""

    def __init__(
        self,
        case: Case,
        dtype: torch.dtype,
        device: torch.device,
        sites: Sequence[Sequence[int]] = (),
        sizes: Blocks = SMALL,
    ) -> None:
        torch.manual_seed(0)
        self.layout = RowLayout(
            {str(n): Place(case.in_width, width, case.in_width + width) for n, width in enumerate(case.out_widths)},
            case.page,
        )
        laid = [self.layout.laid(ranks) for ranks in case.ranks]
        total = sum(one.num_pages for one in laid)
        free = (torch.randperm(total) + 1).tolist()
        pool = torch.full((total + 2, self.layout.page), float("nan"), dtype=dtype)
        # numbers of adapters are not their places in the step
        self.numbers = list(reversed(range(1, len(laid) + 1)))
        longest = max(one.num_pages for one in laid)
        self.tables = AdapterTables(len(laid) + 1, longest, self.layout, device, sites)
        num_tokens = sum(case.counts) + 2 * case.num_base
        x, y = torch.randn(num_tokens, case.in_width).to(dtype), torch.randn(num_tokens, sum(case.out_widths)).to(dtype)
        right, begin = y.double(), case.num_base
        self.segments = []
        for number, one, ranks, count in zip(self.numbers, laid, case.ranks, case.counts, strict=True):
            pages = [free.pop() for _ in range(one.num_pages)]
            firsts = np.array(one.firsts, dtype=np.int32)
            self.tables.write(number, pages, np.array(ranks, dtype=np.int32), firsts)
            column = 0
            for rank, first, place, fit in zip(ranks, one.firsts, self.layout.places, self.layout.fits, strict=True):
                a = (torch.randn(rank, case.in_width) / case.in_width**0.5).to(dtype)
                b = (torch.randn(rank, place.out_width) / max(rank, 1) ** 0.5).to(dtype)
                for r in range(rank):
                    page, slot = divmod(first + r, fit)
                    begins = slot * place.row_width
                    pool[pages[page], begins : begins + place.row_width] = torch.cat([a[r], b[r]])
                low = (x[begin : begin + count].double() @ a.double().t()).to(dtype)
                right[begin : begin + count, column : column + place.out_width] += low.double() @ b.double()
                column += place.out_width
            self.segments.append((begin, begin + count))
            begin += count
        self.ranks = [np.array(ranks, dtype=np.int32) for ranks in case.ranks]
        self.x, self.y, self.pool, self.right = x.to(device), y.to(device), pool.to(device), right

        self._sizes = sizes
        self.steps: list[LoraStep] = []
        self.max_rank = 0
        """Where it is more: the rank that the step has room for, as captured ones have."""

    def run(self, *, fused: bool = True, order: int | None = None) -> Launches:
        """Add to y, all modules at one site or each at its own, and return what was launched."""
        with launches(order) as seen:
            self.add(fused=fused)
        return seen

    def step(self, *, num_padding: int = 0) -> LoraStep:
        """Return a step; `num_padding`: items that it does not have."""
        step = LoraStep(self._sizes, StepBlock(self.x.device), self.segments, self.numbers, self.ranks, self.tables)
        step._max_ranks = np.maximum(step._max_ranks, self.max_rank)
        if num_padding:
            behind = torch.tensor([(2**30, 2**30, 0)] * num_padding, dtype=torch.int32, device=self.x.device)
            step._items = Given(torch.cat([step._items.tensor, behind]))
            step._num_items += num_padding
        self.steps.append(step)
        return step

    def add(self, *, fused: bool = True, num_padding: int = 0) -> None:
        """Add to y."""
        step, modules = self.step(num_padding=num_padding), range(len(self.layout.places))
        if fused:
            self.add_at(step, modules, self.y)
            return
        for module, part in zip(modules, self.y.split(self._widths(), 1), strict=True):
            self.add_at(step, [module], part)

    def add_at(self, step: LoraStep, modules: Sequence[int], y: torch.Tensor) -> None:
        """Add to y what some modules add."""
        places = [self.layout.places[module] for module in modules]
        site = site_of(modules, places, self.layout.page, self.x.device)
        assert site is not None
        step.add(site, self.pool, self.x, y)

    def _widths(self) -> list[int]:
        return [place.out_width for place in self.layout.places]

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


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("distinct", {"record": 3, "both": 2}),
        ("long segments", {"record": 3, "shrink": 2, "expand": 2}),
        ("an x that is split", {"record": 3, "shrink": 2, "expand": 3}),
    ],
)
def test_a_program_waits_twice_for_memory(device: torch.device, name: str, rounds: dict[str, int]) -> None:
    """For its record, and for what that says. Beyond EXPAND_RANKS ranks it asks for where the others begin."""
    if device.type == "cuda":
        pytest.skip("rounds are counted by the interpreter")
    assert Setup(CASES[name], torch.bfloat16, device).run().rounds == rounds
    assert (max(map(max, CASES[name].ranks)) > EXPAND_RANKS) == (rounds.get("expand") == 3)


def test_one_launch_for_few_tokens_and_two_for_many(device: torch.device) -> None:
    assert Setup(CASES["distinct"], torch.float32, device).run().kernels == ["record", "both"]
    assert Setup(CASES["long segments"], torch.float32, device).run().kernels == ["record", "shrink", "expand"]
    assert Setup(CASES["largest ranks"], torch.float32, device).run().kernels == ["record", "shrink", "expand"]


def test_a_module_that_no_adapter_of_the_step_changes_costs_nothing(device: torch.device) -> None:
    case = Case(((4, 0, 16), (2, 0, 3)), (3, 1))
    setup = Setup(case, torch.float32, device)
    assert setup.run(fused=False).kernels == ["record", "both", "both"]
    setup.check()


@pytest.mark.parametrize("name", ["skewed", "long segments"])
def test_padding_of_the_items_does_nothing(device: torch.device, name: str) -> None:
    setup = Setup(CASES[name], torch.float32, device)
    with launches():
        setup.add(num_padding=2)
    setup.check()


@pytest.mark.parametrize("order", [None, 1])
def test_ranks_that_no_adapter_has_are_no_programs(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, order: int | None
) -> None:
    """Of a grid that would be larger than a GPU takes at once: a program goes on with the ranks behind its own, where there are any."""
    monkeypatch.setattr(rows, "SHRINK_PROGRAMS", 1)
    case, most = CASES["largest ranks"], 256
    setup = Setup(case, torch.bfloat16, device)
    setup.max_rank = most
    seen = setup.run(order=order)
    setup.check()
    if device.type == "cpu":
        num_items = sum(-(-count // SMALL.few.tokens) for count in case.counts)
        assert seen.programs["shrink"] == num_items * SHRINK_TILES < num_items * most // MIN_DOT
        assert seen.read["shrink", "pool"] == sum(map(sum, case.ranks)) * case.in_width * 2
        assert seen.rounds["shrink"] == 3, "further tiles are asked for when the rank is known"


def test_programs_of_a_pod_for_rank_128() -> None:
    """Of A x in a layer of Llama-3-8B, 64 items: query, key and value; output; gate and up; down, by slices and parts of the sum."""
    parts, tiles, num_items = (3 * 4, 1 * 4, 2 * 4, 1 * 8), 128 // MIN_DOT, 64
    assert sum(num_items * part * tiles for part in parts) == 16384
    assert sum(num_items * part * _num_tiles(tiles, num_items * part) for part in parts) == 4608
    assert [_num_tiles(tiles, part) for part in parts] == [tiles] * 4, "one item: all tiles are at work at once"


def test_records_are_made_once_for_all_sites_of_a_step(device: torch.device) -> None:
    setup = Setup(CASES["skewed"], torch.float32, device)
    seen = setup.run(fused=False)
    assert seen.kernels == ["record", *["both"] * 3]
    setup.check()


def test_records_say_where_the_rows_of_true_ranks_begin(device: torch.device) -> None:
    """Of each item at each place; nothing else is looked up, and nothing behind a rank is written."""
    case = CASES["modules that some lack"]
    setup = Setup(case, torch.bfloat16, device)
    seen = setup.run()
    records = setup.steps[0]._records
    assert records.shape == (3, 3, 4 + 32)
    assert records.nbytes == 3 * record_bytes(3, 32), "what memory is set aside for captured steps by"
    for item, (ranks, (begin, end)) in enumerate(zip(case.ranks, setup.segments, strict=True)):
        for place, rank in enumerate(ranks):
            assert records[place, item, :3].tolist() == [rank, begin, end - begin]
            rows = setup.pool.view(-1)[records[place, item, 4 : 4 + rank].long() * ALIGN]
            assert not rows.isnan().any()
    if device.type == "cpu":
        assert seen.written["record", "records"] == 4 * (9 * 3 + sum(map(sum, case.ranks)))


def test_modules_of_a_site_are_neighbours_in_whatever_order_they_come(device: torch.device) -> None:
    case = Case(((16, 8, 5), (0, 3, 2)), (3, 2))
    setup = Setup(case, torch.float32, device, sites=[(2, 0)])
    first, second, third = setup.y.split(case.out_widths, 1)
    together, alone = torch.cat([third, first], 1), second.contiguous()
    with launches() as seen:
        step = setup.step()
        setup.add_at(step, (2, 0), together)
        setup.add_at(step, (1,), alone)
    assert seen.kernels == ["record", "both", "both"]
    setup.y = torch.cat([together[:, case.out_widths[2] :], alone, together[:, : case.out_widths[2]]], 1)
    setup.check()
    with pytest.raises(AssertionError):
        setup.add_at(step, (1, 2), setup.y)


def test_widths_that_are_no_multiple_of_16_are_left_to_torch(device: torch.device) -> None:
    assert site_of([0], [Place(24, 32, 64)], 256, device) is None
    assert site_of([0], [Place(32, 20, 64)], 256, device) is None
    assert site_of([0], [Place(32, 32, 64)], 250, device) is None
    assert site_of([0], [Place(32, 32, 64)], 256, device) is not None
