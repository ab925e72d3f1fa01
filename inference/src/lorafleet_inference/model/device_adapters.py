"""The adapters of a device: what computes them, the pages in which they lie, and the way there from disk through the host's memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.device.interface import Device, Order
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.kernels.team import on_one_thread
from lorafleet_inference.model.adapter_sizes import AdapterSizes
from lorafleet_inference.model.arena import Arena
from lorafleet_inference.model.base_rows import BaseRows
from lorafleet_inference.model.batch import HostBatch
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.extras import ExtrasBank
from lorafleet_inference.model.extras_files import Total, alone, load_extras
from lorafleet_inference.model.host_adapter import HostAdapter, HostExtras, copy_pages
from lorafleet_inference.model.lora import LoraBank
from lorafleet_inference.model.own_rows import settled
from lorafleet_inference.model.readers import MAX_READERS
from lorafleet_inference.model.slab import load_slab
from lorafleet_inference.model.step_kernels import StepKernels

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.backend import TritonKernels
    from lorafleet_inference.model.affine_bank import AffineBank
    from lorafleet_inference.model.side_lora import SideBank


class DeviceAdapters:
    """Owns the pool of a device, its banks, and the host tier of this rank.

    Loads run beside steps, in a thread and a stream of their own. `is_whole`: the model is not a part of one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        kernels: StepKernels,
        on: Device,
        *,
        num_pages: int,
        is_whole: bool,
    ) -> None:
        self._model, self._shard, self._dtype, self._on = loaded.model, loaded.shard, loaded.dtype, on
        self._max_readers = min(MAX_READERS, torch.get_num_threads())
        self._loads = on.stream()  # what loads ask of the device: nothing of it comes between steps
        self.bank = LoraBank(
            loaded.model,
            loaded.held,
            num_pages=num_pages,
            num_adapters=config.max_resident_adapters,
            max_rank=config.max_rank,
            kernels=kernels.cpu,
            triton=kernels.triton,
        )
        self.sides: SideBank | None = None
        """Of a whole model: ranks of one have parts of what adapters hold there, and leave it to plain torch."""
        if kernels.triton is not None and is_whole:
            self.sides = _sides_of(loaded, self.bank, kernels.triton)
        self.affine: AffineBank | None = None
        """Of a whole model, too, and where the kernels of LoRA compute every module: what it changes comes after LoRA."""
        if kernels.triton is not None and is_whole and self.bank.can_be_captured:
            self.affine = _affine_of(loaded, self.bank, kernels.triton)
        self._sizes = AdapterSizes(
            self.bank.layout,
            loaded.held,
            None if self.sides is None else self.sides.layout,
            None if self.affine is None else self.affine.layout,
        )
        page_bytes = self.bank.layout.page * loaded.dtype.itemsize
        staging = on.pinned((page_bytes,), torch.uint8) if on.works_beside else None
        self.staging_bytes = 0 if staging is None else page_bytes
        """Of the host tier, through which rows of the base come."""
        self.arena = Arena(
            max(0, config.host_cache_bytes // config.ranks_per_host - self.staging_bytes),  # this rank's part
            self.bank.layout.page,
            loaded.dtype,
            on,
        )
        self._base = BaseRows(on, self._loads, staging, loaded.dtype)
        self.extras = ExtrasBank(loaded.model, self.bank.pool)
        # behind the zeros of the pool, and later the steps that may read what was removed
        self._left = on.current().mark()

    def begin_step(self, host: HostBatch) -> None:
        """Say which tokens of the coming forward pass use which adapter; not to the extras, which change its token ids too."""
        num_tokens = len(host.token_ids)
        self.bank.begin_step(host.segments, num_tokens)
        if self.sides is not None:
            self.sides.begin_step(host.segments, host.head_segments, num_tokens, len(host.logit_rows))
        if self.affine is not None:
            self.affine.begin_step(host.segments)

    def num_pages(self, plan: AdapterPlan) -> int:
        """Return the rank pages that an adapter takes: nothing of it lies outside of the pool."""
        return self._sizes.num_pages(plan)

    def slab_bytes(self, plan: AdapterPlan) -> int:
        """Return the size of an adapter in host memory."""
        return self._sizes.num_pages(plan) * self.bank.layout.page * self._dtype.itemsize

    @torch.inference_mode()
    @on_one_thread()
    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        """Return the plan of an adapter as it is loaded: of weights that it repeats, only what is not the base's."""
        with self._on.on(self._loads):
            return settled(plan, self._model, self._base, self._shard)

    @torch.inference_mode()
    @on_one_thread()
    def load_slab(self, plan: AdapterPlan, total: Total = alone) -> HostAdapter:
        """Read an adapter from disk; runs beside steps. `total`: as `load_extras` says."""
        with self._on.on(self._loads):
            return self._load_slab(plan, total)

    def _load_slab(self, plan: AdapterPlan, total: Total) -> HostAdapter:
        parts = self._sizes.parts(plan)
        num_more = parts.num_pages - parts.num_row_pages
        shard, max_readers = self._shard, self._max_readers
        layout, dtype = self.bank.layout, self._dtype
        slab = load_slab(plan, layout, dtype, self.arena, num_more=num_more, shard=shard, max_readers=max_readers)
        try:
            places, spans = self._sizes.places(parts, slab.pages)
            host = HostExtras(slab.pages, places, dtype)
            for name in parts.affine:
                host.write(name, "scale", torch.ones(host.num_elements(name, "scale")))
            load_extras(plan, self._model, self._base, host, shard=shard, total=total, max_readers=max_readers)
        except BaseException:
            self.arena.give(slab.pages)
            raise
        vocabulary = None if plan.num_rows is None else plan.vocabulary
        apart = tuple(host.laid(one, there) for one, there in zip(parts.apart, spans, strict=True))
        return HostAdapter(slab, vocabulary, parts.side_ranks, parts.affine, apart)

    def drop_slab(self, slab: HostAdapter) -> None:
        """Have the memory of an adapter on the host used again; nobody copies it any more."""
        self.arena.give(slab.slab.pages)

    @torch.inference_mode()
    @on_one_thread()
    def install(self, key: AdapterKey, pages: Sequence[int], slab: HostAdapter) -> None:
        """Copy an adapter to the device; runs beside steps, on pages that none reads that comes after this.

        It is done by a stream of loads, when the steps that may read these pages are.
        """
        with self._on.on(self._loads):
            self._loads.wait(self._left, Order.PAGES_LEFT)
            try:
                self._install(key, pages, slab)
            except BaseException:
                self._forget(key)  # else it kept a place that its room does not count any more
                raise
            finally:
                self._loads.mark().wait(Order.ADAPTER_COPIED)

    def _install(self, key: AdapterKey, pages: Sequence[int], slab: HostAdapter) -> None:
        host = slab.slab.pages
        at = self.bank.layout.laid(slab.slab.ranks).num_pages
        self.bank.install(key, pages[:at], slab.slab)
        if self.sides is not None and any(slab.side_ranks):
            end = at + self.sides.layout.laid(slab.side_ranks)[1]
            copy_pages(self._on, self.bank.pool, pages[at:end], host, at)
            self.sides.install(key, pages[at:end], slab.side_ranks)
            at = end
        if self.affine is not None:
            end = at + self.affine.layout.laid(slab.affine)[1]
            copy_pages(self._on, self.bank.pool, pages[at:end], host, at)
            self.affine.install(key, pages[at:end], slab.affine)
            at = end
        self.extras.install(key, pages[at:], slab.apart, host, slab.vocabulary)

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter of the device; steps that were submitted are computed with it."""
        self._left = self._on.current().mark()
        self._forget(key)

    def _forget(self, key: AdapterKey) -> None:
        self.bank.remove(key)
        self.extras.remove(key)
        if self.sides is not None:
            self.sides.remove(key)
        if self.affine is not None:
            self.affine.remove(key)


def _sides_of(loaded: LoadedModel, bank: LoraBank, triton: "TritonKernels") -> "SideBank":
    from lorafleet_inference.model.side_lora import SideBank  # noqa: PLC0415  there on Linux alone

    return SideBank(loaded.model, loaded.facts, bank.pool, triton)


def _affine_of(loaded: LoadedModel, bank: LoraBank, triton: "TritonKernels") -> "AffineBank | None":
    from lorafleet_inference.model.affine_bank import AffineBank  # noqa: PLC0415  there on Linux alone

    made = AffineBank(loaded.model, loaded.facts, bank.pool, triton)
    return made if made.layout.index else None
