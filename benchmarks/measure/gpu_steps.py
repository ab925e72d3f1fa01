"""Steps of the engine's runner at the shapes of a known size: a random model made on the device, adapters from files."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import KV_BLOCK_TOKENS, EngineConfig
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams
from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan, Unconstrained
from lorafleet_inference.model import experts
from lorafleet_inference.model.attention import NAME, register
from lorafleet_inference.model.checked import check_model
from lorafleet_inference.model.graph_rooms import ITEM_TOKENS, DecodeRoom
from lorafleet_inference.model.host_adapter import HostAdapter
from lorafleet_inference.model.results import Computing
from lorafleet_inference.model.runner import ModelRunner
from measure.floors import Ceilings
from measure.sizes import Size

GREEDY = SamplingParams(max_tokens=1 << 20, temperature=0, ignore_eos=True)
NUM_WARM_UP = 3
"""Steps of each kind before those that count: kernels are compiled and graphs captured in them."""


@dataclass(frozen=True, slots=True)
class Times:
    """Of steps of one kind, in milliseconds."""

    median_ms: float
    worst_ms: float


@dataclass(frozen=True, slots=True)
class EarlyTimes:
    """Of decode steps of one kind, the better of two runs of each way, in milliseconds a step."""

    rank_bound: int
    is_captured: bool
    """Else both ways are the same."""
    in_turn_ms: float
    early_ms: float


def config_of(size: Size, max_model_len: int) -> LlamaConfig:
    """Return the config of a Llama of a size."""
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=max_model_len,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def make(config: LlamaConfig, device: str, dtype: torch.dtype) -> Any:
    """Return a random model on the device; nothing is downloaded or written."""
    register()
    experts.register()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=NAME)
    return model.eval().requires_grad_(False)


def ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """Measure what the device can do at most; on a CPU with little data."""
    num_bytes, side = (1 << 31, 8192) if device == "cuda" else (1 << 24, 256)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    copy = best_seconds(lambda: target.copy_(source), device)
    product = best_seconds(lambda: left @ right, device)
    return Ceilings(2 * num_bytes / copy, 2 * side**3 / product)


def best_seconds(work: Callable[[], object], device: str, rounds: int = 10) -> float:
    """Return the shortest of some runs, by the wall clock, with the device idle before and after."""
    found = []
    for number in range(rounds + 2):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        if number >= 2:
            found.append(time.perf_counter() - began)
    return min(found)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Bench:
    """A runner with adapters of some ranks; adapters of one rank share their contents, not their memory."""

    def __init__(
        self,
        model: Any,
        device: str,
        *,
        folders: dict[int, Path],
        max_batch: int,
        max_tokens: int,
        max_model_len: int,
        num_adapters: int,
        num_ranks: int,
        own_decoder: bool,
    ) -> None:
        """`folders`: an adapter by rank; `max_batch`, `max_tokens`: sequences of a step, and their tokens; `num_adapters`:
        that are there at the same time, of `num_ranks` ranks together.

        `own_decoder`: our own code takes the model's weights over, and leaves nothing of it.
        """
        loaded = check_model(model, max_model_len=max_model_len, own_decoder=own_decoder)
        block_bytes = KV_BLOCK_TOKENS * sum(
            one.num_kv_heads * (one.key_width + one.value_width) * loaded.dtype.itemsize for one in loaded.shapes
        )
        max_rank = max(folders)
        layout = RowLayout.of(loaded.held)
        num_pages = num_adapters + layout.num_pages(num_ranks)  # of each, the last page is not full
        config = EngineConfig(
            model="random",
            device=device,  # type: ignore[arg-type]
            kv_cache_memory_bytes=block_bytes * -(-max_tokens // KV_BLOCK_TOKENS),
            max_resident_adapters=num_adapters,
            adapter_memory_bytes=num_pages * layout.page * loaded.dtype.itemsize,
            max_rank=max_rank,
            max_batch_requests=max_batch,
            cpu_kernels=False,
        )
        self.device = device
        self.runner = ModelRunner(loaded, config)
        self.runner.prepare()
        self.plans: dict[int, AdapterPlan] = {
            rank: inspect_adapter(folder, self.runner.facts, max_rank) for rank, folder in folders.items()
        }
        self._slabs: dict[int, HostAdapter] = {rank: self.runner.load_slab(plan) for rank, plan in self.plans.items()}
        self._installed: list[AdapterKey] = []
        self._running: tuple[str, ...] = ()

    def install(self, ranks: Sequence[int]) -> list[AdapterKey]:
        """Put adapters of these ranks in the place of those that were there."""
        for key in self._installed:
            self.runner.remove(key)
        self._installed, at = [], 0
        for number, rank in enumerate(ranks):
            key, pages = _key(number), self.runner.num_pages(self.plans[rank])
            self.runner.install(key, tuple(range(at, at + pages)), self._slabs[rank])
            self._installed.append(key)
            at += pages
        return list(self._installed)

    def decode(self, batch: int, context: int, keys: Sequence[AdapterKey]) -> StepPlan:
        """Return a step of one token of each of `batch` sequences that go around the adapters."""
        each = -(-context // KV_BLOCK_TOKENS)
        items, new = [], []
        for row in range(batch):
            key = keys[row % len(keys)] if keys else None
            ids, blocks = (3 + row,) * context, tuple(range(row * each, (row + 1) * each))
            new.append(NewRequest(f"r{row}", key, ids, context - 1, GREEDY, blocks))
            items.append(StepItem(f"r{row}", context - 1, 1, samples=True, decode=True))
        return self._plan(items, new)

    def prefill(self, tokens: int, key: AdapterKey | None) -> StepPlan:
        """Return the step of one whole prompt."""
        ids = tuple(3 + index % 400 for index in range(tokens))
        new = NewRequest("p", key, ids, tokens, GREEDY, tuple(range(-(-tokens // KV_BLOCK_TOKENS))))
        return self._plan([StepItem("p", 0, tokens, samples=True)], [new])

    def _plan(self, items: Sequence[StepItem], new: Sequence[NewRequest]) -> StepPlan:
        gone, self._running = self._running, tuple(one.request_id for one in new)
        adapters = frozenset(one.adapter for one in new if one.adapter is not None)
        return StepPlan(tuple(items), gone=gone, new=tuple(new), adapters=adapters)

    def times(self, plan: StepPlan, rounds: int) -> Times:
        """Run a step again and again; by the wall clock, until its tokens are known. What is new is told once, before."""
        self._run(plan)
        again = StepPlan(plan.items, adapters=plan.adapters)
        for _ in range(NUM_WARM_UP):
            self._run(again)
        found = [self._run(again) for _ in range(rounds)]
        return Times(statistics.median(found), max(found))

    def ahead_ms(self, plan: StepPlan, rounds: int) -> float:
        """Return what a step takes where the next is submitted before its tokens are read, as the engine does: the mean of many.

        The plan is that of the last `times`.
        """
        again = StepPlan(plan.items, adapters=plan.adapters)
        before = self._submitted(again)
        _wait(self.device)
        began = time.perf_counter()
        for _ in range(rounds):
            computing = self._submitted(again)
            before.collect()
            before = computing
        before.collect()
        _wait(self.device)
        return (time.perf_counter() - began) * 1e3 / rounds

    def early_ms(
        self, plan: StepPlan, rounds: int, *, batch: int, num_adapters: int, rank_bounds: Sequence[int]
    ) -> list[EarlyTimes]:
        """Return what a decode step takes where launches follow one another, and where some begin before the one ahead is done.

        Both ways in turn, by `ahead_ms`, captured for adapters of up to each of `rank_bounds`. None where nothing is captured.
        """
        graphs, found = self.runner.graphs, []
        room = self._room(batch, num_adapters)
        for bound in rank_bounds:
            times: dict[bool, list[float]] = {False: [], True: []}
            for begins_early in (False, True) * 2:
                if graphs is not None and room is not None:
                    graphs.capture_anew(room, dependent_launch=begins_early, max_rank=bound)
                self.times(plan, 2)
                times[begins_early].append(self.ahead_ms(plan, rounds))
            found.append(EarlyTimes(bound, room is not None, min(times[False]), min(times[True])))
        if graphs is not None and room is not None:
            graphs.capture(room)
        return found

    def _room(self, batch: int, num_adapters: int) -> DecodeRoom | None:
        """Return the smallest that was captured for so many sequences which go around so many adapters."""
        graphs = self.runner.graphs
        num_items = sum(-(-len(range(at, batch, num_adapters)) // ITEM_TOKENS) for at in range(num_adapters))
        captured = () if graphs is None else graphs.captured
        rooms = [one for one in captured if isinstance(one, DecodeRoom)]
        plain = [one for one in rooms if not one.has_sides and not one.has_affine]
        return min((one for one in plain if one.num_rows >= batch and one.num_items >= num_items), default=None)

    def _submitted(self, plan: StepPlan) -> Computing:
        computing = self.runner.submit(plan)
        computing.choose(Unconstrained())
        return computing

    def kernels(self, plan: StepPlan, rounds: int) -> list[dict[str, Any]]:
        """Return what the device runs in a step: name, launches, microseconds together; longest first."""
        self.times(plan, 2)
        again = StepPlan(plan.items, adapters=plan.adapters)
        activity = ProfilerActivity.CUDA if self.device == "cuda" else ProfilerActivity.CPU
        with profile(activities=[activity]) as found:
            for _ in range(rounds):
                self._run(again)
        rows = []
        for one in found.key_averages():
            total = one.device_time_total if self.device == "cuda" else one.self_cpu_time_total
            rows.append({"name": one.key[:120], "calls": one.count / rounds, "us": round(total / rounds, 1)})
        return sorted(rows, key=lambda row: -row["us"])

    def load_ms(self, rank: int) -> tuple[float, float]:
        """Load an adapter behind one of its rank that is there, its files read before; returns reading and installing."""
        began = time.perf_counter()
        slab = self.runner.load_slab(self.plans[rank])
        read = time.perf_counter()
        pages = self.runner.num_pages(self.plans[rank])
        self.runner.install(_key(-1), tuple(range(pages, 2 * pages)), slab)
        installed = time.perf_counter()
        self.runner.drop_slab(slab)
        return (read - began) * 1e3, (installed - read) * 1e3

    def beside_loads(self, plan: StepPlan, rank: int, num_loads: int) -> tuple[Times, Times]:
        """Return the times of steps without and with adapters being loaded beside them."""
        alone, ended = self.times(plan, 20), threading.Event()
        failed: list[Exception] = []

        def load() -> None:
            try:
                for _ in range(num_loads):
                    self.load_ms(rank)
            except Exception as error:  # noqa: BLE001  raised below
                failed.append(error)
            finally:
                ended.set()

        loads = threading.Thread(target=load)
        loads.start()
        again = StepPlan(plan.items, adapters=plan.adapters)
        found = [self._run(again)]
        while not ended.is_set():
            found.append(self._run(again))
        loads.join()
        if failed:
            raise failed[0]
        return alone, Times(statistics.median(found), max(found))

    def _run(self, plan: StepPlan) -> float:
        _wait(self.device)
        began = time.perf_counter()
        result = self.runner.compute(plan)
        _wait(self.device)
        assert len(result.sampled) == len(plan.items), "each sequence has its next token"
        return (time.perf_counter() - began) * 1e3


def _key(number: int) -> AdapterKey:
    return AdapterKey(f"a{number}", f"sha256:{number + 1:064x}")


@torch.inference_mode()
def transformers_decode_ms(model: Any, config: LlamaConfig, batch: int, context: int, rounds: int) -> float:
    """Return the median of transformers' own decode step of the base, with its SDPA attention and cache of one tensor a layer.

    The model is given back with our attention.
    """
    device, width = model.device, config.hidden_size // config.num_attention_heads
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        shape = (batch, config.num_key_value_heads, context - 1, width)
        cache.update(*(torch.randn(shape, dtype=model.dtype, device=device) for _ in range(2)), layer)
    ids = torch.full((batch, 1), 3, device=device)
    found = []
    try:
        for _ in range(NUM_WARM_UP + rounds):
            if cache.get_seq_length() >= context:
                cache.crop(-1)
            _wait(device.type)
            began = time.perf_counter()
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(
                -1
            ).tolist()
            found.append((time.perf_counter() - began) * 1e3)
    finally:
        model.set_attn_implementation(NAME)
        del cache
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return statistics.median(found[NUM_WARM_UP:])
