"""Scales and offsets of a step by the kernel of `affine.py`: what is prepared once a step, and what is launched at a site."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorafleet_inference.kernels.triton import affine
from lorafleet_inference.kernels.triton.blocks import MIN_DOT
from lorafleet_inference.kernels.triton.launch import launch
from lorafleet_inference.kernels.triton.step import Int32s, StepBlock, Table, table_of

ALIGN = affine.ALIGN.value
"""What widths and pages must be multiples of, in elements."""
ITEM_TOKENS = MIN_DOT
WIDTH = 256
"""Columns of one program."""


@dataclass(frozen=True, slots=True)
class AffineSite:
    """Modules that write neighbouring columns of one y."""

    widest: int
    slices: torch.Tensor
    """[modules, 4] int64, on the device, as `affine.py` says."""


def affine_site(modules: Sequence[int], widths: Sequence[int], device: torch.device) -> AffineSite:
    """Return the site of some modules, `widths` of their columns."""
    assert all(width % ALIGN == 0 for width in widths)
    table = np.zeros((len(modules), 4), dtype=np.int64)
    for at, (module, width) in enumerate(zip(modules, widths, strict=True)):
        table[at, :3] = module, sum(widths[:at]), width
    return AffineSite(max(widths), torch.from_numpy(table).to(device))


class AffineStep:
    """Tokens of a step and their adapters.

    `segments[i]`: from which row to before which the tokens of one adapter lie; `pages[i]`: those that hold its scales and offsets;
    `entries[i]` [modules]: in which row.
    """

    def __init__(
        self,
        block: StepBlock,
        segments: Sequence[tuple[int, int]],
        pages: Sequence[Sequence[int]],
        entries: Sequence[Int32s],
    ) -> None:
        items = [
            (adapter, at, min(ITEM_TOKENS, end - at))
            for adapter, (begin, end) in enumerate(segments)
            for at in range(begin, end, ITEM_TOKENS)
        ]
        self._num_items = len(items)
        self._items: Table = block.add(np.array(items, dtype=np.int32))
        self._pages: Table = block.add(table_of(pages))
        self._entries: Table = block.add(np.stack(entries))

    @classmethod
    def of_tables(cls, items: Table, pages: Table, entries: Table) -> "AffineStep":
        """Return a step whose tables are elsewhere: items [.., 3], pages [.., pages], entries [.., modules]."""
        step = cls.__new__(cls)
        step._items, step._pages, step._entries = items, pages, entries  # noqa: SLF001
        step._num_items = len(items.tensor)  # noqa: SLF001
        return step

    def change(self, site: AffineSite, pool: torch.Tensor, y: torch.Tensor) -> None:
        """Change y [T, out of all modules of the site]; pool [pages, elements of a page], of its dtype."""
        assert y.stride(1) == 1
        pages, entries = self._pages.tensor, self._entries.tensor
        launch(
            affine.affine,
            (self._num_items, -(-site.widest // WIDTH), len(site.slices)),
            (y, y.stride(0), pool, pool.stride(0), self._items.tensor, pages, pages.stride(0), entries, entries.stride(0),
             site.slices),
            {"TOKENS": ITEM_TOKENS, "WIDTH": WIDTH, "num_warps": 4, "num_stages": 1},
        )  # fmt: skip
