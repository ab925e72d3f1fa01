"""What lies in pages of the host is what the files say, times the scale, rounded once."""

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.device.host import HostDevice
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.model.arena import Arena
from lorafleet_inference.model.slab import load_slab

RANK, IN, OUT = 5, 48, 80
SCALES = (1.0, 2.0, 0.1, 1 / 3, 5**0.5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("stored", "wanted"), list(product(DTYPES, DTYPES)))
def test_each_number_is_rounded_once(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    tensors, sites = {}, []
    for number, scale in enumerate(SCALES):
        tensors[f"{number}.a"] = torch.randn(RANK, IN).to(stored)
        tensors[f"{number}.b"] = (torch.randn(OUT, RANK) * torch.logspace(-7, 3, OUT)[:, None]).to(stored)
        sites.append(LoraSite(str(number), RANK, scale, f"{number}.a", f"{number}.b"))
    save_file(tensors, tmp_path / "file")
    facts = AdapterFacts(rank=RANK, size_bytes=1, target_modules=["0"])
    plan = AdapterPlan(tmp_path, tuple(sites), ("file",), facts, Vocabulary(9, 9))
    layout = RowLayout({site.module: Place(IN, OUT, IN + OUT) for site in sites})
    pages = load_slab(plan, layout, wanted, Arena(0, layout.page, wanted, HostDevice())).pages.pages
    firsts = layout.of_plan(plan).firsts
    for site, first, fit in zip(sites, firsts, layout.fits, strict=True):
        for rank in range(RANK):
            page, slot = divmod(first + rank, fit)
            row = pages[page][slot * (IN + OUT) : (slot + 1) * (IN + OUT)]
            b = tensors[site.b_key][:, rank].double() * torch.tensor(site.scale, dtype=torch.float32).double()
            assert row[:IN].equal(tensors[site.a_key][rank].to(wanted))
            assert row[IN:].equal(b.float().to(wanted))
