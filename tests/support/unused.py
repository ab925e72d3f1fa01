"""Fills with NaN all memory of an engine that holds nothing which a step may read."""

import torch
from support.engines import DrivenEngine

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.model.runner import ModelRunner


def fill_unused(driven: DrivenEngine) -> None:
    """Between two steps: free KV blocks, page tails, and all of the adapter pool that is no A or B of a resident adapter."""
    engine = driven.engine
    kept = dict.fromkeys(engine._blocks._cached, KV_BLOCK_TOKENS)
    for sequence in engine._scheduler._planner.running:
        for index, block in enumerate(sequence.blocks):
            num_computed = max(0, min(sequence.num_computed - index * KV_BLOCK_TOKENS, KV_BLOCK_TOKENS))
            kept[block] = max(kept.get(block, 0), num_computed)
    for layer in driven.runner._layers:
        for pages in (layer.keys, layer.values):
            for block in range(len(pages)):
                pages[block, :, kept.get(block, 0) :] = float("nan")
    if not any(
        adapter.busy for adapter in engine._loads._adapters.values()
    ):  # else the loader writes to pages of its own
        _fill_pool(driven.runner)


def _fill_pool(runner: ModelRunner) -> None:
    bank = runner._bank
    unused = torch.ones_like(bank._pool, dtype=torch.bool)
    for resident in bank._resident.values():
        for module, place in enumerate(bank.layout.places):
            begins = resident.offsets[resident.begins[module] : resident.begins[module + 1]]
            for begin in begins.tolist():
                unused.view(-1)[begin : begin + place.in_width + place.out_width] = False
    bank._pool.masked_fill_(unused, float("nan"))
