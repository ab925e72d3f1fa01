"""The Triton backend of a model on a CUDA device."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from triton import knobs

from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.kernels.triton.affines import AffineStep
from lorafleet_inference.kernels.triton.blocks import MIN_DOT, Blocks, blocks_of
from lorafleet_inference.kernels.triton.choice import choose_tokens
from lorafleet_inference.kernels.triton.driver import built_driver
from lorafleet_inference.kernels.triton.layer_ops import TritonLayerOps
from lorafleet_inference.kernels.triton.paged import AttentionStep
from lorafleet_inference.kernels.triton.rows import AdapterTables, LoraStep, Site, site_of
from lorafleet_inference.kernels.triton.sides import SideStep
from lorafleet_inference.kernels.triton.step import Block, Given, Int32s, StepBlock, Table

logger = logging.getLogger(__name__)


class TritonKernels:
    """Makes what a step needs; the tables of all its kernels go to the device in one copy."""

    def __init__(self, device: torch.device, blocks: Blocks) -> None:
        self._device, self.blocks = device, blocks
        self._block = StepBlock(device)
        self.layer_ops = TritonLayerOps(is_dependent=blocks.dependent_launch)

    def begin_early(self, dependent_launch: bool) -> None:
        """Say whether kernels that can begin before the launch ahead of them is done, from now on."""
        self.blocks = replace(self.blocks, dependent_launch=dependent_launch)
        self.layer_ops.begin_early(dependent_launch)

    def site(self, modules: Sequence[int], places: Sequence[Place], page: int) -> Site | None:
        """Return the site of some modules, `page` the elements of one; None for one that is left to torch."""
        return site_of(modules, places, page, self._device)

    def adapter_tables(
        self, num_adapters: int, num_pages: int, layout: RowLayout, sites: Sequence[Sequence[int]]
    ) -> AdapterTables:
        """Return tables for so many adapters, each of at most so many pages. `sites`: modules that are launched together."""
        return AdapterTables(num_adapters, num_pages, layout, self._device, sites)

    def begin_step(self) -> Block:
        """Begin the tables of the next step; those of the last one stay as they are until its kernels have run.

        Return where they are put: whatever else the step needs on the device may come with them.
        """
        self._block = StepBlock(self._device)
        return self._block

    def attention(self, spans: Sequence[tuple[int, int, int, Sequence[int] | Int32s]], slots: Table) -> AttentionStep:
        """Prepare the attention of the step."""
        return AttentionStep(self.blocks, self._block, spans, slots)

    def choose(self, logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose a token a row, as `choice.py` says."""
        return choose_tokens(logits, wanted)

    def lora(
        self,
        segments: Sequence[tuple[int, int]],
        numbers: Sequence[int],
        ranks: Sequence[Int32s],
        tables: AdapterTables,
    ) -> LoraStep:
        """Prepare the LoRA of the step."""
        return LoraStep(self.blocks, self._block, segments, numbers, ranks, tables)

    def affine(
        self, segments: Sequence[tuple[int, int]], pages: Sequence[Sequence[int]], entries: Sequence[Int32s]
    ) -> AffineStep:
        """Prepare the scales and offsets of the step."""
        return AffineStep(self._block, segments, pages, entries)

    def sides(
        self,
        segments: Sequence[tuple[int, int]],
        pages: Sequence[Sequence[int]],
        entries: Sequence[Int32s],
        num_rows: int,
    ) -> SideStep:
        """Prepare the LoRA of the step on head, embedding and experts."""
        return SideStep(self.blocks, self._block, segments, pages, entries, num_rows)


def load_triton(device: torch.device, cache_dir: str | None, *, dependent_launch: bool = False) -> TritonKernels | None:
    """Return the kernels for a CUDA device, after one of them has run there.

    None, with one warning, where that fails: on a device that is too old, or where Triton's module for the driver
    is neither built beforehand nor can be compiled.
    `cache_dir`: folder that keeps the compiled code; None: where Triton keeps it by itself. `dependent_launch`: as the option.
    """
    blocks = blocks_of(device, dependent_launch=dependent_launch)
    if blocks is None:
        logger.warning("no Triton kernels on a GPU older than Ampere, plain torch computes instead")
        return None
    if dependent_launch and not blocks.dependent_launch:
        logger.warning("--dependent-launch needs a GPU of compute capability 9.0, so launches follow one another")
    if cache_dir is not None and "TRITON_CACHE_DIR" not in os.environ:
        knobs.cache.dir = str(Path(cache_dir) / "triton")
    began = time.monotonic()
    kernels = TritonKernels(device, blocks)
    try:
        some = torch.ones(1, 1, MIN_DOT, device=device)
        page = torch.zeros(1, 1, KV_BLOCK_TOKENS, MIN_DOT, device=device)
        step = kernels.attention([(0, 1, 0, (0,))], Given(torch.zeros(1, dtype=torch.int64, device=device)))
        with built_driver():
            step.write(some, some, page, page.clone())
        device_at(device).check()
    except Exception as error:  # noqa: BLE001  whatever hinders it, the model can be served without
        logger.warning("no Triton kernels, plain torch computes instead: %s: %s", type(error).__name__, error)
        return None
    logger.info("Triton kernels ready in %.1f s", time.monotonic() - began)
    return kernels
