"""All metrics of the pod in one table: name, kind, labels and meaning stand here and nowhere else.

`docs/reference/metrics.md` is generated from TABLE. Counters and histograms are filled where things happen; gauges and
counters of the engine are read from its last EngineStats when somebody scrapes. Every own metric has the label `base`,
the served name of the base model. Histograms have no adapter label: a scrape happens up to 20 times a second.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorafleet_common.keys.metrics import KeyMetrics
from lorafleet_common.metrics import LATENCY_BUCKETS, MAX_LABELS, BoundedLabels, MetricTable
from lorafleet_common.sockets import WHY_ENDED
from lorafleet_inference.engine.messages import AdapterKey, AdapterStatus, DeviceTier, EngineReady, EngineStats

METRICS = MetricTable("base")
TABLE, REGISTRY = METRICS.lines, METRICS.registry
TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
counter, gauge, histogram = METRICS.counter, METRICS.gauge, METRICS.histogram


def bind_base(name: str) -> None:
    """Set the served name of the base model; once, before anything is counted."""
    METRICS.bind(name)


REQUESTS = counter(
    "lorafleet_requests_total",
    "Sequences that ended, by adapter and cause: stop, length, error, cancelled. Each choice of `n` counts.",
    "adapter",
    "finish",
)
PROMPT_TOKENS = counter("lorafleet_prompt_tokens_total", "Prompt tokens of accepted sequences.", "adapter")
DRAFT_TOKENS = counter(
    "lorafleet_draft_tokens_total", "Draft tokens of answers that were computed (--speculative-tokens).", "adapter"
)
ACCEPTED_TOKENS = counter(
    "lorafleet_draft_tokens_accepted_total", "Those of them that were right, and so tokens of answers.", "adapter"
)
GENERATION_TOKENS = counter("lorafleet_generation_tokens_total", "Tokens generated.", "adapter")
NOT_FINITE = counter(
    "lorafleet_not_finite_total",
    "Rows of logits that were NaN or infinite, each of which ended its sequence with the error not_finite.",
    "adapter",
)
ERRORS = counter("lorafleet_errors_total", "Requests answered with an error, by its code.", "code")
CONNECTIONS_ENDED = counter(
    "lorafleet_connections_ended_total",
    f"Connections that the pod ended, by why: {WHY_ENDED}.",
    "reason",
)
UNKNOWN_FIELDS = counter(
    "lorafleet_unknown_fields_total",
    "Fields of requests that nobody knows, ignored with --unknown-fields ignore, by name (the first 64; others are `_other`).",
    "field",
)
TIME_TO_FIRST_TOKEN = histogram(
    "lorafleet_time_to_first_token_seconds",
    "From the arrival of a request to its first token.",
    buckets=LATENCY_BUCKETS,
)
INTER_TOKEN = histogram(
    "lorafleet_inter_token_seconds",
    "Between two tokens of a sequence, as they leave the engine.",
    buckets=TOKEN_BUCKETS,
)
REQUEST_SECONDS = histogram(
    "lorafleet_request_seconds", "From the arrival of a request to its end.", buckets=LATENCY_BUCKETS
)
QUEUE_SECONDS = histogram(
    "lorafleet_queue_seconds", "From submission to the first step that computes the sequence.", buckets=LATENCY_BUCKETS
)
ADAPTER_LOAD_SECONDS = histogram(
    "lorafleet_adapter_load_seconds",
    "Loads of adapters into device memory, by the tier they came from: host, disk.",
    "from",
    buckets=LATENCY_BUCKETS,
)
ADAPTER_LOAD_FAILURES = counter(
    "lorafleet_adapter_load_failures_total", "Loads that the engine refused or that failed, by reason.", "reason"
)
ADAPTER_FETCH_SECONDS = histogram(
    "lorafleet_adapter_fetch_seconds",
    "Downloads of adapters to the node's disk, hashed and judged, by source.",
    "source",
    buckets=LATENCY_BUCKETS,
)
ADAPTER_FETCHED_BYTES = counter(
    "lorafleet_adapter_fetched_bytes_total", "Bytes of adapters downloaded, by source.", "source"
)
ADAPTER_FETCH_FAILURES = counter(
    "lorafleet_adapter_fetch_failures_total",
    "Sources that did not give an adapter, and adapters that were refused, by source and reason.",
    "source",
    "reason",
)
DISK_USED = gauge("lorafleet_disk_cache_used_bytes", "Disk of the node that holds adapters.")
DISK_BYTES = gauge("lorafleet_disk_cache_limit_bytes", "Disk of the node that may hold adapters.")
MERGES = gauge("lorafleet_merged_adapters", "Merges of adapters that requests asked for and that are kept.")
KEYS = KeyMetrics(METRICS, "lorafleet_")
DOWNLOAD_SECONDS = gauge(
    "lorafleet_base_download_seconds",
    "Until the files of the base model were here at the start: downloaded, by whichever pod, or found in the cache. Not there for "
    "a base in a folder.",
)
READY = gauge("lorafleet_ready", "1 while /ready answers 200, else 0.")


class AdapterLabels:
    """Names for the label `adapter`, bounded, kept while they are used; the base itself has an empty one."""

    def __init__(self, max_labels: int = MAX_LABELS) -> None:
        self._names = BoundedLabels(max_labels, forget=lambda name: METRICS.forget("adapter", name))

    def of(self, key: AdapterKey | None) -> str:
        """Return the label value of an adapter."""
        return "" if key is None else self._names.of(key.name)


ADAPTER_LABELS = AdapterLabels()


_read = METRICS.read

RUNNING = _read("lorafleet_requests_running", "gauge", "Sequences in the running batch.")
WAITING = _read("lorafleet_requests_waiting", "gauge", "Sequences that wait in the engine.")
KV_USED = _read("lorafleet_kv_blocks_used", "gauge", "KV cache blocks in use.")
KV_BLOCKS = _read("lorafleet_kv_blocks", "gauge", "KV cache blocks in all.")
PREFIX_QUERIED = _read(
    "lorafleet_prefix_cache_queried_tokens_total", "counter", "Prompt tokens looked up in the prefix cache."
)
PREFIX_HIT = _read("lorafleet_prefix_cache_hit_tokens_total", "counter", "Prompt tokens found in the prefix cache.")
PREEMPTIONS = _read("lorafleet_preemptions_total", "counter", "Sequences set back to be computed again.")
STEPS = _read("lorafleet_engine_steps_total", "counter", "Steps of the engine.")
STEP_FAILURES = _read(
    "lorafleet_engine_step_failures_total",
    "counter",
    "Steps that failed and were computed again request by request; only the requests that failed again have ended.",
)
LATE_STEPS = _read(
    "lorafleet_engine_late_steps_total",
    "counter",
    "Steps that took longer than --target-step-ms although they were kept short.",
)
STEP_BUDGET = _read("lorafleet_engine_step_budget_tokens", "gauge", "Tokens that the last step could have had.")
ENGINE_INFO = _read(
    "lorafleet_engine_info",
    "gauge",
    "1; device, dtype and kernels (triton, cpu, torch). On a GPU anything but triton is many times slower.",
    "device",
    "dtype",
    "kernels",
)
RANKS = _read("lorafleet_engine_ranks", "gauge", "Ranks that the model is split among, each a process.")
CAPTURED_STEPS = _read(
    "lorafleet_engine_captured_steps",
    "gauge",
    "Steps by size that are replayed as CUDA graphs; absent where none are to be.",
)
REPLAYED_STEPS = _read("lorafleet_engine_replayed_steps_total", "counter", "Steps that were computed by a CUDA graph.")
GRAMMARS = _read("lorafleet_engine_grammars_total", "counter", "Grammars that were compiled for forms of answers.")
GRAMMAR_SECONDS = _read("lorafleet_engine_grammar_seconds_total", "counter", "Time spent compiling them, beside steps.")
STEP_SECONDS = _read("lorafleet_engine_step_seconds_total", "counter", "Time spent in steps.")
STEP_TOKENS = _read("lorafleet_engine_step_tokens_total", "counter", "Tokens computed: prefill, decode.", "phase")
ADAPTERS = _read(
    "lorafleet_adapters", "gauge", "Registered adapters by the engine's fastest tier: device, host, disk.", "tier"
)
EVICTIONS = _read("lorafleet_adapter_evictions_total", "counter", "Adapters that made room in device memory.")
PAGES_USED = _read("lorafleet_rank_pages_used", "gauge", "Rank pages of adapter memory in use.")
PAGES = _read("lorafleet_rank_pages", "gauge", "Rank pages of adapter memory in all.")
HOST_USED = _read("lorafleet_host_cache_used_bytes", "gauge", "Host memory that holds adapters.")
HOST_BYTES = _read("lorafleet_host_cache_limit_bytes", "gauge", "Host memory that may hold adapters.")
VLLM_RUNNING = _read("vllm:num_requests_running", "gauge", "As lorafleet_requests_running, for inference gateways.")
VLLM_WAITING = _read("vllm:num_requests_waiting", "gauge", "As lorafleet_requests_waiting, for inference gateways.")
VLLM_KV_USAGE = _read("vllm:kv_cache_usage_perc", "gauge", "Share of the KV cache in use, 0 to 1.")
VLLM_CACHE_CONFIG = _read(
    "vllm:cache_config_info",
    "gauge",
    "1; the size of the KV cache in its labels, and how it is kept: a dtype, or fp8.",
    "block_size",
    "num_gpu_blocks",
    "cache_dtype",
)
VLLM_LORA = _read(
    "vllm:lora_requests_info",
    "gauge",
    "Unix time; adapters in device memory and those waited for, in one series that is replaced.",
    "max_lora",
    "running_lora_adapters",
    "waiting_lora_adapters",
)
VLLM_LOADED = _read(
    "vllm:lora_adapter_loaded",
    "gauge",
    "1 for each adapter in memory, by the fastest level: gpu (device memory), cpu (host memory). What has requests or not makes "
    "no difference. A revision that is not the stable one is `name@revision`.",
    "adapter_name",
    "level",
    "pinned",
    "rank",
)
VLLM_NUM_GPU = _read("vllm:num_gpu_loaded_lora_adapters", "gauge", "Adapters in device memory.")
VLLM_NUM_CPU = _read(
    "vllm:num_cpu_loaded_lora_adapters", "gauge", "Adapters in host memory, with those in device memory."
)
VLLM_LABEL = "model_name"
"""What `vllm:*` series have instead of `base`."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """A revision of an adapter that is in device or host memory."""

    model: str
    """What requests name: the served name, or `name@revision` where it is not the stable one."""
    is_on_device: bool
    is_pinned: bool
    rank: int


class EngineCollector(Collector):
    """Shows the engine's last statistics and where adapters are."""

    def __init__(
        self,
        stats: Callable[[], EngineStats | None],
        ready: Callable[[], EngineReady | None],
        in_memory: Callable[[], Iterable[InMemory]] = tuple,
    ) -> None:
        self._stats = stats
        self._in_memory = in_memory
        self._ready = ready
        self._tiers: dict[AdapterKey, DeviceTier] = {}

    def observe(self, status: AdapterStatus) -> None:
        """Take note of a tier change; for `EngineClient.subscribe`."""
        if status.tier is None:
            self._tiers.pop(status.key, None)
        else:
            self._tiers[status.key] = status.tier
        if status.reason is not None:
            ADAPTER_LOAD_FAILURES.of(status.reason.value).inc()
        elif status.load_seconds is not None:
            ADAPTER_LOAD_SECONDS.of((status.loaded_from or DeviceTier.DISK).value).observe(status.load_seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the families for one scrape."""
        ready, stats = self._ready(), self._stats()
        if ready is None:
            return
        budgets = ready.budgets
        tiers = list(self._tiers.values())
        yield from _family(ADAPTERS, *(((tier.value,), tiers.count(tier)) for tier in DeviceTier))
        yield from _family(ENGINE_INFO, ((ready.facts.device, ready.facts.dtype, ready.backend.kernels.value), 1))
        yield from _family(RANKS, ((), ready.backend.num_ranks))
        if ready.backend.num_captured_steps is not None:
            yield from _family(CAPTURED_STEPS, ((), ready.backend.num_captured_steps))
        yield from _family(KV_BLOCKS, ((), budgets.num_kv_blocks))
        yield from _family(PAGES, ((), budgets.total_rank_pages))
        yield from _family(HOST_BYTES, ((), budgets.host_cache_bytes))
        yield from _family(
            VLLM_CACHE_CONFIG, ((str(budgets.kv_block_tokens), str(budgets.num_kv_blocks), budgets.kv_cache_dtype), 1)
        )
        yield from self._lora_info(budgets.max_resident_adapters, stats)
        yield from _loaded(list(self._in_memory()))
        used = stats.num_kv_blocks_used if stats else 0
        yield from _family(VLLM_RUNNING, ((), stats.num_running if stats else 0))
        yield from _family(VLLM_WAITING, ((), stats.num_waiting if stats else 0))
        yield from _family(VLLM_KV_USAGE, ((), used / max(1, budgets.num_kv_blocks)))
        if stats is not None:
            yield from _engine_families(stats)

    def _lora_info(self, max_adapters: int, stats: EngineStats | None) -> Iterator[Metric]:
        resident = {key.name for key, tier in self._tiers.items() if tier is DeviceTier.DEVICE}
        waiting = stats.waiting_adapters if stats else ()
        values = (str(max_adapters), ",".join(sorted(resident)), ",".join(sorted(waiting)))
        yield from _family(VLLM_LORA, (values, time.time()))

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: registering must not need an engine."""
        return iter(())


def _loaded(adapters: list[InMemory]) -> Iterator[Metric]:
    levels = {True: "gpu", False: "cpu"}
    series = (
        ((one.model, levels[one.is_on_device], str(one.is_pinned).lower(), str(one.rank)), 1.0) for one in adapters
    )
    yield from _family(VLLM_LOADED, *series)
    yield from _family(VLLM_NUM_GPU, ((), sum(one.is_on_device for one in adapters)))
    yield from _family(VLLM_NUM_CPU, ((), len(adapters)))


def _engine_families(stats: EngineStats) -> Iterator[Metric]:
    single = {
        RUNNING: stats.num_running,
        WAITING: stats.num_waiting,
        KV_USED: stats.num_kv_blocks_used,
        PREFIX_QUERIED: stats.num_prefix_queried_tokens,
        PREFIX_HIT: stats.num_prefix_hit_tokens,
        PREEMPTIONS: stats.num_preemptions,
        STEPS: stats.num_steps,
        REPLAYED_STEPS: stats.num_replayed_steps,
        STEP_FAILURES: stats.num_failed_steps,
        LATE_STEPS: stats.num_late_steps,
        STEP_BUDGET: stats.max_step_tokens,
        GRAMMARS: stats.num_grammars,
        GRAMMAR_SECONDS: stats.grammar_seconds,
        STEP_SECONDS: stats.step_seconds,
        EVICTIONS: stats.num_adapter_evictions,
        PAGES_USED: stats.used_rank_pages,
        HOST_USED: stats.host_used_bytes,
    }
    for name, value in single.items():
        yield from _family(name, ((), value))
    yield from _family(STEP_TOKENS, (("prefill",), stats.num_prefill_tokens), (("decode",), stats.num_decode_tokens))


def _family(name: str, *samples: tuple[tuple[str, ...], float]) -> Iterator[Metric]:
    described = METRICS.line(name)
    labels = (VLLM_LABEL if name.startswith("vllm:") else "base", *described.labels)
    kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    family = kind(name, described.meaning, labels=labels)
    for values, value in samples:
        family.add_metric((*METRICS.common_values, *values), value)
    yield family
