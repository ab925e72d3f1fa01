"""What a scrape shows of the engine."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lorafleet_common.metrics import OTHER, BoundedLabels
from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.messages import (
    AdapterKey,
    AdapterStatus,
    Backend,
    DeviceTier,
    EngineBudgets,
    EngineReady,
    EngineStats,
    Kernels,
    ModelFacts,
)
from lorafleet_inference.metrics import METRICS, REGISTRY, TABLE, AdapterLabels, EngineCollector, InMemory, bind_base
from lorafleet_inference.server.generation import Meter

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    model_type="llama",
    num_layers=2,
    vocab_size=400,
    max_model_len=128,
    dtype="float32",
    device="cpu",
    eos_token_ids=(1,),
    modules=(),
)
BUDGETS = EngineBudgets(
    num_kv_blocks=200,
    kv_block_tokens=16,
    kv_cache_bytes=1 << 20,
    kv_cache_dtype="float32",
    max_resident_adapters=8,
    max_rank=64,
    total_rank_pages=64,
    host_cache_bytes=1 << 30,
)
STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    num_kv_blocks_used=50,
    num_preemptions=1,
    num_steps=9,
    num_late_steps=2,
    num_replayed_steps=4,
    max_step_tokens=300,
    num_prefill_tokens=100,
    num_decode_tokens=40,
    num_prefix_queried_tokens=64,
    num_prefix_hit_tokens=32,
    num_adapter_evictions=4,
    used_rank_pages=6,
    host_used_bytes=4096,
    step_seconds=1.5,
    running_adapters=("roman",),
    waiting_adapters=("german",),
)
ROMAN, FRENCH = AdapterKey("roman", "sha256:" + "a" * 64), AdapterKey("french", "sha256:" + "b" * 64)


BACKEND = Backend(Kernels.TRITON, num_captured_steps=40)


def scrape(collector: EngineCollector) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_gateways_find_the_five_series_they_read() -> None:
    bind_base("numerals")
    collector = EngineCollector(lambda: STATS, lambda: EngineReady(FACTS, BUDGETS, BACKEND))
    collector.observe(AdapterStatus(ROMAN, DeviceTier.DEVICE, load_seconds=0.1, loaded_from=DeviceTier.HOST))
    collector.observe(AdapterStatus(FRENCH, DeviceTier.DEVICE))
    collector.observe(AdapterStatus(FRENCH, DeviceTier.HOST))
    series = scrape(collector)
    base = "model_name=numerals"
    assert series["vllm:num_requests_running", base] == 3
    assert series["vllm:num_requests_waiting", base] == 2
    assert series["vllm:kv_cache_usage_perc", base] == 0.25
    assert series["vllm:cache_config_info", "block_size=16", "cache_dtype=float32", base, "num_gpu_blocks=200"] == 1
    lora = [key for key in series if key[0] == "vllm:lora_requests_info"]
    assert lora == [
        (
            "vllm:lora_requests_info",
            "max_lora=8",
            base,
            "running_lora_adapters=roman",
            "waiting_lora_adapters=german",
        )
    ]
    assert series["lorafleet_adapters", "base=numerals", "tier=device"] == 1
    assert series["lorafleet_adapters", "base=numerals", "tier=host"] == 1


def test_routers_find_what_is_in_memory_by_level() -> None:
    """As vLLM counts them: what is in device memory is in host memory too, and its level is the faster one."""
    bind_base("numerals")
    held = (
        InMemory("roman", is_on_device=True, is_pinned=True, rank=8),
        InMemory("roman@" + "c" * 12, is_on_device=True, is_pinned=False, rank=16),
        InMemory("french", is_on_device=False, is_pinned=False, rank=64),
    )
    series = scrape(EngineCollector(lambda: STATS, lambda: EngineReady(FACTS, BUDGETS, BACKEND), lambda: held))
    base = "model_name=numerals"
    loaded = {key for key in series if key[0] == "vllm:lora_adapter_loaded"}
    assert loaded == {
        ("vllm:lora_adapter_loaded", "adapter_name=roman", "level=gpu", base, "pinned=true", "rank=8"),
        ("vllm:lora_adapter_loaded", f"adapter_name=roman@{'c' * 12}", "level=gpu", base, "pinned=false", "rank=16"),
        ("vllm:lora_adapter_loaded", "adapter_name=french", "level=cpu", base, "pinned=false", "rank=64"),
    }
    assert {series[key] for key in loaded} == {1}
    assert series["vllm:num_gpu_loaded_lora_adapters", base] == 2
    assert series["vllm:num_cpu_loaded_lora_adapters", base] == 3


def test_a_slow_way_to_compute_steps_is_seen() -> None:
    """No kernels, or nothing captured, is a warning in the log of a pod and slow answers for months."""
    bind_base("numerals")
    series = scrape(EngineCollector(lambda: STATS, lambda: EngineReady(FACTS, BUDGETS, BACKEND)))
    assert series["lorafleet_engine_info", "base=numerals", "device=cpu", "dtype=float32", "kernels=triton"] == 1
    assert series["lorafleet_engine_captured_steps", "base=numerals"] == 40
    assert series["lorafleet_engine_replayed_steps_total", "base=numerals"] == 4
    uncaptured = scrape(EngineCollector(lambda: STATS, lambda: EngineReady(FACTS, BUDGETS, Backend(Kernels.TRITON))))
    assert ("lorafleet_engine_captured_steps", "base=numerals") not in uncaptured, "none were to be captured"


def test_released_adapters_are_no_longer_counted() -> None:
    collector = EngineCollector(lambda: None, lambda: EngineReady(FACTS, BUDGETS, BACKEND))
    collector.observe(AdapterStatus(ROMAN, DeviceTier.DEVICE))
    collector.observe(AdapterStatus(ROMAN, None))
    collector.observe(AdapterStatus(FRENCH, None, reason=Reason.RANK_TOO_HIGH))
    assert not any(value for key, value in scrape(collector).items() if key[0] == "lorafleet_adapters")


def test_before_the_base_is_loaded_there_is_nothing_to_show() -> None:
    assert scrape(EngineCollector(lambda: None, lambda: None)) == {}


def test_own_names_carry_units_and_kinds() -> None:
    names = [line.name for line in TABLE]
    assert len(names) == len(set(names))
    for line in TABLE:
        if line.name.startswith("vllm:"):
            continue
        assert line.name.startswith("lorafleet_")
        assert line.name.endswith("_total") == (line.kind == "counter")
        assert line.kind != "histogram" or line.name.endswith(("_seconds", "_bytes", "_tokens"))


def test_everything_that_is_exposed_stands_in_the_table() -> None:
    collector = EngineCollector(lambda: STATS, lambda: EngineReady(FACTS, BUDGETS, BACKEND))
    exposed = {family.name for family in [*REGISTRY.collect(), *collector.collect()]}
    known = {line.name.removesuffix("_total") for line in TABLE}
    assert {name.removesuffix("_total") for name in exposed} <= known


def test_adapters_beyond_the_bound_are_counted_together() -> None:
    labels = AdapterLabels(max_labels=1)
    assert [labels.of(key) for key in (None, ROMAN, FRENCH, ROMAN)] == ["", "roman", "_other", "roman"]


def test_a_long_answer_keeps_the_label_of_its_adapter_and_never_brings_a_lost_one_back() -> None:
    now = [0.0]
    labels = BoundedLabels(
        1, forget=lambda name: METRICS.forget("adapter", name), idle_seconds=10, clock=lambda: now[0]
    )

    def generated(name: str) -> bool:
        return f'lorafleet_generation_tokens_total{{adapter="{name}"' in generate_latest(REGISTRY).decode()

    meter = Meter(lambda: labels.of("long-answer"), 0.0)
    for seconds in (0.0, 8.0, 16.0):
        now[0] = seconds
        meter.tokens(1)
    now[0] = 20.0
    assert labels.of("newcomer") == OTHER, "the long answer used its label 4 seconds ago"
    assert generated("long-answer")
    now[0] = 40.0
    assert labels.of("newcomer") == "newcomer"
    meter.tokens(1)
    meter.end("stop")
    assert not generated("long-answer")
