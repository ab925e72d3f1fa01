"""An engine gives the same tokens in whatever order a device does what streams and events allow, and not without one of its waits."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from support.engines import DrivenEngine
from support.families import VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.simulated_cuda import SimulatedCuda
from support.simulated_engine import engine_on
from transformers import LlamaConfig

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.device.interface import Order
from lorafleet_inference.engine.messages import SamplingParams

MODEL = LlamaConfig(
    vocab_size=VOCABULARY, initializer_range=0.3, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
ADAPTERS = {
    "one": AdapterSpec(3, seed=1),
    "two": AdapterSpec(8, ("q_proj", "v_proj"), seed=2),
    "dora": AdapterSpec(4, seed=3, options={"use_dora": True}),
    "head": AdapterSpec(4, ("o_proj", "lm_head"), seed=4),
}
ASKED = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
DRAWN = replace(ASKED, temperature=1.0, seed=5)
WAVES = ((None, "one"), ("dora", "two"), ("one", "head"))
"""Of requests; the adapters of each wave drive out others, and are loaded while steps are computed."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(MODEL, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(model, folder / name, spec) for name, spec in ADAPTERS.items()}


def config_of(model: Path, device: str) -> EngineConfig:
    return EngineConfig(
        model=str(model), device=device, dtype="float32", num_threads=1, max_batch_tokens=24, max_rank=8,
        max_resident_adapters=2, max_batch_requests=3, kv_cache_memory_bytes=10 * 16 * 2 * 8 * 4, cpu_kernels=False,
        gpu_kernels=False, decoder="own",
    )  # fmt: skip


def answers(engine: DrivenEngine, adapters: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    engine.register(adapters, resident=False)
    names = []
    for wave, asked in enumerate(WAVES):
        for number, adapter in enumerate(asked):
            prompt = [(7 * number + 3 * wave + at) % (VOCABULARY - 2) + 2 for at in range(5 + 12 * number)]
            names.append(f"{wave}-{number}")
            engine.submit(names[-1], adapter, prompt, (ASKED, DRAWN)[number % 2])
        for _ in range(3):  # the next wave comes while this one is computed
            engine.step()
    engine.run_until_ended(names)
    return {name: engine.tokens(name) for name in names}


@pytest.fixture(scope="module")
def right(model: Path, adapters: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    return answers(DrivenEngine(config_of(model, "cpu")), adapters)


@pytest.mark.parametrize(("seed", "haste"), [(1, 0.0), (2, 0.9)])
def test_any_order_gives_the_same_tokens(
    seed: int, haste: float, model: Path, adapters: dict[str, Path], right: dict[str, tuple[int, ...]]
) -> None:
    simulated = SimulatedCuda(seed, haste=haste)
    with engine_on(simulated, config_of(model, "cuda")) as engine:
        assert answers(engine, adapters) == right
        assert engine.most_in_flight == 1
    assert simulated.waited == {Order.RESULTS, Order.PAGES_LEFT, Order.ADAPTER_COPIED, Order.BASE_READ}
