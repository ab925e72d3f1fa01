"""Where the rows of an adapter on the device lie in the pool."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.kernels.cpu import RowTable

Int32s = np.ndarray[Any, np.dtype[np.int32]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]


class RowNumbers:
    """A layout as arrays by module, int64."""

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.fits = np.array(layout.fits, dtype=np.int64)
        self.widths = np.array([place.row_width for place in layout.places], dtype=np.int64)

    def offsets(self, pages: Sequence[int], ranks: Int32s, firsts: Int32s) -> tuple[Int64s, Int64s]:
        """Return where each row of an adapter begins, in elements of the pool, module after module, and which is a module's first."""
        begins = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(ranks, dtype=np.int64)])
        numbers = np.arange(begins[-1]) + np.repeat(firsts - begins[:-1], ranks)
        fits = np.repeat(self.fits, ranks)
        own = np.array(pages, dtype=np.int64)[numbers // fits]
        return own * self.layout.page + numbers % fits * np.repeat(self.widths, ranks), begins


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter on the device."""

    number: int
    """Of the adapters that are there at the same time, at most as many as there may be; another one has it afterwards."""
    ranks: Int32s
    """[modules]"""
    offsets: Int64s
    """Where each of its rows begins, in elements of the pool, module after module."""
    begins: Int64s
    """[modules + 1]: of each module, the first of these."""
    table: RowTable
    """The same, for the CPU's kernels."""
    _views: dict[int, torch.Tensor] = field(default_factory=dict)

    def rows(self, module: int, pool: torch.Tensor, width: int) -> torch.Tensor:
        """Return its rows [rank, width] at a module, of the pool: a view, where they are neighbours."""
        view = self._views.get(module)
        if view is not None:
            return view
        offsets = self.offsets[self.begins[module] : self.begins[module + 1]]
        flat, cuts = pool.view(-1), np.flatnonzero(np.diff(offsets) != width) + 1
        runs = [flat[run[0] : run[0] + len(run) * width].view(-1, width) for run in np.split(offsets, cuts)]
        if len(runs) > 1:
            return torch.cat(runs)
        self._views[module] = runs[0]
        return runs[0]
