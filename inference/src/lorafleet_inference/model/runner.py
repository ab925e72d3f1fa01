"""Runs steps: batch, forward pass, sampling."""

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import KV_BLOCK_TOKENS, EngineConfig
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.device.interface import Device, Graphs, Order
from lorafleet_inference.engine.messages import AdapterKey, Backend, EngineBudgets, Kernels, ModelFacts, ModuleKind
from lorafleet_inference.engine.plan import StepPlan, StepResult, Unconstrained
from lorafleet_inference.model import warm_up
from lorafleet_inference.model.attention import attending
from lorafleet_inference.model.batch import ChoiceInputs, FlatBatch, HostBatch
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.device_adapters import DeviceAdapters
from lorafleet_inference.model.experts import wait_for_device
from lorafleet_inference.model.extras_files import Total, alone
from lorafleet_inference.model.graph_rooms import captured_bytes, record_bytes
from lorafleet_inference.model.host_adapter import HostAdapter
from lorafleet_inference.model.input_batch import ChosenToken, InputBatch
from lorafleet_inference.model.kv_memory import CPU_KV_BYTES, cut_to, kv_layers, left_for_kv, num_kv_blocks
from lorafleet_inference.model.paged_step import LayerKV, PagedStep
from lorafleet_inference.model.pooling import HiddenStates, pool
from lorafleet_inference.model.ranks.group import Group
from lorafleet_inference.model.ranks.narrow import work_in
from lorafleet_inference.model.results import Computing
from lorafleet_inference.model.sizing import (
    GRAPH_BYTES,
    kv_block_bytes,
    pool_pages,
)
from lorafleet_inference.model.step_kernels import StepKernels

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.backend import TritonKernels
    from lorafleet_inference.model.graphs import StepGraphs

logger = logging.getLogger(__name__)


class ModelRunner:
    """Owns the model, its KV pages and its adapters.

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
        self._device, self._dtype, self._group = loaded.device, loaded.dtype, group
        self.ahead = self._device.type != "cpu" if ahead is None else ahead
        self.facts: ModelFacts = loaded.facts
        self._on = device_at(loaded.device)
        layout = RowLayout.of(loaded.held)
        num_pages = self._least(pool_pages(config, layout, loaded.dtype.itemsize, _free_bytes(self._on)))
        self._kernels = StepKernels.of(self._device, config, triton)
        self._kernels.use_in(self._model)
        self._adapters = DeviceAdapters(
            loaded, config, self._kernels, self._on, num_pages=num_pages, is_whole=group is None
        )
        self._hidden, self._ropes = HiddenStates(loaded.model), loaded.ropes
        self._num_outputs = next(
            (one.out_features for one in loaded.facts.side_modules if one.kind is ModuleKind.LINEAR), None
        )
        """Columns of the logits of the base; None where its head is no plain layer."""
        self._layers: list[LayerKV] = []
        self.graphs: StepGraphs | None = None
        has_chooser = self._kernels.triton is not None
        self._rows = InputBatch(1, self.facts.max_model_len, self._device, has_chooser=has_chooser)  # of the warm-up
        block_bytes = kv_block_bytes(loaded.shapes, loaded.dtype.itemsize, config.kv_cache_dtype)
        num_blocks = self._least(
            num_kv_blocks(
                self._kv_bytes(loaded, config), block_bytes + beside_block_bytes, config, self.facts.max_model_len
            )
        )
        self._layers = kv_layers(loaded, num_blocks, config.kv_cache_dtype)
        self.facts = cut_to(num_blocks * KV_BLOCK_TOKENS, self.facts)
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
            host_cache_bytes=max(0, config.host_cache_bytes - config.ranks_per_host * self._adapters.staging_bytes),
            held=loaded.rank_facts,
        )
        if self._kernels.triton is not None:
            self._compile(config)

    def _compile(self, config: EngineConfig) -> None:
        """Launch the kernels that requests will need, so that none waits for one to be compiled."""
        began = time.monotonic()
        max_tokens = min(config.max_batch_tokens, self.facts.max_model_len)
        contexts = warm_up.contexts(self.facts.max_model_len)
        adapters = warm_up.adapters(self._adapters.bank, self._adapters.sides, config.max_rank, max_tokens, self._dtype)
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
        num_outputs = [self._adapters.extras.num_outputs(adapter, base) for adapter in host.adapters]
        chooser = None if self._kernels.triton is None else self._kernels.triton.choose
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
        return self._adapters.extras.end_step(logits[0], base), batch.choice

    @contextmanager
    def _attending(self, host: HostBatch, *, head: bool = True) -> Iterator[tuple[FlatBatch, torch.Tensor]]:
        """While this is open, the model computes this step; yields it, and its token ids [1, T] as the model may see them."""
        tables = self._rows.lay(host, None if self._kernels.triton is None else self._kernels.triton.begin_step())
        self._adapters.begin_step(host)
        launched = None
        if self._kernels.triton is not None:
            spans = [(one.begin, one.end, one.start, one.blocks) for one in host.spans]
            launched = self._kernels.triton.attention(spans, tables.slots)
        batch = self._rows.to_device(host, tables)  # so all that is put into the block comes before
        head_segments = host.head_segments if head else ()
        input_ids = self._adapters.extras.begin_step(host.segments, head_segments, batch.input_ids)
        if self._ropes is not None:
            self._ropes.begin_step(batch)
        with attending(PagedStep(self._layers, batch, self._kernels.cpu, launched)):
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
        if self.graphs is None or self._adapters.extras.changes(host.adapters):
            return None
        self._adapters.extras.clear()
        return self.graphs.compute(host)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do once what the first steps would have to do."""
        if self.graphs is not None:
            self.graphs.capture_all()

    @property
    def backend(self) -> Backend:
        """How steps are computed."""
        if self._kernels.triton is not None:
            return Backend(Kernels.TRITON, None if self.graphs is None else len(self.graphs.captured))
        return Backend(Kernels.TORCH if self._kernels.cpu is None else Kernels.CPU)

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

    def settle(self, plan: AdapterPlan) -> AdapterPlan:
        """As `DeviceAdapters`, and so are the others that load and remove adapters."""
        return self._adapters.settle(plan)

    def load_slab(self, plan: AdapterPlan, total: Total = alone) -> HostAdapter:
        """Read an adapter from disk."""
        return self._adapters.load_slab(plan, total)

    def drop_slab(self, slab: HostAdapter) -> None:
        """Have the memory of an adapter on the host used again."""
        self._adapters.drop_slab(slab)

    def num_pages(self, plan: AdapterPlan) -> int:
        """Return the rank pages that an adapter takes."""
        return self._adapters.num_pages(plan)

    def slab_bytes(self, plan: AdapterPlan) -> int:
        """Return the size of an adapter in host memory."""
        return self._adapters.slab_bytes(plan)

    def install(self, key: AdapterKey, pages: Sequence[int], slab: HostAdapter) -> None:
        """Copy an adapter to the device."""
        self._adapters.install(key, pages, slab)

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter of the device."""
        self._adapters.remove(key)

    @property
    def _is_captured(self) -> bool:
        """Whether steps can be captured, where there are graphs."""
        is_able = self._kernels.triton is not None and self._adapters.sides is not None and self._ropes is None
        return is_able and not wait_for_device(self._model)

    def _graphs_of(self, config: EngineConfig, graphs: Graphs | None) -> "StepGraphs | None":
        if not self._is_captured or self._kernels.triton is None or self._adapters.sides is None:
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
            self._adapters.bank,
            sides=self._adapters.sides,
            affine=self._adapters.affine,
            triton=self._kernels.triton,
            max_tokens=self.facts.max_model_len,
            max_rank=config.max_rank,
            max_requests=config.max_batch_requests,
            max_batch_tokens=config.max_batch_tokens,
            last_tokens=self._rows.last_tokens,
        )

    def _kv_bytes(self, loaded: LoadedModel, config: EngineConfig) -> int:
        """Return what KV gets: what was asked for, else what is free beside the largest step, which is run for that."""
        if config.kv_cache_memory_bytes is not None:
            return config.kv_cache_memory_bytes
        if self._on.bytes() is None:
            return CPU_KV_BYTES
        prompt, largest = self._peaks(loaded, config)
        length = min(config.max_batch_tokens, self.facts.max_model_len)
        return left_for_kv(
            self._on,
            self._model,
            adapters=self._adapters.bank.num_bytes,
            activations=largest,
            graphs=self._graph_bytes(config, length, prompt),
        )

    def _peaks(self, loaded: LoadedModel, config: EngineConfig) -> tuple[int, int]:
        """Return what the longest prompt takes beside weights, KV and adapters, and the largest step, which are run for that."""
        max_len, drafts = self.facts.max_model_len, config.speculative_tokens
        largest = warm_up.Largest(config.max_batch_tokens, config.max_batch_requests, max_len, drafts)
        has_chooser = self._kernels.triton is not None
        self._rows = InputBatch(largest.num_rows, max_len, self._device, ahead=self.ahead, has_chooser=has_chooser)
        self._layers = kv_layers(loaded, largest.num_blocks, config.kv_cache_dtype)
        bank, sides = self._adapters.bank, self._adapters.sides
        with warm_up.standing_in(bank, sides, config.max_rank, self._dtype):
            peaks = [self._on.peak_bytes(partial(self.compute, plan)) for plan in largest.steps(warm_up.KEY)]
        self._layers = []
        self._on.release_unused()
        return peaks[0], max(peaks)

    def _graph_bytes(self, config: EngineConfig, max_tokens: int, activations: int) -> int:
        """Return what steps that will be captured take, about; `activations`: bytes of a step of `max_tokens` tokens."""
        if not self._is_captured or not config.cuda_graphs:
            return 0
        sides = self._adapters.sides
        return captured_bytes(
            max_requests=config.max_batch_requests,
            max_tokens=max_tokens,
            max_model_len=self.facts.max_model_len,
            logit_bytes=self.facts.vocab_size * self._dtype.itemsize,
            activations=activations,
            graph_bytes=GRAPH_BYTES,
            item_bytes=record_bytes(len(self.facts.modules), config.max_rank),
            has_sides=sides is not None and bool(sides.layout.places),
            has_affine=self._adapters.affine is not None,
        )


def _free_bytes(on: Device) -> int | None:
    found = on.bytes()
    return None if found is None else found.free
