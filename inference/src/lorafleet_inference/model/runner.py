"""Runs steps: batch, forward pass, sampling."""

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch

from lorafleet_common.errors import ConfigError
from lorafleet_inference.adapters.extra_tensors import ExtraTensor
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import GIB, KV_BLOCK_TOKENS, EngineConfig, KvCacheDtype
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.device.interface import Graphs, Order
from lorafleet_inference.engine.messages import AdapterKey, Backend, EngineBudgets, Kernels, ModelFacts, ModuleKind
from lorafleet_inference.engine.plan import StepPlan, StepResult, Unconstrained
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.cpu import load_kernels
from lorafleet_inference.kernels.layer import CpuLayerOps
from lorafleet_inference.kernels.team import on_one_thread
from lorafleet_inference.model import warm_up
from lorafleet_inference.model.adapter_sizes import AdapterSizes
from lorafleet_inference.model.arena import Arena
from lorafleet_inference.model.attention import attending
from lorafleet_inference.model.batch import ChoiceInputs, FlatBatch, HostBatch
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.decoder import Decoder
from lorafleet_inference.model.experts import wait_for_device
from lorafleet_inference.model.extras import Extras, ExtrasBank
from lorafleet_inference.model.extras_files import Total, alone, load_extras
from lorafleet_inference.model.graph_rooms import captured_bytes
from lorafleet_inference.model.input_batch import ChosenToken, InputBatch
from lorafleet_inference.model.lora import LoraBank
from lorafleet_inference.model.memory import zeros
from lorafleet_inference.model.own_rows import settled
from lorafleet_inference.model.paged_step import LayerKV, PagedStep
from lorafleet_inference.model.pooling import HiddenStates, pool
from lorafleet_inference.model.ranks.group import Group
from lorafleet_inference.model.ranks.narrow import work_in
from lorafleet_inference.model.readers import MAX_READERS
from lorafleet_inference.model.results import Computing
from lorafleet_inference.model.sizing import (
    GRAPH_BYTES,
    DeviceMemory,
    kv_block_bytes,
    kv_row_bytes,
    num_blocks_for,
    pool_pages,
    weight_bytes,
)
from lorafleet_inference.model.slab import Slab, load_slab

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.backend import TritonKernels
    from lorafleet_inference.model.affine_bank import AffineBank
    from lorafleet_inference.model.graphs import StepGraphs
    from lorafleet_inference.model.side_lora import SideBank

logger = logging.getLogger(__name__)
CPU_KV_BYTES = GIB


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter in host memory."""

    slab: Slab
    extras: Extras
    vocabulary: Vocabulary | None
    """Where it is not the base's."""
    side_ranks: tuple[int, ...] = ()
    """Of what goes from the extras to pages of the pool, as `SideLayout.ranks_of` says; empty where nothing does."""
    affine: tuple[str, ...] = ()
    """Modules whose scale and offset go there, too."""
    apart: tuple[ExtraTensor, ...] = ()
    """What else there may be among the extras."""


class ModelRunner:
    """Owns the model, its KV pages and the adapter pool.

    `triton` and `graphs`: instead of the kernels and graphs that the device would get. `ahead`: whether a step may be submitted
    before the one before is collected, instead of where the device works beside the CPU. `group`: the ranks of a model of which
    `loaded` is a part; each makes its runner, and computes, at the same time as the others. `beside_block_bytes`: what the KV of a draft
    model takes for each block of KV, of the same memory.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        triton: "TritonKernels | None" = None,
        graphs: Graphs | None = None,
        ahead: bool | None = None,
        *,
        group: Group | None = None,
        beside_block_bytes: int = 0,
    ) -> None:
        self._model = loaded.model
        if group is not None:
            assert loaded.shard is not None, "it is a part"
            work_in(loaded.model, loaded.shard, group.sum, group.gather)
        self._device, self._max_readers = loaded.device, min(MAX_READERS, torch.get_num_threads())
        self.ahead = self._device.type != "cpu" if ahead is None else ahead
        self.facts: ModelFacts = loaded.facts
        self._on = device_at(loaded.device)
        self._loads = self._on.stream()  # what loads ask of the device: nothing of it comes between steps
        self._shard, self._group = loaded.shard, group
        layout, itemsize = RowLayout.of(loaded.held), loaded.dtype.itemsize
        num_pages = self._least(pool_pages(config, layout, itemsize, _free_bytes(self._device)))
        self._kernels = load_kernels(config.kernel_cache) if config.cpu_kernels and self._device.type == "cpu" else None
        self._triton = _triton_of(self._device, config) if triton is None else triton
        if self._kernels is not None and isinstance(self._model, Decoder):
            self._model.ops = CpuLayerOps(self._kernels)
        if self._triton is not None and isinstance(self._model, Decoder):
            self._model.ops = self._triton.layer_ops
        if self._triton is not None:
            _quantised_by_kernels(self._model)
        self._bank = LoraBank(
            loaded.model,
            loaded.held,
            num_pages=num_pages,
            num_adapters=config.max_resident_adapters,
            max_rank=config.max_rank,
            kernels=self._kernels,
            triton=self._triton,
        )
        self._sides: SideBank | None = None
        """Of a whole model: ranks of one have parts of what adapters hold there, and leave it to plain torch."""
        if self._triton is not None and group is None:
            self._sides = _sides_of(loaded, self._bank, self._triton)
        self._affine: AffineBank | None = None
        """Of a whole model, too, and where the kernels of LoRA compute every module: what it changes comes after LoRA."""
        if self._triton is not None and group is None and self._bank.can_be_captured:
            self._affine = _affine_of(loaded, self._bank, self._triton)
        self._sizes = AdapterSizes(
            self._bank.layout,
            loaded.held,
            None if self._sides is None else self._sides.layout,
            None if self._affine is None else self._affine.layout,
        )
        self.arena = Arena(
            config.host_cache_bytes // config.ranks_per_host,  # this rank's part of the host tier
            self._bank.layout.page,
            loaded.dtype,
            self._on,
        )
        self._extras, self._hidden = ExtrasBank(loaded.model, self._bank.pool), HiddenStates(loaded.model)
        self._ropes, self._dtype = loaded.ropes, loaded.dtype
        self._num_outputs = next(
            (one.out_features for one in loaded.facts.side_modules if one.kind is ModuleKind.LINEAR), None
        )
        """Columns of the logits of the base; None where its head is no plain layer."""
        self._layers: list[LayerKV] = []
        self.graphs: StepGraphs | None = None
        has_chooser = self._triton is not None
        self._rows = InputBatch(1, self.facts.max_model_len, self._device, has_chooser=has_chooser)  # of the warm-up
        block_bytes = kv_block_bytes(loaded.shapes, loaded.dtype.itemsize, config.kv_cache_dtype)
        num_blocks = self._least(self._num_blocks(loaded, config, block_bytes + beside_block_bytes))
        self._layers = _pages(loaded, num_blocks, config.kv_cache_dtype)
        self.facts = _cut_to(num_blocks * KV_BLOCK_TOKENS, self.facts)
        # one row more than requests run: that of the engine's own check
        num_rows = config.max_batch_requests + 1
        self._rows = InputBatch(
            num_rows, self.facts.max_model_len, self._device, ahead=self.ahead, has_chooser=has_chooser
        )
        self.graphs = self._graphs_of(config, graphs)
        self.budgets = EngineBudgets(
            num_kv_blocks=num_blocks,
            kv_block_tokens=KV_BLOCK_TOKENS,
            kv_cache_bytes=num_blocks * block_bytes,
            kv_cache_dtype=self.facts.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
            max_resident_adapters=config.max_resident_adapters,
            max_rank=config.max_rank,
            total_rank_pages=num_pages,
            host_cache_bytes=config.host_cache_bytes,
            held=loaded.rank_facts,
        )
        # behind the zeros of the pool, and later the steps that may read what was removed
        self._left = self._on.current().mark()
        if self._triton is not None:
            self._compile(config)

    def _compile(self, config: EngineConfig) -> None:
        """Launch the kernels that requests will need, so that none waits for one to be compiled."""
        began = time.monotonic()
        max_tokens = min(config.max_batch_tokens, self.facts.max_model_len)
        contexts = warm_up.contexts(self.facts.max_model_len)
        adapters = warm_up.adapters(self._bank, self._sides, config.max_rank, max_tokens, self._dtype)
        for plan in itertools.chain(contexts, adapters):  # one by one: an adapter is there while its steps are run
            self.compute(plan)
        self._rows.apply(StepPlan(gone=(warm_up.REQUEST,)))
        logger.info("kernels compiled in %.1f s", time.monotonic() - began)

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> Computing:
        """Have a step computed, on a CPU before this returns."""
        self._rows.apply(plan)
        host = self._rows.gather(plan.items)
        rows = self._rows.rows(host.items)
        pools = any(row.pooling is not None for row in rows)
        self._hidden.want(pools)
        replayed = None if pools else self._replayed(host)
        logits, inputs = self._forward(host) if replayed is None else replayed
        base = self._num_outputs or logits.shape[-1]
        pooled = pool(self._hidden.take(), host, rows) if pools else None
        num_outputs = [self._extras.num_outputs(adapter, base) for adapter in host.adapters]
        chooser = None if self._triton is None else self._triton.choose
        return Computing(
            host.items,
            logits,
            self._rows,
            self.facts.eos_token_ids,
            num_outputs=num_outputs,
            pooled=pooled,
            chooser=chooser,
            inputs=inputs,
        )

    def know(self, chosen: Iterable[ChosenToken]) -> None:
        """Take in tokens that were chosen elsewhere; of requests that are gone, nothing."""
        for request_id, position, token_id in chosen:
            self._rows.know(request_id, position, token_id)

    def compute(self, plan: StepPlan) -> StepResult:
        """Compute a step, and wait for it."""
        computing = self.submit(plan)
        computing.choose(Unconstrained())
        return computing.collect()

    def _forward(self, host: HostBatch) -> tuple[torch.Tensor, ChoiceInputs | None]:
        """Return logits [rows, vocabulary], and what choosing from them needs."""
        with self._attending(host) as (batch, input_ids):
            logits = self._model(
                input_ids=input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=batch.sampled_rows,
            ).logits
        base = self._num_outputs or logits.shape[-1]
        return self._extras.end_step(logits[0], base), batch.choice

    @contextmanager
    def _attending(self, host: HostBatch, *, head: bool = True) -> Iterator[tuple[FlatBatch, torch.Tensor]]:
        """While this is open, the model computes this step; yields it, and its token ids [1, T] as the model may see them."""
        tables = self._rows.lay(host, None if self._triton is None else self._triton.begin_step())
        num_tokens = len(host.token_ids)
        self._bank.begin_step(host.segments, num_tokens)
        if self._sides is not None:
            self._sides.begin_step(host.segments, host.head_segments, num_tokens, len(host.logit_rows))
        if self._affine is not None:
            self._affine.begin_step(host.segments)
        launched = None
        if self._triton is not None:
            spans = [(one.begin, one.end, one.start, one.blocks) for one in host.spans]
            launched = self._triton.attention(spans, tables.slots)
        batch = self._rows.to_device(host, tables)  # so all that is put into the block comes before
        head_segments = host.head_segments if head else ()
        input_ids = self._extras.begin_step(host.segments, head_segments, batch.input_ids)
        if self._ropes is not None:
            self._ropes.begin_step(batch)
        with attending(PagedStep(self._layers, batch, self._kernels, launched)):
            yield batch, input_ids

    @torch.inference_mode()
    def follow(self, plan: StepPlan, chosen: Sequence[ChosenToken]) -> None:
        """Compute this rank's part of a step whose tokens another rank chooses. `chosen`: those of the steps before."""
        self.know(chosen)
        self._rows.apply(plan)
        host = self._rows.gather(plan.items)
        with self._attending(host, head=False) as (batch, input_ids):
            self._model(
                input_ids=input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=batch.sampled_rows,
            )
        self._on.current().mark().wait(Order.FOLLOWED)  # what fails there fails here, too

    def _least(self, number: int) -> int:
        return number if self._group is None else self._group.least(number)

    def _replayed(self, host: HostBatch) -> tuple[torch.Tensor, ChoiceInputs] | None:
        """Compute a step by a graph, if there can be one, and return as `_forward`."""
        if self.graphs is None or self._extras.changes(host.adapters):
            return None
        self._extras.clear()
        return self.graphs.compute(host)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do once what the first steps would have to do."""
        if self.graphs is not None:
            self.graphs.capture_all()

    @property
    def backend(self) -> Backend:
        """How steps are computed."""
        if self._triton is not None:
            return Backend(Kernels.TRITON, None if self.graphs is None else len(self.graphs.captured))
        return Backend(Kernels.TORCH if self._kernels is None else Kernels.CPU)

    @property
    def num_replayed_steps(self) -> int:
        """Steps so far that were computed by a graph."""
        return 0 if self.graphs is None else self.graphs.num_replayed

    def is_lost(self, error: Exception) -> bool:
        """Whether an error of a step leaves the device unusable: errors of kernels do, missing memory does not."""
        if isinstance(error, torch.AcceleratorError):
            return True
        try:
            self._on.check()
        except RuntimeError:
            return True
        self._on.release_unused()
        return False

    @torch.inference_mode()
    @on_one_thread()
    def load_slab(self, plan: AdapterPlan, total: Total = alone) -> HostAdapter:
        """Read an adapter from disk; runs beside steps. `total`: as `load_extras` says."""
        with self._on.on(self._loads):
            return self._load_slab(plan, total)

    def _load_slab(self, plan: AdapterPlan, total: Total) -> HostAdapter:
        slab = load_slab(
            plan, self._bank.layout, self._dtype, self.arena, shard=self._shard, max_readers=self._max_readers
        )
        vocabulary = None if plan.num_rows is None else plan.vocabulary
        try:
            extras = load_extras(plan, self._model, self._dtype, self._shard, total)
        except BaseException:
            self.arena.give(slab.pages)
            raise
        side_ranks = () if self._sides is None else self._sides.layout.ranks_of(plan)
        affine = () if self._affine is None else self._affine.layout.modules_of(plan)
        return HostAdapter(slab, extras, vocabulary, side_ranks, affine, self._sizes.apart(plan))

    def drop_slab(self, slab: HostAdapter) -> None:
        """Have the memory of an adapter on the host used again; nobody copies it any more."""
        self.arena.give(slab.slab.pages)

    @torch.inference_mode()
    @on_one_thread()
    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        """Return the plan of an adapter as it is loaded: of weights that it repeats, only what is not the base's."""
        with self._on.on(self._loads):
            return settled(plan, self._model, self._shard)

    def num_pages(self, plan: AdapterPlan) -> int:
        """Return the rank pages that an adapter takes: nothing of it lies outside of the pool."""
        return self._sizes.num_pages(plan)

    def slab_bytes(self, plan: AdapterPlan) -> int:
        """Return the size of an adapter in host memory."""
        return self._sizes.host_elements(plan) * self._dtype.itemsize

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
        at = len(slab.slab.pages)
        self._bank.install(key, pages[:at], slab.slab)
        extras = slab.extras
        if self._sides is not None and any(slab.side_ranks):
            extras = self._sides.install(key, pages[at:], slab.side_ranks, extras)
            at += self._sides.layout.laid(slab.side_ranks)[1]
        if self._affine is not None:
            extras = self._affine.install(key, pages[at:], slab.affine, extras)
            at += self._affine.layout.laid(slab.affine)[1]
        self._extras.install(key, pages[at:], slab.apart, extras, slab.vocabulary)

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter of the device; steps that were submitted are computed with it."""
        self._left = self._on.current().mark()
        self._forget(key)

    def _forget(self, key: AdapterKey) -> None:
        self._bank.remove(key)
        self._extras.remove(key)
        if self._sides is not None:
            self._sides.remove(key)
        if self._affine is not None:
            self._affine.remove(key)

    @property
    def _is_captured(self) -> bool:
        """Whether steps can be captured, where there are graphs."""
        is_able = self._triton is not None and self._sides is not None and self._ropes is None
        return is_able and not wait_for_device(self._model)

    def _graphs_of(self, config: EngineConfig, graphs: Graphs | None) -> "StepGraphs | None":
        if not self._is_captured or self._triton is None or self._sides is None:
            return None
        from lorafleet_inference.model.graphs import StepGraphs  # noqa: PLC0415  there on Linux alone

        if graphs is None:
            graphs = self._on.graphs() if config.cuda_graphs else None
        if graphs is None:
            return None
        return StepGraphs(
            graphs,
            self._model,
            self._layers,
            self._bank,
            sides=self._sides,
            affine=self._affine,
            triton=self._triton,
            max_tokens=self.facts.max_model_len,
            max_rank=config.max_rank,
            max_requests=config.max_batch_requests,
            max_batch_tokens=config.max_batch_tokens,
            last_tokens=self._rows.last_tokens,
        )

    def _num_blocks(self, loaded: LoadedModel, config: EngineConfig, block_bytes: int) -> int:
        useful = config.max_batch_requests * num_blocks_for(self.facts.max_model_len)
        if config.kv_cache_memory_bytes is not None:
            num_bytes = config.kv_cache_memory_bytes
        elif self._on.bytes() is not None:
            self._layers = _pages(loaded, num_blocks_for(config.max_batch_tokens), config.kv_cache_dtype)
            num_bytes = self._free_after_warm_up(config)
        else:
            num_bytes = CPU_KV_BYTES
        num_blocks = min(num_bytes // block_bytes, useful)
        if num_blocks < 1:
            raise ConfigError(
                "--kv-cache-memory", f"{num_bytes} bytes hold no block of {block_bytes} bytes{_why(num_bytes)}"
            )
        return int(num_blocks)

    def _free_after_warm_up(self, config: EngineConfig) -> int:
        """Run the largest step and return what is free beside it."""
        length = min(config.max_batch_tokens, self.facts.max_model_len)
        activations = self._on.peak_bytes(lambda: self.compute(warm_up.plan(None, 0, length)))
        self._layers = []
        self._on.release_unused()
        found = self._on.bytes()
        assert found is not None, "a device without memory of its own is asked for none"
        weights, pool = weight_bytes(self._model), self._bank.num_bytes
        graphs = 0
        if self._is_captured and config.cuda_graphs:
            graphs = captured_bytes(
                max_requests=config.max_batch_requests,
                max_tokens=length,
                max_model_len=self.facts.max_model_len,
                logit_bytes=self.facts.vocab_size * self._dtype.itemsize,
                activations=activations,
                graph_bytes=GRAPH_BYTES,
                has_sides=self._sides is not None and bool(self._sides.layout.places),
                has_affine=self._affine is not None,
            )
        memory = DeviceMemory(
            found.total, found.total - found.free - weights - pool, weights, pool, activations, graphs
        )
        logger.info("device memory: %s", memory.text())
        return memory.kv_cache


def _free_bytes(device: torch.device) -> int | None:
    found = device_at(device).bytes()
    return None if found is None else found.free


def _why(num_bytes: int) -> str:
    if num_bytes > 0:
        return ""
    return (
        ": weights, adapters and the largest step take all of the device; --adapter-memory and --max-batch-tokens make them "
        "smaller, and `lorafleet-inference plan` says what fits"
    )


def _cut_to(num_kv_tokens: int, facts: ModelFacts) -> ModelFacts:
    """Return the facts with a context that the KV cache can hold: a longer one is promised to nobody."""
    if num_kv_tokens >= facts.max_model_len:
        return facts
    logger.warning(
        "the KV cache holds %d tokens, so the context is cut from %d to that; --kv-cache-memory makes it larger",
        num_kv_tokens,
        facts.max_model_len,
    )
    return msgspec.structs.replace(facts, max_model_len=num_kv_tokens)


def _triton_of(device: torch.device, config: EngineConfig) -> "TritonKernels | None":
    if device.type != "cuda" or not config.gpu_kernels:
        return None
    from lorafleet_inference.kernels.triton.backend import load_triton  # noqa: PLC0415  there on Linux alone

    return load_triton(device, config.kernel_cache)


def _sides_of(loaded: LoadedModel, bank: LoraBank, triton: "TritonKernels") -> "SideBank":
    from lorafleet_inference.model.side_lora import SideBank  # noqa: PLC0415  there on Linux alone

    return SideBank(loaded.model, loaded.facts, bank.pool, triton)


def _affine_of(loaded: LoadedModel, bank: LoraBank, triton: "TritonKernels") -> "AffineBank | None":
    from lorafleet_inference.model.affine_bank import AffineBank  # noqa: PLC0415  there on Linux alone

    made = AffineBank(loaded.model, loaded.facts, bank.pool, triton)
    return made if made.layout.index else None


def _quantised_by_kernels(model: torch.nn.Module) -> None:
    from lorafleet_inference.model.quantization.on_gpu import use_kernels  # noqa: PLC0415  Triton is there on Linux alone

    done, left = use_kernels(model)
    if done or left:
        logger.info("quantised weights: %d by Triton kernels, %d brought back by torch", done, left)


def _pages(loaded: LoadedModel, num_blocks: int, kv_dtype: KvCacheDtype) -> list[LayerKV]:
    dtype = fp8_pages.DTYPE if kv_dtype == "fp8" else loaded.dtype

    def pages(num_heads: int, width: int) -> torch.Tensor:
        width = kv_row_bytes(width, dtype.itemsize, kv_dtype) // dtype.itemsize
        return zeros((num_blocks, num_heads, KV_BLOCK_TOKENS, width), dtype, loaded.device)

    return [
        LayerKV(pages(shape.num_kv_heads, shape.key_width), pages(shape.num_kv_heads, shape.value_width))
        for shape in loaded.shapes
    ]
