"""A step whose tables lie at fixed addresses, so that the kernels over them can be captured once and replayed.

What changes between replays is one block of numbers. Its shapes are those of the largest step of its size: rows, adapters
and blocks that a step does not have are padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorafleet_inference.device.devices import device_at
from lorafleet_inference.kernels.triton.blocks import MIN_DOT, Blocks
from lorafleet_inference.kernels.triton.paged import AttentionStep
from lorafleet_inference.kernels.triton.rows import AdapterTables, LoraStep
from lorafleet_inference.kernels.triton.sampling import NUM_WANTED
from lorafleet_inference.kernels.triton.sides import NUM_ENTRY, SideStep
from lorafleet_inference.kernels.triton.step import ALIGN, WORD_BYTES, Given

PADDING = -1


@dataclass(frozen=True, slots=True)
class Room:
    """How large a step may be."""

    num_rows: int
    num_items: int
    """Of LoRA, as `LoraStep` cuts a step of one token a sequence into them; 0: no adapters."""
    num_blocks: int
    """KV blocks of one sequence."""
    num_side_pages: int = 0
    """Of what one adapter holds at sites beside its rows."""
    num_sites: int = 0
    """0: no adapter has anything there."""
    num_affine_pages: int = 0
    """Of what one adapter holds of scales and offsets."""
    num_affine_modules: int = 0
    """0: no adapter has any."""
    num_tokens: int = 0
    """Of a step with prompts, whose rows are sequences and rows of logits; 0: each row has one token."""
    num_decodes: int = 0
    """Of a step with prompts: sequences of one token."""
    num_pieces: int = 0
    """Of prompts, as `fixed_prompts.py` cuts them."""

    def items_of(self, lengths: Sequence[int]) -> int:
        """Return how many items adapters with so many rows each make."""
        return sum(-(-length // MIN_DOT) for length in lengths)


class FixedTables:
    """The tables of one room on the device, with two mirrors on the host: one may still be read by the last copy.

    The one before that is done, as `Order.RESULTS` says: a step is only submitted when the one before the last is collected.
    """

    def __init__(self, room: Room, device: torch.device) -> None:
        self.room = room
        rows, items = room.num_rows, room.num_items
        tokens, decodes = (room.num_tokens, room.num_decodes) if room.num_tokens else (rows, rows)
        long, short, double = torch.int64, torch.int32, torch.float64
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "token_ids": (long, (tokens,)), "positions": (long, (tokens,)), "slots": (long, (tokens,)), "rows": (long, (rows,)),
            "logit_rows": (long, (rows if room.num_tokens else 0,)), "decodes": (short, (room.num_decodes,)),
            "pieces": (short, (room.num_pieces, 4)),
            "affine_items": (short, (items if room.num_affine_modules else 0, 3)),
            "affine_pages": (short, (items, room.num_affine_pages)),
            "affine_entries": (short, (items, room.num_affine_modules)),
            "wanted": (double, (rows, NUM_WANTED)), "lasts": (short, (decodes,)), "tables": (short, (rows, room.num_blocks)),
            "items": (short, (items, 3)), "side_items": (short, (items if room.num_sites else 0, 3)),
            "owners": (short, (rows if room.num_sites else 0,)),
            "side_pages": (short, (items, room.num_side_pages)), "entries": (short, (items, room.num_sites, NUM_ENTRY)),
        }  # fmt: skip
        self._places: dict[str, tuple[slice, torch.dtype, tuple[int, ...]]] = {}
        length = 0
        for name, (dtype, shape) in shapes.items():
            num_words = int(np.prod(shape)) * dtype.itemsize // WORD_BYTES
            self._places[name] = (slice(length, length + num_words), dtype, shape)
            length += -(-num_words // ALIGN) * ALIGN
        self._device = device_at(device)
        self._hosts = [self._device.pinned((length,), torch.int32).zero_() for _ in range(2)]
        self._device_block = torch.zeros(length, dtype=torch.int32, device=device)
        self._views = [{name: self._view(host, name).numpy() for name in shapes} for host in self._hosts]
        self._turn = 0
        self.rows = torch.arange(rows, dtype=torch.int32, device=device)

    def _view(self, block: torch.Tensor, name: str) -> torch.Tensor:
        words, dtype, shape = self._places[name]
        return block[words].view(dtype).view(shape)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a table on the device."""
        return self._view(self._device_block, name)

    def begin(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the tables on the host, to be filled: all is padding."""
        self._turn = 1 - self._turn
        views = self._views[self._turn]
        for name in ("token_ids", "positions", "items", "side_items", "logit_rows", "pieces"):
            views[name].fill(0)
        for name in ("slots", "lasts"):
            views[name].fill(PADDING)
        return views

    def send(self) -> None:
        """Copy them to the device, without waiting."""
        self._device.copy(self._device_block, self._hosts[self._turn])


class FixedAttention(AttentionStep):
    """Attention of as many sequences as there are rows, each with one token."""

    def __init__(self, blocks: Blocks, tables: FixedTables, slots: torch.Tensor, max_tokens: int) -> None:
        """slots [rows] int64, on the device; `max_tokens`: of one sequence."""
        self._blocks, self._slots = blocks, Given(slots)
        self._num_decodes, self._num_chunks, self._longest_chunk = tables.room.num_rows, 0, 0
        self._longest_decode = max_tokens
        self._tables, self._rows, self._lasts = (
            Given(one) for one in (tables.tensor("tables"), tables.rows, tables.tensor("lasts"))
        )
        self._parts, self._tops = torch.empty(0), torch.empty(0)


class FixedLora(LoraStep):
    """LoRA of as many items as there is room for."""

    at_once = False  # launches cost nothing in a graph

    def __init__(self, blocks: Blocks, tables: FixedTables, adapters: AdapterTables, max_rank: int) -> None:
        self._blocks, self._is_dependent = blocks.few, blocks.dependent_launch
        self._num_items = tables.room.num_items
        self._max_ranks = np.full(adapters.entries.shape[1], max_rank, dtype=np.int32)
        self._items, self._adapters = Given(tables.tensor("items")), adapters
        self._records, self._low = torch.empty(0), torch.empty(0)


class FixedSides(SideStep):
    """LoRA of head, embedding and experts, of the same items."""

    def __init__(self, blocks: Blocks, tables: FixedTables, max_rank: int) -> None:
        self._blocks = blocks.few
        self._num_items, self._num_rows = tables.room.num_items, tables.room.num_rows
        self._max_ranks = np.full(tables.room.num_sites, max_rank, dtype=np.int32)
        self._items, self._owners, self._pages, self._entries = (
            Given(tables.tensor(name)) for name in ("side_items", "owners", "side_pages", "entries")
        )
        self._low = torch.empty(0)
