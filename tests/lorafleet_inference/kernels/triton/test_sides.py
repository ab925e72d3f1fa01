"""LoRA of head, embedding and experts by kernels equals two products a token, and reads what is there of true ranks alone."""

from dataclasses import dataclass

import pytest
import torch
from support.adapter_files import base_facts
from support.triton_launches import Launches, launches
from support.triton_sizes import SMALL

from lorafleet_inference.engine.messages import ExpertsFacts, ModuleFacts, ModuleKind
from lorafleet_inference.kernels.triton.sides import SideSite, SideStep
from lorafleet_inference.kernels.triton.step import StepBlock
from lorafleet_inference.model.experts import Pairs
from lorafleet_inference.model.side_lora import SideLayout

PAGE, HIDDEN, VOCABULARY, INNER, EXPERTS, CHOICES = 640, 48, 211, 32, 5, 3
"""Elements of a page: A and B of most sites lie in several of them, and none ends with one."""
FACTS = base_facts(
    side_modules=(
        ModuleFacts("embedding", ModuleKind.EMBEDDING, VOCABULARY, HIDDEN),
        ModuleFacts("head", ModuleKind.LINEAR, HIDDEN, VOCABULARY),
        ModuleFacts("router", ModuleKind.ROUTER, HIDDEN, EXPERTS),
    ),
    experts=(
        ExpertsFacts("experts", EXPERTS, (("gate_up_proj", HIDDEN, 2 * INNER), ("down_proj", INNER, HIDDEN))),
        ExpertsFacts("too wide", EXPERTS, (("gate_up_proj", HIDDEN, 2 * PAGE), ("down_proj", PAGE, HIDDEN))),
    ),
)
SITES = (("embedding", None), ("head", None), ("router", None), ("experts", "gate_up_proj"), ("experts", "down_proj"))


@dataclass(frozen=True)
class Case:
    ranks: tuple[tuple[int, ...], ...]
    """By adapter and site."""
    counts: tuple[int, ...]
    """Tokens of each adapter."""
    num_base: int = 2
    """Tokens of the base before, and as many after."""


CASES = {
    "few": Case(((3, 5, 4, 2, 1), (0, 0, 0, 0, 0), (20, 17, 9, 18, 7), (1, 0, 0, 0, 4)), (3, 2, 18, 1)),
    "many": Case(((8, 3, 5, 4, 16), (2, 2, 3, 1, 1)), (37, 4)),
}
WIDE = 1040
"""Of an x that is split among programs."""


class Setup:
    """A pool with a NaN wherever nothing of an adapter lies."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        layout = SideLayout(FACTS, PAGE)
        assert [(place.module, place.parameter) for place in layout.places] == [*SITES]
        self.case, self.dtype, self.device = case, dtype, device
        self.sites = {(place.module, place.parameter): place.site for place in layout.places}
        laid = [layout.laid(ranks) for ranks in case.ranks]
        num_pages = sum(number for _, number in laid)
        free = (torch.randperm(num_pages) + 1).tolist()
        self.pool = torch.full((num_pages + 2, PAGE), float("nan"), dtype=dtype)
        pages = [[free.pop() for _ in range(number)] for _, number in laid]
        self.parts: list[dict[tuple[str, str | None], tuple[torch.Tensor, torch.Tensor]]] = []
        for ranks, (entries, _), own in zip(case.ranks, laid, pages, strict=True):
            self.parts.append({})
            for place, rank in zip(layout.places, ranks, strict=True):
                made = []
                for first, (number, width) in zip(entries[place.site.number, 1:3], place.rows(rank), strict=True):
                    rows = (torch.randn(number, width) / 4).to(dtype)
                    if rank:
                        self._lay(own, int(first), rows)
                    made.append(rows)
                self.parts[-1][place.module, place.parameter] = made[0], made[1]
        self.num_rows = sum(case.counts) + 2 * case.num_base
        self.segments, begin = [], case.num_base
        for count in case.counts:
            self.segments.append((begin, begin + count))
            begin += count
        self.pool = self.pool.to(device)
        self.step = SideStep(
            SMALL, StepBlock(device), self.segments, pages, [entries for entries, _ in laid], self.num_rows
        )

    def _lay(self, pages: list[int], first: int, rows: torch.Tensor) -> None:
        number, width = rows.shape
        for row in range(first, first + number):
            at = row % (PAGE // width) * width
            place = self.pool[pages[row // (PAGE // width)], at : at + width]
            assert place.isnan().all(), "two parts lie at one place"
            place.copy_(rows[row - first])

    def rows(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(self.dtype)

    def owners(self) -> list[int | None]:
        """The adapter of each token."""
        return [
            next((at for at, (begin, end) in enumerate(self.segments) if begin <= row < end), None)
            for row in range(self.num_rows)
        ]

    def a_and_b(self, adapter: int, site: tuple[str, str | None], expert: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B in float64."""
        rank = self.case.ranks[adapter][SITES.index(site)]
        a, b = self.parts[adapter][site]
        if site[0] == "embedding":
            return a.double(), b.double()
        rows = slice(expert * rank, (expert + 1) * rank)
        return a[rows].double(), b[rows].double()


def check(y: torch.Tensor, right: torch.Tensor) -> None:
    tolerance = 2e-2 if y.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y.cpu().double(), right, rtol=tolerance, atol=tolerance)


def added(setup: Setup, seen: Launches, *names: str) -> int:
    """Bytes that were read of the pool."""
    return sum(seen.read[name, "pool"] for name in names)


@pytest.mark.parametrize(("dtype", "order"), [(torch.bfloat16, 1), (torch.float32, None)], ids=str)
@pytest.mark.parametrize(("name", "module"), [("few", "head"), ("many", "head"), ("few", "router")])
def test_head_and_router(device: torch.device, name: str, module: str, dtype: torch.dtype, order: int | None) -> None:
    setup, site = Setup(CASES[name], dtype, device), (module, None)
    x, y = setup.rows(setup.num_rows, HIDDEN), setup.rows(setup.num_rows, setup.sites[site].out_width)
    right, size, read = y.double(), dtype.itemsize, 0
    for adapter, (begin, end) in enumerate(setup.segments):
        a, b = setup.a_and_b(adapter, site)
        right[begin:end] += (x[begin:end].double() @ a.t()).to(dtype).double() @ b
        read += (a.numel() + b.numel()) * size
    y = y.to(device)
    with launches(order) as seen:
        setup.step.add(setup.sites[site], setup.pool, x.to(device), y, None)
    check(y, right)
    assert seen.kernels == ["side_shrink", "side_expand"]
    if device.type == "cpu":
        assert added(setup, seen, *seen.kernels) == read


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_embedding(device: torch.device, name: str, dtype: torch.dtype) -> None:
    setup, site, scale = Setup(CASES[name], dtype, device), ("embedding", None), 1.5
    ids = torch.randint(VOCABULARY, (setup.num_rows,))
    ids[-6:] = ids[0]
    y = setup.rows(setup.num_rows, HIDDEN)
    right, read = y.double(), 0
    for adapter, (begin, end) in enumerate(setup.segments):
        a, b = setup.a_and_b(adapter, site)
        right[begin:end] += scale * (a[ids[begin:end]] @ b)
        rank = setup.case.ranks[adapter][0]
        read += (len(set(ids[begin:end].tolist())) * rank + b.numel()) * dtype.itemsize
    y = y.to(device)
    with launches() as seen:
        setup.step.embed(setup.sites[site], setup.pool, ids.to(device), y, scale)
    check(y, right)
    if device.type == "cpu":
        assert added(setup, seen, "embed") == read


@pytest.mark.parametrize(
    ("name", "part", "dtype", "order"),
    [
        ("few", "gate_up_proj", torch.bfloat16, None),
        ("few", "down_proj", torch.float32, 1),
        ("many", "gate_up_proj", torch.float32, None),
        ("many", "down_proj", torch.bfloat16, 1),
    ],
    ids=str,
)
def test_experts(device: torch.device, name: str, part: str, dtype: torch.dtype, order: int | None) -> None:
    """One expert more than there are stands for none."""
    setup, site = Setup(CASES[name], dtype, device), ("experts", part)
    place: SideSite = setup.sites[site]
    chosen = torch.stack([torch.randperm(EXPERTS + 1)[:CHOICES] for _ in range(setup.num_rows)])
    places = torch.randperm(setup.num_rows * CHOICES).view(setup.num_rows, CHOICES)
    x, y = setup.rows(places.numel(), place.in_width), setup.rows(places.numel(), place.out_width)
    right, read = y.double(), set[tuple[int, int]]()
    for token, adapter in enumerate(setup.owners()):
        for expert, row in zip(chosen[token].tolist(), places[token].tolist(), strict=True):
            if adapter is not None and expert < EXPERTS:
                a, b = setup.a_and_b(adapter, site, expert)
                right[row] += (x[row].double() @ a.t()).to(dtype).double() @ b
                read.add((adapter, expert))
    y = y.to(device)
    with launches(order) as seen:
        pairs = Pairs(chosen.to(device), places.to(device))
        setup.step.add(place, setup.pool, x.to(device), y, pairs)
    check(y, right)
    if device.type == "cpu":
        ranks = [setup.case.ranks[adapter][SITES.index(site)] for adapter, _ in read]
        assert added(setup, seen, *seen.kernels) == sum(ranks) * (place.in_width + place.out_width) * dtype.itemsize


def test_an_x_that_is_split(device: torch.device) -> None:
    """Among programs, whose parts are summed."""
    facts = base_facts(side_modules=(ModuleFacts("head", ModuleKind.LINEAR, WIDE, 40),))
    layout = SideLayout(facts, 4 * WIDE)
    entries, num_pages = layout.laid((3,))
    torch.manual_seed(0)
    a, b = torch.randn(3, WIDE) / 30, torch.randn(3, 40)
    pool = torch.zeros(num_pages, 4 * WIDE)
    pool[0, : 3 * WIDE] = a.reshape(-1)
    first = int(entries[0, 2]) * 40
    pool.view(-1)[first : first + 120] = b.reshape(-1)
    x, y = torch.randn(2, WIDE), torch.zeros(2, 40, device=device)
    step = SideStep(SMALL, StepBlock(device), [(0, 2)], [range(num_pages)], [entries], 2)
    with launches() as seen:
        step.add(layout.places[0].site, pool.to(device), x.to(device), y, None)
    check(y, (x.double() @ a.double().t()) @ b.double())
    assert seen.kernels == ["side_shrink", "side_expand"]


def test_a_site_that_no_adapter_of_the_step_changes_costs_nothing(device: torch.device) -> None:
    setup = Setup(Case(((0, 3, 0, 0, 0),), (2,)), torch.float32, device)
    x, y = setup.rows(setup.num_rows, HIDDEN).to(device), setup.rows(setup.num_rows, HIDDEN).to(device)
    with launches() as seen:
        setup.step.embed(setup.sites["embedding", None], setup.pool, torch.zeros(6, dtype=torch.int64), y, 1.0)
        setup.step.add(setup.sites["experts", "gate_up_proj"], setup.pool, x, y, None)
    assert seen.kernels == []
    assert not setup.step.adds(setup.sites["embedding", None])
    assert setup.step.adds(setup.sites["head", None])
