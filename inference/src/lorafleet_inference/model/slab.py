"""An adapter in host memory: its tensors as they lie in pages of the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.row_layout import Laid, RowLayout
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.device.interface import Device
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.finite import applied, check_finite
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.tensor_files import reader_of


@dataclass(frozen=True, slots=True)
class Slab:
    """An adapter on the host, laid out as on the device."""

    pages: torch.Tensor
    """[pages, elements of a page], in the model's dtype, on the CPU; pinned where the device is CUDA."""
    ranks: tuple[int, ...]
    """True rank of each module, in the layout's order; 0 where the adapter has none."""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.pages.numel() * self.pages.element_size()


def load_slab(
    plan: AdapterPlan, layout: RowLayout, dtype: torch.dtype, *, device: Device, shard: Shard | None = None
) -> Slab:
    """Read the tensors of a validated adapter for a device; of them a rank's part, where the model is on several.

    Raises:
        AdapterError: ARTIFACT_INVALID when a value is not finite, or the files are not what validation saw; OUT_OF_MEMORY.
    """
    ranks = layout.ranks_of(plan)
    laid = layout.laid(ranks)
    try:
        # zeros: what lies between rows holds nothing that could be read as weights
        pages = device.pinned((laid.num_pages, layout.page), dtype).zero_()
    except RuntimeError as error:  # what torch raises without memory
        raise AdapterError(Reason.OUT_OF_MEMORY, f"no memory for the adapter: {error}") from error
    rows = _Rows(pages, layout, laid)
    if plan.merged is not None:
        read = reader_of(plan)
        for site in plan.sites:
            for key in (site.a_key, site.b_key):
                rows.lay(site, key, _part(site, key, read(key), shard))
        return Slab(pages, ranks)
    try:
        sites = {key: site for site in plan.sites for key in (site.a_key, site.b_key)}
        for name in plan.files:
            with safe_open(plan.directory / name, framework="pt") as file:
                for key in sites.keys() & set(file.keys()):
                    site = sites.pop(key)
                    rows.lay(site, key, _part(site, key, file.get_tensor(key), shard))
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{name} cannot be read: {error}") from error
    if sites:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {min(sites)} is missing")
    return Slab(pages, ranks)


def _part(site: LoraSite, key: str, tensor: torch.Tensor, shard: Shard | None) -> torch.Tensor:
    if shard is None:
        return tensor
    return shard.lora_a(site.module, tensor) if key == site.a_key else shard.lora_b(site.module, tensor)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of an adapter in its own pages."""

    pages: torch.Tensor
    layout: RowLayout
    laid: Laid

    def lay(self, site: LoraSite, key: str, tensor: torch.Tensor) -> None:
        module = self.layout.index[site.module]
        place, is_a = self.layout.places[module], key == site.a_key
        width, scale = (place.in_width, 1.0) if is_a else (place.out_width, site.scale)
        if tensor.shape != ((site.rank, width) if is_a else (width, site.rank)):
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {key} has shape {list(tensor.shape)}")
        scaled = (tensor.float() * scale).to(self.pages.dtype)
        check_finite(scaled, f"tensor {key}", applied(scale, self.pages.dtype))
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
            yield slice(at, at + count), self.pages[page, slot * width : (slot + count) * width].view(count, width)
            at += count
