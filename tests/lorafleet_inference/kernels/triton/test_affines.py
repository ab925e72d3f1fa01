"""Scales and offsets by the kernel equal y = scale * y + offset for each token's adapter, and read what is there of them alone."""

import pytest
import torch
from support.adapter_files import base_facts
from support.triton_launches import launches

from lorafleet_inference.engine.messages import ModuleFacts, ModuleKind
from lorafleet_inference.kernels.triton.affines import WIDTH, AffineStep, affine_site
from lorafleet_inference.kernels.triton.step import StepBlock
from lorafleet_inference.model.affine_bank import VECTORS, AffineLayout

PAGE = 1040
"""Elements: no page ends with a row."""
WIDTHS = {"q": 304, "k": 16, "v": 48, "down": 32}
FACTS = base_facts(modules=tuple(ModuleFacts(name, ModuleKind.LINEAR, 32, width) for name, width in WIDTHS.items()))
ADAPTERS = (("q", "k", "v", "down"), (), ("down", "k"), ("v", "q"))
"""Modules with a scale and an offset."""
COUNTS, NUM_BASE = (3, 2, 18, 1), 2
"""Tokens of each adapter; of the base before, and as many after."""
SITES = (("q", "k", "v"), ("down",))


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize(("dtype", "order"), [(torch.bfloat16, 1), (torch.float32, None), (torch.float32, 2)], ids=str)
def test_each_token_has_the_scale_and_offset_of_its_adapter(
    device: torch.device, dtype: torch.dtype, order: int | None, site: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    layout = AffineLayout(FACTS, PAGE)
    laid = [layout.laid(names) for names in ADAPTERS]
    assert laid[1][1] == 0
    free = (torch.randperm(sum(number for _, number in laid)) + 1).tolist()
    pool = torch.full((len(free) + 2, PAGE), float("nan"), dtype=dtype)
    pages, vectors = [], []
    for names, (entries, number) in zip(ADAPTERS, laid, strict=True):
        own = [free.pop() for _ in range(number)]
        pages.append(own)
        vectors.append({name: torch.randn(len(VECTORS), WIDTHS[name]).to(dtype) for name in names})
        for name, rows in vectors[-1].items():
            for row, vector in enumerate(rows, int(entries[layout.index[name]])):
                page, at = divmod(row, PAGE // WIDTHS[name])
                place = pool[own[page], at * WIDTHS[name] : (at + 1) * WIDTHS[name]]
                assert place.isnan().all(), "two rows lie at one place"
                place.copy_(vector)
    segments, begin = [], NUM_BASE
    for count in COUNTS:
        segments.append((begin, begin + count))
        begin += count
    widths = [WIDTHS[name] for name in site]
    y = torch.randn(begin + NUM_BASE, sum(widths)).to(dtype)
    right, read = y.double(), 0
    for (first, end), mine in zip(segments, vectors, strict=True):
        for at, name in enumerate(site):
            if name in mine:
                columns = slice(sum(widths[:at]), sum(widths[: at + 1]))
                scale, offset = mine[name].double()
                right[first:end, columns] = scale * right[first:end, columns] + offset
                read += mine[name].numel() * dtype.itemsize
    y = y.to(device)
    step = AffineStep(StepBlock(device), segments, pages, [entries for entries, _ in laid])
    with launches(order) as seen:
        step.change(affine_site([layout.index[name] for name in site], widths, device), pool.to(device), y)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.cpu().double(), right, rtol=tolerance, atol=tolerance)
    assert seen.kernels == ["affine"]
    assert max(WIDTHS.values()) > WIDTH, "a module has more than one tile"
    if device.type == "cpu":
        assert seen.read["affine", "pool"] == read


def test_modules_of_odd_widths_are_left_to_torch() -> None:
    odd = base_facts(modules=(ModuleFacts("odd", ModuleKind.LINEAR, 32, 40),))
    assert AffineLayout(odd, PAGE).widths == {}
    assert AffineLayout(FACTS, 296).widths == {}, "a row of q has to lie in one page"
