"""Fills with NaN all memory of an engine that holds nothing which a step may read."""

from collections.abc import Iterator
from dataclasses import fields

import torch
from support.engines import DrivenEngine

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.model.laid_tensor import LaidTensor
from lorafleet_inference.model.runner import ModelRunner


def fill_unused(driven: DrivenEngine) -> None:
    """Between two steps: free KV blocks, page tails, and all of the adapter pool that is no number of a resident adapter's."""
    engine = driven.engine
    kept = dict.fromkeys(engine._blocks._cached, KV_BLOCK_TOKENS)
    for sequence in engine._scheduler._planner.running:
        for index, block in enumerate(sequence.blocks):
            num_computed = max(0, min(sequence.num_computed - index * KV_BLOCK_TOKENS, KV_BLOCK_TOKENS))
            kept[block] = max(kept.get(block, 0), num_computed)
    for layer in driven.runner._layers:
        for pages in (layer.keys, layer.values):
            for block in range(len(pages)):
                _fill_tail(pages[block], kept.get(block, 0))
    if not any(
        adapter.busy for adapter in engine._loads._adapters.values()
    ):  # else the loader writes to pages of its own
        _fill_pool(driven.runner)


def _fill_tail(page: torch.Tensor, num_kept: int) -> None:
    """page [G, P, width]; in 8 bits as `fp8_pages.py` says, where 255 is NaN both as a code and as an exponent."""
    if not fp8_pages.is_fp8(page):
        page[:, num_kept:] = float("nan")
        return
    codes, exponents = page.flatten(1).split((page.shape[1] * (page.shape[2] - 1), page.shape[1]), dim=1)
    codes.view(len(page), page.shape[1], -1)[:, num_kept:] = fp8_pages.POISON
    exponents[:, num_kept:] = fp8_pages.POISON


def _fill_pool(runner: ModelRunner) -> None:
    bank = runner._adapters.bank
    unused = torch.ones_like(bank._pool, dtype=torch.bool)
    for resident in bank._resident.values():
        for module, place in enumerate(bank.layout.places):
            begins = resident.offsets[resident.begins[module] : resident.begins[module + 1]]
            for begin in begins.tolist():
                unused.view(-1)[begin : begin + place.in_width + place.out_width] = False
    for laid in _laid_tensors(runner):
        for _, _, block in laid._blocks:
            items = block.itemsize // bank._pool.itemsize
            begin, size = items * block.storage_offset(), items * block.numel()
            unused.view(-1)[begin : begin + size] = False
    bank._pool.masked_fill_(unused, float("nan"))


def _laid_tensors(runner: ModelRunner) -> Iterator[LaidTensor]:
    for extras in runner._adapters.extras._resident.values():
        for extra in extras.values():
            for holder in (extra, extra.experts):
                parts = () if holder is None else (getattr(holder, one.name) for one in fields(holder))
                yield from (one for one in parts if isinstance(one, LaidTensor))
