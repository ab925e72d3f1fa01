"""Captured steps are replayed while adapters come and go: the tokens of the CPU, in whatever order a device does what it may."""

from pathlib import Path

import pytest
from support.absent_cuda import CUDA
from support.engines import DrivenEngine
from support.families import VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.simulated_cuda import SimulatedCuda
from support.simulated_engine import engine_on
from support.triton_sizes import SMALL
from transformers import LlamaConfig

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.device.interface import Order
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.kernels.triton.backend import TritonKernels

MODEL = LlamaConfig(
    vocab_size=VOCABULARY, initializer_range=0.2, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=16,
)  # fmt: skip
ADAPTERS = {"one": AdapterSpec(3, seed=1), "two": AdapterSpec(8, ("q_proj", "v_proj"), seed=2)}
ASKED = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
WAVES = ("one", "two", "one")
"""Of one request each: the adapter drives out the one before, and comes from the host the second time."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(MODEL, tmp_path_factory.mktemp("model"))


def config_of(model: Path, device: str) -> EngineConfig:
    return EngineConfig(
        model=str(model), device=device, dtype="float32", num_threads=1, max_batch_tokens=4, max_rank=8,
        max_resident_adapters=1, max_batch_requests=1, kv_cache_memory_bytes=1 << 14, host_cache_bytes=1 << 16,
        cpu_kernels=False, gpu_kernels=False, decoder="own",
    )  # fmt: skip


def answers(engine: DrivenEngine, model: Path) -> list[tuple[int, ...]]:
    folders = {name: model.parent / name for name in ADAPTERS}
    for name, spec in ADAPTERS.items():
        if not folders[name].exists():
            save_adapter(model, folders[name], spec)
    engine.register(folders, resident=False)
    for number, adapter in enumerate(WAVES):
        engine.submit(str(number), adapter, range(5 + number, 9 + number), ASKED)
        engine.step()
    engine.run_until_ended([str(number) for number in range(len(WAVES))])
    return [engine.tokens(str(number)) for number in range(len(WAVES))]


@pytest.fixture(scope="module")
def right(model: Path) -> list[tuple[int, ...]]:
    return answers(DrivenEngine(config_of(model, "cpu")), model)


@pytest.mark.parametrize(("seed", "haste"), [(1, 0.0), (2, 0.9)])
def test_replays_in_any_order_give_the_same_tokens(
    seed: int, haste: float, model: Path, right: list[tuple[int, ...]]
) -> None:
    simulated = SimulatedCuda(seed, haste=haste)
    with engine_on(simulated, config_of(model, "cuda"), TritonKernels(CUDA, SMALL)) as engine:
        assert engine.runner.backend.num_captured_steps
        assert answers(engine, model) == right
        assert engine.runner.num_replayed_steps == len(WAVES) * ASKED.max_tokens
    assert simulated.waited >= {
        Order.RESULTS,
        Order.PAGES_LEFT,
        Order.ADAPTER_COPIED,
        Order.TABLES_SENT,
        Order.WARMED_UP,
    }


@pytest.mark.parametrize(("order", "seed"), [(Order.RESULTS, 1), (Order.ADAPTER_COPIED, 2)], ids=str)
def test_replays_need_each_wait(order: Order, seed: int, model: Path, right: list[tuple[int, ...]]) -> None:
    simulated = SimulatedCuda(seed, order, haste=0.0)
    with engine_on(simulated, config_of(model, "cuda"), TritonKernels(CUDA, SMALL)) as engine:
        assert answers(engine, model) != right
