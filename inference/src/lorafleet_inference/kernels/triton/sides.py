"""LoRA of head, embedding and experts by the kernels of `side.py`: what is prepared once a step, and what is launched at a site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lorafleet_inference.kernels.triton import side
from lorafleet_inference.kernels.triton.blocks import MIN_DOT, Blocks, LoraBlocks
from lorafleet_inference.kernels.triton.launch import launch
from lorafleet_inference.kernels.triton.rows import MAX_SPLITS
from lorafleet_inference.kernels.triton.step import Int32s, StepBlock, Table, table_of

FLOAT32_WIDTH = 64
"""Columns of one program at most, where products of float32 take registers for each of their terms."""
SPLIT_WIDTH = 512
"""`side_shrink` splits its sum into parts of about this many elements, at most MAX_SPLITS."""
NUM_ENTRY = 4
"""Numbers of an adapter at a site, as `side.py` says."""


@dataclass(frozen=True, slots=True)
class SideSite:
    """A module with A and B of its own kind."""

    number: int
    """Among those of the model."""
    in_width: int
    out_width: int
    num_experts: int = 1


class Pairs(Protocol):
    """Which experts the tokens of a step have, and which rows of x and y are theirs."""

    @property
    def chosen(self) -> torch.Tensor:
        """[T, K] int64, contiguous."""

    @property
    def places(self) -> torch.Tensor:
        """[T, K] int64, contiguous."""


class SideStep:
    """Tokens of a step and their adapters.

    `segments[i]`: from which row to before which the tokens of one adapter lie, of `num_rows`; `pages[i]`: those that hold it beside
    its rows; `entries[i]` [sites, 4]: where.
    """

    def __init__(
        self,
        blocks: Blocks,
        block: StepBlock,
        segments: Sequence[tuple[int, int]],
        pages: Sequence[Sequence[int]],
        entries: Sequence[Int32s],
        num_rows: int,
    ) -> None:
        longest = max(end - begin for begin, end in segments)
        self._blocks: LoraBlocks = blocks.many if longest >= blocks.many.tokens else blocks.few
        items, owners = items_of(segments, self._blocks.tokens, num_rows)
        self._num_items, self._num_rows = len(items), num_rows
        by_adapter = np.stack(entries)
        self._max_ranks = by_adapter[:, :, 0].max(axis=0)
        self._items: Table = block.add(items)
        self._owners: Table = block.add(owners)
        self._pages: Table = block.add(table_of(pages))
        self._entries: Table = block.add(by_adapter)
        self._low = torch.empty(0)

    def adds(self, site: SideSite) -> bool:
        """Whether one of the adapters has something there."""
        return bool(self._max_ranks[site.number])

    def add(self, site: SideSite, pool: torch.Tensor, x: torch.Tensor, y: torch.Tensor, pairs: Pairs | None) -> None:
        """Add B A x to y [rows, out], for x [rows, in]; pool [pages, elements of a page], all in one dtype.

        `pairs`: of experts; else the rows are the step's.
        """
        rank = int(self._max_ranks[site.number])
        if rank == 0:
            return
        if x.stride(1) != 1:
            x = x.contiguous()
        assert y.stride(1) == 1
        sizes, few = self._blocks, self._blocks.tokens == MIN_DOT
        num_choices = 0 if pairs is None else pairs.chosen.shape[1]
        num_low = self._num_rows * max(num_choices, 1)
        splits = max(1, min(MAX_SPLITS, site.in_width // SPLIT_WIDTH)) if few and pairs is None else 1
        width = -(-rank // MIN_DOT) * MIN_DOT
        num_floats = splits * num_low * width
        if self._low.numel() < num_floats:
            self._low = torch.empty(num_floats, dtype=torch.float32, device=x.device)
        num_programs = self._num_items if pairs is None else num_low
        owners = self._owners.tensor
        chosen, places = (owners, owners) if pairs is None else (pairs.chosen, pairs.places)
        tables = (
            pool, pool.stride(0), self._items.tensor, owners, *self._of_adapters(), site.number, chosen, places,
            site.num_experts, num_low,
        )  # fmt: skip
        common = {
            "K": num_choices, "WIDE": 1 << max(num_choices - 1, 0).bit_length(), "SPLITS": splits,
            "TOKENS": sizes.tokens, "RANKS": MIN_DOT,
        }  # fmt: skip
        launch(
            side.side_shrink,
            (num_programs, width // MIN_DOT, splits),
            (self._low, x, x.stride(0), *tables, site.in_width, width),
            {**common, "STEP": sizes.step, "num_warps": 4, "num_stages": 3},
        )
        launch(
            side.side_expand,
            (num_programs, -(-site.out_width // self._columns_of(pool))),
            (y, y.stride(0), self._low, *tables, site.out_width, width),
            {**common, "WIDTH": self._columns_of(pool), "num_warps": sizes.expand_warps, "num_stages": 2},
        )

    def embed(self, site: SideSite, pool: torch.Tensor, token_ids: torch.Tensor, y: torch.Tensor, scale: float) -> None:
        """Add to y [T, out] what the adapters' embeddings say of token_ids [T] int64, times `scale`."""
        if not self._max_ranks[site.number]:
            return
        sizes, width = self._blocks, self._columns_of(pool)
        launch(
            side.embed,
            (self._num_items, -(-site.out_width // width)),
            (y, y.stride(0), token_ids, pool, pool.stride(0), self._items.tensor, *self._of_adapters(), site.number,
             site.out_width, scale),
            {"TOKENS": sizes.tokens, "RANKS": MIN_DOT, "WIDTH": width, "num_warps": sizes.expand_warps, "num_stages": 2},
        )  # fmt: skip

    def _columns_of(self, pool: torch.Tensor) -> int:
        width = self._blocks.width
        return min(width, FLOAT32_WIDTH) if pool.dtype == torch.float32 else width

    def _of_adapters(self) -> tuple[torch.Tensor, int, torch.Tensor, int]:
        pages, entries = self._pages.tensor, self._entries.tensor
        return pages, pages.stride(0), entries, entries.stride(0)


def items_of(segments: Sequence[tuple[int, int]], room: int, num_rows: int) -> tuple[Int32s, Int32s]:
    """Return the items [items, 3] of at most `room` rows, and of each row [num_rows] its item, -1 for none."""
    items: list[tuple[int, int, int]] = []
    owners = np.full(num_rows, -1, dtype=np.int32)
    for adapter, (begin, end) in enumerate(segments):
        for at in range(begin, end, room):
            length = min(room, end - at)
            owners[at : at + length] = len(items)
            items.append((adapter, at, length))
    return np.array(items, dtype=np.int32), owners
