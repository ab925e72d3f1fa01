"""LoRA for a mixed batch: each token gets the delta of its own adapter, nothing is ever merged.

Device memory is one pool of pages, in which each adapter has rows of its true rank at each module that it changes, as
`RowLayout` says. Axes: T tokens of the step, r ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.engine.messages import AdapterKey, ModelFacts
from lorafleet_inference.kernels.cpu import CpuKernels, LoraRows, RowTable
from lorafleet_inference.model.adapter_rows import Int32s, Resident, RowNumbers
from lorafleet_inference.model.batch import Segment
from lorafleet_inference.model.decoder.linear import Linear
from lorafleet_inference.model.memory import lazy_zeros
from lorafleet_inference.model.slab import Slab

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.backend import TritonKernels
    from lorafleet_inference.kernels.triton.rows import AdapterTables, LoraStep, Site


@dataclass(frozen=True, slots=True)
class _Part:
    begin: int
    end: int
    resident: Resident


class LoraBank:
    """The pool of the device, and the modules that add from it."""

    def __init__(
        self,
        model: torch.nn.Module,
        facts: ModelFacts,
        *,
        num_pages: int,
        num_adapters: int,
        max_rank: int,
        kernels: CpuKernels | None = None,
        triton: "TritonKernels | None" = None,
    ) -> None:
        """`num_adapters`: that are in the pool at the same time, at most, each of at most `max_rank`."""
        parameter = next(model.parameters())
        self.layout = RowLayout.of(facts)
        self._pool = lazy_zeros((num_pages, self.layout.page), parameter.dtype, parameter.device)
        self._kernels = kernels if kernels is not None and kernels.can_add_rows(parameter.dtype) else None
        self._numbers = RowNumbers(self.layout)
        self._free = list(reversed(range(num_adapters)))
        """Numbers of adapters that are not there."""
        self._resident: dict[AdapterKey, Resident] = {}
        self._parts: list[_Part] = []
        self._compiled: LoraRows | None = None
        """The same parts, where there are kernels of the CPU."""
        self._triton = triton
        self._sites: list[Site | None] = []
        """By module, where there are Triton kernels; None for one that is left to torch."""
        self.tables: AdapterTables | None = None
        """Where the rows of adapters lie, for the Triton kernels."""
        if triton is not None:
            places = enumerate(self.layout.places)
            self._sites = [triton.site([module], [place], self.layout.page) for module, place in places]
        self._launched: LoraStep | None = None
        """The same parts, for the Triton kernels."""
        self._num_tokens = 0
        for module in facts.modules:
            model.get_submodule(module.name).register_forward_hook(_Adder(self, module.name))
        self._fused: set[int] = set()
        """Modules to which kernels add with the others of their product, at one site."""
        if triton is not None:
            most = min(self.layout.num_pages(max_rank), num_pages)
            self.tables = triton.adapter_tables(num_adapters, most, self.layout, self._fuse(model))
        elif self._kernels is not None:
            self._fuse(model)

    def _fuse(self, model: torch.nn.Module) -> list[list[int]]:
        """Have modules of one product added to at one site; returns those of each site."""
        sites = []
        names = {module: name for name, module in model.named_modules()}
        for product in names:
            if not isinstance(product, Linear) or not product.parts:
                continue
            modules = [self.layout.index[names[part]] for part in product.parts]
            hook: _SiteAdder | _ColumnsAdder | None = None
            if self._triton is not None:
                places = [self.layout.places[module] for module in modules]
                site = self._triton.site(modules, places, self.layout.page)
                hook = None if site is None else _SiteAdder(self, site)
            else:
                hook = _ColumnsAdder(self, modules, [0, *(columns.stop for columns in product.columns)])
            if hook is not None:
                self._fused.update(modules)
                sites.append(modules)
                product.register_forward_hook(hook)
        return sites

    @property
    def pool(self) -> torch.Tensor:
        """[pages, elements of a page], contiguous."""
        return self._pool

    @property
    def num_bytes(self) -> int:
        """The pool's size."""
        return self._pool.numel() * self._pool.element_size()

    def install(self, key: AdapterKey, pages: Sequence[int], slab: Slab) -> None:
        """Copy a slab to pages that no step reads; safe beside a running step."""
        device = device_at(self._pool.device)
        for begin, end, some in slab.pages.copies(pages):
            device.copy(self._pool[begin:end], some)
        ranks = np.array(slab.ranks, dtype=np.int32)
        firsts = np.array(self.layout.laid(slab.ranks).firsts, dtype=np.int32)
        offsets, begins = self._numbers.offsets(pages, ranks, firsts)
        known = self._resident.get(key)
        number = self._free.pop() if known is None else known.number
        if self.tables is not None:
            self.tables.write(number, pages, ranks, firsts)
        self._resident[key] = Resident(number, ranks, offsets, begins, RowTable.of(offsets, ranks))

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter; its pages are somebody else's now."""
        resident = self._resident.pop(key, None)
        if resident is not None:
            self._free.append(resident.number)

    def begin_step(self, segments: Sequence[Segment], num_tokens: int) -> None:
        """Say which tokens of the coming forward pass use which adapter."""
        parts = [_Part(one.begin, one.end, self._resident[one.adapter]) for one in segments]
        self._parts, self._compiled, self._launched = parts, None, None
        bounds = [(part.begin, part.end) for part in parts]
        residents = [part.resident for part in parts]
        if self._kernels is not None and parts:
            self._compiled = LoraRows(self._kernels, bounds, [one.table for one in residents])
        if self._triton is not None and parts:
            assert self.tables is not None
            numbers, ranks = [one.number for one in residents], [one.ranks for one in residents]
            self._launched = self._triton.lora(bounds, numbers, ranks, self.tables)
        self._num_tokens = num_tokens

    @property
    def can_be_captured(self) -> bool:
        """Whether the Triton kernels compute every module."""
        return bool(self._sites) and None not in self._sites

    @contextmanager
    def capturing(self, lora: "LoraStep | None", num_tokens: int) -> Iterator[None]:
        """While this is open, `lora` computes every module; None: there are no adapters."""
        self._parts, self._compiled, self._launched = [], None, lora
        self._num_tokens = num_tokens
        try:
            yield
        finally:
            self._launched = None

    def fill(self, items: Int32s, segments: Sequence[Segment], item_tokens: int) -> None:
        """Write the items [.., 3] of `LoraStep`; what is left is padding."""
        at = 0
        for one in segments:
            number = self._resident[one.adapter].number
            for begin in range(one.begin, one.end, item_tokens):
                items[at] = number, begin, min(item_tokens, one.end - begin)
                at += 1

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y [.., out] each token's B A x, for x [.., in] of all tokens of the step. The one point of dispatch."""
        place = self.layout.places[module]
        if not self._parts and self._launched is None:
            return
        if module in self._fused and (self._launched is not None or self._compiled is not None):
            return  # `add_site` or `add_columns` has
        rows = _rows(x, self._num_tokens)
        site = self._sites[module] if self._launched is not None else None
        if self._launched is not None and site is not None:
            self._launched.add(site, self._pool, rows, y.view(-1, y.shape[-1]))
        elif self._compiled is not None:
            self._compiled.add((module,), self._pool, rows, y.view(-1, y.shape[-1]))
        else:
            add_by_segment(self._pool, place, module, self._parts, x=rows, y=y)

    def add_site(self, site: "Site", x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y [T, out of all modules of the site] what `add` adds for each, where the Triton kernels do."""
        if self._launched is not None:
            self._launched.add(site, self._pool, _rows(x, self._num_tokens), y)

    def add_columns(self, modules: Sequence[int], columns: Sequence[int], x: torch.Tensor, y: torch.Tensor) -> None:
        """Likewise of modules whose columns of y begin, and the last one's end, at `columns`, where the CPU's kernels do."""
        if self._compiled is not None:
            self._compiled.add(modules, self._pool, _rows(x, self._num_tokens), y, *columns)


class _Adder:
    """Forward hook of one module: so its weight, its name and its ties stay as they are."""

    def __init__(self, bank: LoraBank, name: str) -> None:
        self._bank = bank
        self._module = bank.layout.index[name]

    def __call__(self, _: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._bank.add(self._module, args[0], output)


class _SiteAdder:
    """Forward hook of a product of several modules; it comes before the hooks of each."""

    def __init__(self, bank: LoraBank, site: "Site") -> None:
        self._bank, self._site = bank, site

    def __call__(self, _: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._bank.add_site(self._site, args[0], output)


class _ColumnsAdder:
    """Likewise for the CPU's kernels."""

    def __init__(self, bank: LoraBank, modules: Sequence[int], columns: Sequence[int]) -> None:
        self._bank, self._modules, self._columns = bank, modules, columns

    def __call__(self, _: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._bank.add_columns(self._modules, self._columns, args[0], output)


def _rows(x: torch.Tensor, num_tokens: int) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    assert rows.shape[0] == num_tokens, "an adapted module saw other rows than the step's"
    return rows


def add_by_segment(
    pool: torch.Tensor, place: Place, module: int, parts: Sequence[_Part], *, x: torch.Tensor, y: torch.Tensor
) -> None:
    """The reference: two small products an adapter. x [T, in]; y [.., out] contiguous, changed in place."""
    flat, middle = y.view(-1, y.shape[-1]), place.in_width
    for part in parts:
        if part.resident.ranks[module]:
            rows = part.resident.rows(module, pool, place.row_width)
            low = x[part.begin : part.end] @ rows[:, :middle].t()
            flat[part.begin : part.end].addmm_(low, rows[:, middle : middle + place.out_width])
