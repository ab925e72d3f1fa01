"""LoRA for a mixed batch: each token gets the delta of its own adapter, nothing is ever merged.

Device memory is one pool of rows. Row r of an adapter holds, for every adaptable module, row r of A and column r of B
(times the scale): so an adapter of rank r is r rows, one copy, and the true rank of each module is what is read.
Axes: T tokens of the step, r ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.config import RANK_PAGE
from lorafleet_inference.device.interface import Device
from lorafleet_inference.engine.messages import AdapterKey, ModelFacts
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.kernels.cpu import CpuKernels, LoraRows
from lorafleet_inference.model.batch import Segment
from lorafleet_inference.model.decoder.linear import Linear
from lorafleet_inference.model.finite import applied, check_finite
from lorafleet_inference.model.memory import lazy_zeros
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.tensor_files import reader_of

Int32s = np.ndarray[Any, np.dtype[np.int32]]

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.backend import TritonKernels
    from lorafleet_inference.kernels.triton.rows import LoraStep, Site

ALIGN = 16
"""A module begins at a multiple of so many elements: so that the kernels of a GPU can load several at once."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module's A and B lie in a row."""

    a: slice
    b: slice


class RowLayout:
    """Which columns of a row belong to which module."""

    def __init__(self, facts: ModelFacts) -> None:
        self.places: list[_Place] = []
        self.index: dict[str, int] = {}
        at = 0
        for module in facts.modules:
            middle, end = at + module.in_features, at + module.in_features + module.out_features
            self.index[module.name] = len(self.places)
            self.places.append(_Place(slice(at, middle), slice(middle, end)))
            at = -(-end // ALIGN) * ALIGN
        self.width = at
        """Elements of a row."""


@dataclass(frozen=True, slots=True)
class Slab:
    """An adapter on the host, laid out as on the device."""

    rows: torch.Tensor
    """[pages * RANK_PAGE, layout width], in the model's dtype, on the CPU; pinned where the device is CUDA."""
    ranks: tuple[int, ...]
    """True rank of each module, in the layout's order; 0 where the adapter has none."""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.rows.numel() * self.rows.element_size()


def num_pages_of(rank: int) -> int:
    """Return the rank pages that an adapter of this rank takes."""
    return max(1, -(-rank // RANK_PAGE))


def load_slab(
    plan: AdapterPlan, layout: RowLayout, dtype: torch.dtype, *, device: Device, shard: Shard | None = None
) -> Slab:
    """Read the tensors of a validated adapter for a device; of them a rank's part, where the model is on several.

    Raises:
        AdapterError: ARTIFACT_INVALID when a value is not finite, or the files are not what validation saw; OUT_OF_MEMORY.
    """
    ranks = [0] * len(layout.places)
    try:
        # zeros: rows beyond a module's rank, and columns of modules without one, hold nothing that could be read as weights
        rows = device.pinned((num_pages_of(plan.rank) * RANK_PAGE, layout.width), dtype).zero_()
    except RuntimeError as error:  # what torch raises without memory
        raise AdapterError(Reason.OUT_OF_MEMORY, f"no memory for the adapter: {error}") from error
    if plan.merged is not None:
        read = reader_of(plan)
        for site in plan.sites:
            index = layout.index[site.module]
            ranks[index] = site.rank
            for key in (site.a_key, site.b_key):
                _lay(rows, layout.places[index], site, key, _part(site, key, read(key), shard))
        return Slab(rows, tuple(ranks))
    try:
        sites = {key: site for site in plan.sites for key in (site.a_key, site.b_key)}
        for name in plan.files:
            with safe_open(plan.directory / name, framework="pt") as file:
                for key in sites.keys() & set(file.keys()):
                    site = sites.pop(key)
                    ranks[layout.index[site.module]] = site.rank
                    part = _part(site, key, file.get_tensor(key), shard)
                    _lay(rows, layout.places[layout.index[site.module]], site, key, part)
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{name} cannot be read: {error}") from error
    if sites:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {min(sites)} is missing")
    return Slab(rows, tuple(ranks))


def _part(site: LoraSite, key: str, tensor: torch.Tensor, shard: Shard | None) -> torch.Tensor:
    if shard is None:
        return tensor
    return shard.lora_a(site.module, tensor) if key == site.a_key else shard.lora_b(site.module, tensor)


def _lay(rows: torch.Tensor, place: _Place, site: LoraSite, key: str, tensor: torch.Tensor) -> None:
    is_a = key == site.a_key
    columns, scale = (place.a, 1.0) if is_a else (place.b, site.scale)
    width = columns.stop - columns.start
    if tensor.shape != ((site.rank, width) if is_a else (width, site.rank)):
        raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {key} has shape {list(tensor.shape)}")
    scaled = (tensor.float() * scale).to(rows.dtype)
    check_finite(scaled, f"tensor {key}", applied(scale, rows.dtype))
    rows[: site.rank, columns] = scaled if is_a else scaled.t()


@dataclass(frozen=True, slots=True)
class _Resident:
    rows: slice | torch.Tensor
    """Its rows in the pool: a slice where its pages are neighbours."""
    row_numbers: tuple[int, ...]
    """The same, one by one."""
    pages: tuple[int, ...]
    """The rank pages that these rows are."""
    ranks: tuple[int, ...]
    ranks_array: np.ndarray[Any, np.dtype[np.int32]]
    """The same."""


@dataclass(frozen=True, slots=True)
class _Part:
    begin: int
    end: int
    resident: _Resident


class LoraBank:
    """The pool of the device, and the modules that add from it."""

    def __init__(
        self,
        model: torch.nn.Module,
        facts: ModelFacts,
        *,
        num_pages: int,
        kernels: CpuKernels | None = None,
        triton: "TritonKernels | None" = None,
    ) -> None:
        parameter = next(model.parameters())
        self.layout = RowLayout(facts)
        self._pool = lazy_zeros((num_pages * RANK_PAGE, self.layout.width), parameter.dtype, parameter.device)
        self._kernels = kernels if kernels is not None and kernels.can_add_rows(parameter.dtype) else None
        self._resident: dict[AdapterKey, _Resident] = {}
        self._parts: list[_Part] = []
        self._compiled: LoraRows | None = None
        """The same parts, where there are kernels of the CPU."""
        self._triton = triton
        self._sites: list[Site | None] = []
        """By module, where there are Triton kernels; None for one that is left to torch."""
        if triton is not None:
            places = enumerate(self.layout.places)
            self._sites = [triton.site([module], [(place.a, place.b)]) for module, place in places]
        self._launched: LoraStep | None = None
        """The same parts, for the Triton kernels."""
        self._num_tokens = 0
        for module in facts.modules:
            model.get_submodule(module.name).register_forward_hook(_Adder(self, module.name))
        self._fused: set[int] = set()
        """Modules that the Triton kernels add to with the others of their product, at one site."""
        if triton is not None:
            self._fuse(model, triton)

    def _fuse(self, model: torch.nn.Module, triton: "TritonKernels") -> None:
        names = {module: name for name, module in model.named_modules()}
        for product in names:
            if not isinstance(product, Linear) or not product.parts:
                continue
            modules = [self.layout.index[names[part]] for part in product.parts]
            places = [self.layout.places[module] for module in modules]
            site = triton.site(modules, [(place.a, place.b) for place in places])
            if site is not None:
                self._fused.update(modules)
                product.register_forward_hook(_SiteAdder(self, site))

    @property
    def pool(self) -> torch.Tensor:
        """[rows, layout width], contiguous."""
        return self._pool

    @property
    def num_bytes(self) -> int:
        """The pool's size."""
        return self._pool.numel() * self._pool.element_size()

    def install(self, key: AdapterKey, pages: Sequence[int], slab: Slab) -> None:
        """Copy a slab to pages that no step reads; safe beside a running step."""
        numbers = tuple(page * RANK_PAGE + row for page in pages for row in range(RANK_PAGE))
        first, length = numbers[0], len(numbers)
        together = numbers == tuple(range(first, first + length))
        rows = slice(first, first + length) if together else torch.tensor(numbers, device=self._pool.device)
        self._pool[rows] = slab.rows.to(self._pool.device)
        ranks = np.array(slab.ranks, dtype=np.int32)
        self._resident[key] = _Resident(rows, numbers, tuple(pages), slab.ranks, ranks)

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter; its pages are somebody else's now."""
        self._resident.pop(key, None)

    def begin_step(self, segments: Sequence[Segment], num_tokens: int) -> None:
        """Say which tokens of the coming forward pass use which adapter."""
        parts = [_Part(one.begin, one.end, self._resident[one.adapter]) for one in segments]
        self._parts, self._compiled, self._launched = parts, None, None
        if self._kernels is not None and parts:
            self._compiled = LoraRows(
                self._kernels,
                [(part.begin, part.end) for part in parts],
                [part.resident.row_numbers for part in parts],
                [part.resident.ranks for part in parts],
            )
        if self._triton is not None and parts:
            self._launched = self._triton.lora(
                [(part.begin, part.end) for part in parts],
                [part.resident.pages for part in parts],
                [part.resident.ranks_array for part in parts],
            )
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

    def fill(self, items: Int32s, pages: Int32s, ranks: Int32s, segments: Sequence[Segment], item_tokens: int) -> None:
        """Write the tables of `LoraStep`: items [.., 3], pages [.., pages], ranks [.., modules]; what is left is padding."""
        at = 0
        for number, one in enumerate(segments):
            resident = self._resident[one.adapter]
            pages[number, : len(resident.pages)] = resident.pages
            ranks[number] = resident.ranks_array
            for begin in range(one.begin, one.end, item_tokens):
                items[at] = number, begin, min(item_tokens, one.end - begin)
                at += 1

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y [.., out] each token's B A x, for x [.., in] of all tokens of the step. The one point of dispatch."""
        place = self.layout.places[module]
        if not self._parts and self._launched is None:
            return
        if self._launched is not None and module in self._fused:
            return  # `add_site` has
        rows = _rows(x, self._num_tokens)
        site = self._sites[module] if self._launched is not None else None
        if self._launched is not None and site is not None:
            self._launched.add(site, self._pool, rows, y.view(-1, y.shape[-1]))
        elif self._compiled is not None:
            self._compiled.add(module, self._pool, place.a.start, rows, y.view(-1, y.shape[-1]))
        else:
            add_by_segment(self._pool, place, module, self._parts, x=rows, y=y)

    def add_site(self, site: "Site", x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y [T, out of all modules of the site] what `add` adds for each, where the Triton kernels do."""
        if self._launched is not None:
            self._launched.add(site, self._pool, _rows(x, self._num_tokens), y)


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


def _rows(x: torch.Tensor, num_tokens: int) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    assert rows.shape[0] == num_tokens, "an adapted module saw other rows than the step's"
    return rows


def add_by_segment(
    pool: torch.Tensor, place: _Place, module: int, parts: Sequence[_Part], *, x: torch.Tensor, y: torch.Tensor
) -> None:
    """The reference: two small products an adapter. x [T, in]; y [.., out] contiguous, changed in place."""
    flat = y.view(-1, y.shape[-1])
    for part in parts:
        rank = part.resident.ranks[module]
        if rank:
            rows = part.resident.rows
            rows = slice(rows.start, rows.start + rank) if isinstance(rows, slice) else rows[:rank]
            low = x[part.begin : part.end] @ pool[rows, place.a].t()
            flat[part.begin : part.end].addmm_(low, pool[rows, place.b])
