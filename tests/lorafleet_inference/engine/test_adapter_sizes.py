"""What an adapter takes is known from its plan: all that is loaded was counted, by the engine and by who asks it."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest
import torch
from support.engines import DrivenEngine, key_of
from support.models import adapter_of, adapters_of, model_folder

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.extra_tensors import extra_tensors, num_pages_of, pages_of_files
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import RegisterAdapter
from lorafleet_inference.model.adapter_sizes import AdapterSizes
from lorafleet_inference.model.affine_bank import AffineLayout
from lorafleet_inference.model.arena import HostPages
from lorafleet_inference.model.base_rows import of_host
from lorafleet_inference.model.extras_files import load_extras
from lorafleet_inference.model.host_adapter import HostExtras
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.own_rows import settled
from lorafleet_inference.model.side_lora import SideLayout


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3-moe"])
def test_all_that_is_loaded_was_counted(family: str) -> None:
    loaded = load_model(EngineConfig(model=str(model_folder(family)), device="cpu", dtype="float32", cpu_kernels=False))
    facts, layout = loaded.facts, RowLayout.of(loaded.facts)
    sides, affine = SideLayout(facts, layout.page), AffineLayout(facts, layout.page)
    plain, by_kernels = AdapterSizes(layout, facts, None, None), AdapterSizes(layout, facts, sides, affine)
    for kind, folder in adapters_of(family).items():
        plan = settled(inspect_adapter(folder, facts, max_rank=256), loaded.model, of_host(loaded.dtype))
        counted = {(one.module, one.part): one for one in extra_tensors(plan, facts)}
        parts = plain.parts(plan)
        pages = HostPages((torch.zeros(parts.num_pages, layout.page),))
        host = HostExtras(pages, plain.places(parts, pages)[0], loaded.dtype)
        load_extras(plan, loaded.model, of_host(loaded.dtype), host)
        for where, (shape, dtype) in host.found.items():
            one = counted.pop(where)
            assert prod(shape) * dtype.itemsize == one.num_elements * 4, (kind, one)
        assert {one.part for one in counted.values()} <= {"offset", "bias"}, (
            "what is there only where the base has biases"
        )
        assert (
            num_pages_of(extra_tensors(plan, facts), layout.page)
            == plain.num_pages(plan) - layout.of_plan(plan).num_pages
        )
        assert all(one.module <= other.module for one, other in pairwise(extra_tensors(plan, facts)))
        assert abs(plain.num_pages(plan) - by_kernels.num_pages(plan)) <= 3, kind
        assert pages_of_files(plan, layout, facts) == plain.num_pages(plan)


def test_whole_modules_need_memory_that_can_be_asked_for() -> None:
    config = EngineConfig(
        model=str(model_folder("llama")), device="cpu", num_threads=1, max_rank=4, max_resident_adapters=1
    )
    folder, key = adapter_of("llama", "saved-norm-and-head"), key_of("saved")
    engine = DrivenEngine(config)
    engine.inbox.put(RegisterAdapter(key, str(folder), resident=True))
    while not (told := [one for one in engine.statuses() if one.reason is not None]):
        engine.step()
    assert told[0].reason is Reason.OUT_OF_MEMORY
    assert "--adapter-memory gives more pages" in told[0].message
    page_bytes = engine.runner._adapters.bank.layout.page * 4
    num_pages = engine.runner.num_pages(inspect_adapter(folder, engine.runner.facts, max_rank=4))
    assert num_pages > engine.runner.budgets.total_rank_pages
    DrivenEngine(replace(config, adapter_memory_bytes=num_pages * page_bytes)).register({"saved": folder})
