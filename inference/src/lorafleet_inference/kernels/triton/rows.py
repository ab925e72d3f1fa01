"""LoRA of a step by the kernels of `lora.py`: what is prepared once a step, and what is launched at a site."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.kernels.triton import dependent, lora
from lorafleet_inference.kernels.triton.blocks import MIN_DOT, Blocks, LoraBlocks
from lorafleet_inference.kernels.triton.launch import launch
from lorafleet_inference.kernels.triton.step import Int32s, StepBlock, Table

ALIGN = lora.ALIGN.value
"""What rows of the pool and widths must be multiples of, in elements."""
BOTH_RANK = 64
"""Up to this rank one launch does both products: beyond it a program would need more registers than there are."""
BOTH_IN_WIDTH = 8192
"""Up to this width of x: each program computes A x alone, so wider ones are split among programs by `shrink`."""
BOTH_COLUMNS = 1024
MAX_SPLITS = 8
"""Parts of the sum of `shrink`, at most."""
HEAD = lora.HEAD.value
"""Numbers of a record before those of its rows."""
RECORD_PLACES = 16
"""Modules of one program of `record`."""
SHRINK_TILES = 2
"""Tiles of ranks in the grid of `shrink`, at most, where there are more than SHRINK_PROGRAMS programs."""
SHRINK_PROGRAMS = 1024
"""So many at least are at work at once on a GPU. More for ranks that no adapter of the step has would take their turns and end."""
EXPAND_RANKS = 64
"""`expand` takes up to so many ranks at once; MIN_DOT of float32, whose products take registers for each of their terms."""


@dataclass(frozen=True, slots=True)
class Site:
    """Modules that read one x and write neighbouring columns of one y."""

    modules: tuple[int, ...]
    in_width: int
    widest: int
    """Columns of y of the widest module."""
    slices: torch.Tensor
    """[modules, 2] int32, on the device, as `lora.py` says."""


def site_of(modules: Sequence[int], places: Sequence[Place], page: int, device: torch.device) -> Site | None:
    """Return the site of some modules, `page` the elements of one; None where the kernels cannot be used."""
    in_width, widths = places[0].in_width, [place.out_width for place in places]
    if any(number % ALIGN for number in (in_width, *widths, page)):
        return None
    assert all(place.in_width == in_width and place.row_width % ALIGN == 0 for place in places)
    table = np.array([(sum(widths[:at]), width) for at, width in enumerate(widths)], dtype=np.int32)
    return Site(tuple(modules), in_width, max(widths), torch.from_numpy(table).to(device))


class AdapterTables:
    """Where the rows of the adapters in the pool lie, on the device: written when one comes, read by every step."""

    def __init__(
        self,
        num_adapters: int,
        num_pages: int,
        layout: RowLayout,
        device: torch.device,
        sites: Sequence[Sequence[int]] = (),
    ) -> None:
        """`num_pages`: of one adapter, at most; `sites`: modules of sites of more than one, each in one of them at most."""
        num_modules = len(layout.places)
        self.pages = torch.zeros(num_adapters, max(1, num_pages), dtype=torch.int32, device=device)
        self.entries = torch.zeros(num_adapters, num_modules, 2, dtype=torch.int32, device=device)
        """Rank, and the number of the first row."""
        together = [module for site in sites for module in site]
        order = [*together, *sorted(set(range(num_modules)) - set(together))]
        assert len(order) == num_modules
        self._place_of = {module: place for place, module in enumerate(order)}
        table = np.zeros((num_modules, 4), dtype=np.int32)
        for place, module in enumerate(order):
            table[place, :3] = module, layout.fits[module], layout.places[module].row_width // ALIGN
        self.places = torch.from_numpy(table).to(device)
        """[modules, 4], as `lora.py` says."""
        self._there = device_at(device)
        self._host_pages = self._there.pinned((self.pages.shape[1],), torch.int32)
        self._host_entries = self._there.pinned((num_modules, 2), torch.int32)

    def place_of(self, site: Site) -> int:
        """Return the place of its first module, behind which are the others."""
        first = self._place_of[site.modules[0]]
        assert [self._place_of[module] - first for module in site.modules] == list(range(len(site.modules)))
        return first

    def write(self, number: int, pages: Sequence[int], ranks: Int32s, firsts: Int32s) -> None:
        """Write what no step reads: of an adapter that comes, when what was written before is there."""
        own = self._host_pages[: len(pages)].copy_(torch.tensor(pages, dtype=torch.int32))
        self._host_entries.copy_(torch.from_numpy(np.stack([ranks, firsts], axis=1)))
        self._there.copy(self.pages[number, : len(pages)], own)
        self._there.copy(self.entries[number], self._host_entries)


class LoraStep:
    """Tokens of a step and their adapters, prepared once for all sites.

    `segments[i]`: from which row of x and y, to before which, the tokens of one adapter lie; `numbers[i]`: its number in the
    tables; `ranks[i]` [modules] int32: its rank at each module.
    """

    at_once = True
    """Whether one launch may do both products: slower on the device, for half the launches."""

    def __init__(
        self,
        blocks: Blocks,
        block: StepBlock,
        segments: Sequence[tuple[int, int]],
        numbers: Sequence[int],
        ranks: Sequence[Int32s],
        tables: AdapterTables,
    ) -> None:
        lengths = [end - begin for begin, end in segments]
        self._blocks: LoraBlocks = blocks.many if max(lengths) >= blocks.many.tokens else blocks.few
        room = self._blocks.tokens
        items = [
            (adapter, at, min(room, end - at))
            for adapter, (begin, end) in zip(numbers, segments, strict=True)
            for at in range(begin, end, room)
        ]
        self._num_items = len(items)
        self._max_ranks = np.stack(ranks).max(axis=0)
        self._items: Table = block.add(np.array(items, dtype=np.int32))
        self._adapters, self._is_dependent = tables, blocks.dependent_launch
        self._records, self._low = torch.empty(0), torch.empty(0)

    def add(self, site: Site, pool: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y [T, out] each token's B A x, for x [T, in]; pool [pages, elements of a page], all in one dtype."""
        rank = int(self._max_ranks[list(site.modules)].max())
        if rank == 0:
            return
        if x.stride(1) != 1:
            x = x.contiguous()
        assert y.stride(1) == 1
        is_first = not self._records.numel()
        if is_first:
            self._records = self._recorded(pool)
        records = self._records
        tables = (pool, records, records.stride(1), self._num_items, self._adapters.place_of(site))
        few = self._blocks.tokens == MIN_DOT and self.at_once
        if few and rank <= BOTH_RANK and site.in_width <= BOTH_IN_WIDTH:
            self._add_at_once(site, tables, rank, x, y, is_first=is_first)
        else:
            self._add_in_two(site, tables, rank, x, y, is_first=is_first)

    def _begins_early(self, x: torch.Tensor) -> bool:
        """Whether kernels may begin before the launch ahead of them is done: in float32 a tile more takes more registers than there are."""
        return self._is_dependent and x.dtype != torch.float32

    def _recorded(self, pool: torch.Tensor) -> torch.Tensor:
        """Return the records of the step [modules, items, ..], as `lora.py` says: made once, for the first site."""
        adapters, rank = self._adapters, max(MIN_DOT, 1 << (int(self._max_ranks.max()) - 1).bit_length())
        assert pool.numel() // ALIGN < 1 << 31, "records count in ALIGNs, by int32"
        num_places, pages, entries = len(adapters.places), adapters.pages, adapters.entries
        records = torch.empty(num_places, self._num_items, HEAD + rank, dtype=torch.int32, device=pool.device)
        launch(
            lora.record,
            (self._num_items, -(-num_places // RECORD_PLACES)),
            (records, records.stride(1), self._items.tensor, self._num_items, adapters.places, num_places, pages, pages.stride(0),
             pool.stride(0) // ALIGN, entries, entries.stride(0)),
            {"PLACES": RECORD_PLACES, "RANKS": MIN_DOT, "num_warps": 1, "num_stages": 1},
        )  # fmt: skip
        return records

    def _add_at_once(
        self, site: Site, tables: tuple, rank: int, x: torch.Tensor, y: torch.Tensor, *, is_first: bool
    ) -> None:
        sizes = self._blocks
        launch(
            lora.both,
            (self._num_items, -(-site.widest // BOTH_COLUMNS), len(site.modules)),
            (y, y.stride(0), x, x.stride(0), *tables, site.slices, site.in_width),
            {
                "TOKENS": sizes.tokens,
                "RANKS": max(MIN_DOT, 1 << (rank - 1).bit_length()),
                "STEP": sizes.step,
                "WIDTH": sizes.width,
                "COLUMNS": BOTH_COLUMNS,
                **dependent.constants(is_dependent=self._begins_early(x), begins_early=not is_first),
                "num_warps": 4,
                "num_stages": 3,
            },
        )

    def _add_in_two(
        self, site: Site, tables: tuple, rank: int, x: torch.Tensor, y: torch.Tensor, *, is_first: bool
    ) -> None:
        """`is_first`: behind `record`, which has to be done before others read before they wait what it wrote."""
        sizes, slices, tokens = self._blocks, len(site.modules), x.shape[0]
        splits = 1
        if sizes.tokens == MIN_DOT:  # else there are programs enough
            splits = max(1, min(MAX_SPLITS, site.in_width // sizes.split))
        width = -(-rank // MIN_DOT) * MIN_DOT
        tiles = _num_tiles(width // MIN_DOT, self._num_items * slices * splits)
        num_floats = splits * slices * tokens * width
        if self._low.numel() < num_floats:
            self._low = torch.empty(num_floats, dtype=torch.float32, device=x.device)
        common = {"SLICES": slices, "SPLITS": splits, "TOKENS": sizes.tokens}
        at_once = MIN_DOT if x.dtype == torch.float32 else EXPAND_RANKS
        launch(
            lora.shrink,
            (self._num_items, tiles, slices * splits),
            (self._low, x, x.stride(0), *tables, tokens, site.in_width, width),
            {
                **common,
                "RANKS": MIN_DOT,
                "STEP": sizes.step,
                "LOOP": tiles < width // MIN_DOT,
                **dependent.constants(is_dependent=self._begins_early(x), begins_early=not is_first),
                "num_warps": sizes.shrink_warps,
                "num_stages": 3,
            },
        )
        launch(
            lora.expand,
            (self._num_items, -(-site.widest // sizes.columns), slices),
            (y, y.stride(0), self._low, *tables, site.slices, tokens, site.in_width, width),
            {
                **common,
                "RANKS": min(at_once, max(MIN_DOT, 1 << (rank - 1).bit_length())),
                "WIDTH": sizes.width,
                "COLUMNS": sizes.columns,
                **dependent.constants(is_dependent=self._begins_early(x)),
                "num_warps": sizes.expand_warps,
                "num_stages": sizes.expand_stages,
            },
        )


def _num_tiles(most: int, num_others: int) -> int:
    """Return the tiles of ranks in a grid of `num_others` programs for each."""
    return min(most, max(SHRINK_TILES, SHRINK_PROGRAMS // num_others))
