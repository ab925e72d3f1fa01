"""An adapter in host memory: its tensors as they lie in pages of the device."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.row_layout import Laid, RowLayout
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.arena import Arena, HostPages
from lorafleet_inference.model.finite import applied, check_finite
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.readers import each_by, num_readers
from lorafleet_inference.model.tensor_files import reader_of


@dataclass(frozen=True, slots=True)
class Slab:
    """The rows of an adapter on the host, laid out as on the device."""

    pages: HostPages
    """In the model's dtype; pinned where the device is CUDA. Behind the rows there may be pages of what else an adapter has."""
    ranks: tuple[int, ...]
    """True rank of each module, in the layout's order; 0 where the adapter has none."""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.pages.num_bytes


def load_slab(
    plan: AdapterPlan,
    layout: RowLayout,
    dtype: torch.dtype,
    arena: Arena,
    *,
    num_more: int = 0,
    shard: Shard | None = None,
    max_readers: int = 1,
) -> Slab:
    """Read the tensors of a validated adapter to pages of an arena; of them a rank's part, where the model is on several.

    `num_more`: pages of zeros behind them, of the same run where there is one; of all there is one at least. `max_readers`: threads that
    read at the same time.

    Raises:
        AdapterError: ARTIFACT_INVALID when a value is not finite, or the files are not what validation saw; OUT_OF_MEMORY.
    """
    ranks = layout.ranks_of(plan)
    laid = layout.laid(ranks)
    try:
        pages = arena.take(max(1, laid.num_pages + num_more))
    except RuntimeError as error:  # what torch raises without memory
        raise AdapterError(Reason.OUT_OF_MEMORY, f"no memory for the adapter: {error}") from error
    try:
        for run in pages.runs:
            run.zero_()  # what lies between rows holds nothing that could be read as weights
        rows = _Rows(pages.pages, layout, laid, dtype)
        if plan.merged is None:
            _read_files(plan, rows, shard, num_readers(pages.num_bytes, max_readers))
        else:
            read = reader_of(plan)
            for site in plan.sites:
                for key in (site.a_key, site.b_key):
                    rows.lay(site, key, _part(site, key, read(key), shard))
    except BaseException:
        arena.give(pages)
        raise
    return Slab(pages, ranks)


def _read_files(plan: AdapterPlan, rows: "_Rows", shard: Shard | None, num_threads: int) -> None:
    sites = {key: site for site in plan.sites for key in (site.a_key, site.b_key)}
    tensors: dict[str, tuple[str, Any]] = {}
    """By its name the file that has it, and that file, open."""
    with ExitStack() as stack:
        for name in plan.files:
            with _readable(name):
                file = stack.enter_context(safe_open(plan.directory / name, framework="pt"))
                tensors.update((key, (name, file)) for key in sorted(sites.keys() & set(file.keys())))
        missing = sites.keys() - tensors.keys()
        if missing:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {min(missing)} is missing")

        def read(key: str) -> None:
            name, file = tensors[key]
            with _readable(name):
                tensor = file.get_tensor(key)
            rows.lay(sites[key], key, _part(sites[key], key, tensor, shard))

        each_by(num_threads, read, list(tensors))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{name} cannot be read: {error}") from error


def _scaled(tensor: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor times a scale, rounded once; itself, where that is what it is."""
    if tensor.dtype != dtype:
        return (tensor.float() * scale).to(dtype)
    return tensor if scale == 1.0 else tensor * scale  # torch multiplies 16 bits in float32, without a copy in it


def _part(site: LoraSite, key: str, tensor: torch.Tensor, shard: Shard | None) -> torch.Tensor:
    if shard is None:
        return tensor
    return shard.lora_a(site.module, tensor) if key == site.a_key else shard.lora_b(site.module, tensor)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of an adapter in its own pages."""

    pages: Sequence[torch.Tensor]
    layout: RowLayout
    laid: Laid
    dtype: torch.dtype

    def lay(self, site: LoraSite, key: str, tensor: torch.Tensor) -> None:
        module = self.layout.index[site.module]
        place, is_a = self.layout.places[module], key == site.a_key
        width, scale = (place.in_width, 1.0) if is_a else (place.out_width, site.scale)
        if tensor.shape != ((site.rank, width) if is_a else (width, site.rank)):
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {key} has shape {list(tensor.shape)}")
        scaled = _scaled(tensor, scale, self.dtype)
        check_finite(scaled, f"tensor {key}", applied(scale, self.dtype))
        scaled = scaled if is_a else scaled.t()
        begin = 0 if is_a else place.in_width
        for ranks, rows in self._of(module, site.rank):
            rows[:, begin : begin + width] = scaled[ranks]

    def _of(self, module: int, rank: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the ranks that lie in one page, and their rows [ranks, row width]."""
        width, fit, first = self.layout.places[module].row_width, self.layout.fits[module], self.laid.firsts[module]
        at = 0
        while at < rank:
            page, slot = divmod(first + at, fit)
            count = min(fit - slot, rank - at)
            yield slice(at, at + count), self.pages[page][slot * width : (slot + count) * width].view(count, width)
            at += count
