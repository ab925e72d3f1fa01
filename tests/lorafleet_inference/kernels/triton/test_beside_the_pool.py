"""All of an adapter lies in the pool, which KV leaves room for, and in the host tier: its own weights, norms, biases and rows too."""

from pathlib import Path

import pytest
from support.absent_cuda import CUDA
from support.engines import key_of
from support.families import VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.simulated_cuda import SimulatedCuda
from support.simulated_engine import SimulatedRunner, on_cuda
from support.triton_sizes import SMALL
from transformers import LlamaConfig

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig, Quantization
from lorafleet_inference.kernels.triton.backend import TritonKernels

MODEL = LlamaConfig(
    vocab_size=VOCABULARY, initializer_range=0.2, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=16,
)  # fmt: skip
SPECS = {
    "rows": AdapterSpec(8, seed=1),
    "dora": AdapterSpec(4, seed=2, options={"use_dora": True}),
    "words": AdapterSpec(4, ("q_proj", "embed_tokens", "lm_head"), seed=3),
    "own": AdapterSpec(4, ("q_proj",), seed=4, options={"modules_to_save": ["lm_head", "norm"]}),
    "more": AdapterSpec(
        4, ("q_proj",), seed=5, options={"modules_to_save": ["embed_tokens", "lm_head"]}, num_rows=VOCABULARY + 8
    ),
    "tokens": AdapterSpec(4, ("q_proj",), seed=6, options={"trainable_token_indices": {"embed_tokens": [3, 7]}}),
    "biases": AdapterSpec(4, ("q_proj",), seed=7, options={"lora_bias": True}),
}


@pytest.mark.parametrize(("quantization", "has_kernels"), [(None, True), ("nf4", True), ("int8", True), ("nf4", False)])
def test_adapters_take_no_memory_beside_the_pool_and_the_host_tier_not_even_while_they_come(
    quantization: Quantization | None, has_kernels: bool, tmp_path: Path
) -> None:
    """Also not where a norm is measured of weights that are quantised, by kernels or not: these are brought back on the host."""
    model = save_model(MODEL, tmp_path / "model")
    config = EngineConfig(
        model=str(model), device="cuda", dtype="float32", num_threads=1, max_batch_tokens=4, max_rank=8,
        max_resident_adapters=32, max_batch_requests=1, kv_cache_memory_bytes=1 << 14, host_cache_bytes=1 << 20,
        cpu_kernels=False, gpu_kernels=False, cuda_graphs=False, decoder="own", quantization=quantization,
    )  # fmt: skip
    specs = SPECS if quantization is None else {"dora": SPECS["dora"]}
    simulated, grown = SimulatedCuda(1, haste=1.0), dict[str, tuple[int, int]]()
    asked = dict[str, tuple[list[str], list[int]]]()
    with simulated.there():
        kernels = TritonKernels(CUDA, SMALL) if has_kernels else None
        runner = SimulatedRunner(simulated, on_cuda(config), config, kernels)
        simulated.check()
        arena, page_bytes = runner._adapters.arena, 4 * runner._adapters.bank.layout.page
        assert (
            config.host_cache_bytes - page_bytes
            < arena.num_pages * page_bytes + runner._adapters.staging_bytes
            <= config.host_cache_bytes
        )
        first = 0
        for name, spec in specs.items():
            plan = inspect_adapter(save_adapter(model, tmp_path / name, spec), runner.facts, max_rank=8)
            before, used = simulated.num_bytes, arena.used_bytes
            simulated.peak_bytes, work = before, simulated.begin()
            plan = runner.settle(plan)
            slab = runner.load_slab(plan)
            assert arena.used_bytes - used == runner.slab_bytes(plan) == runner.num_pages(plan) * page_bytes
            runner.install(key_of(name), range(first, first := first + runner.num_pages(plan)), slab)
            simulated.check()
            grown[name] = simulated.num_bytes - before, simulated.peak_bytes - before
            asked[name] = work.waits, work.pinned
    assert grown == dict.fromkeys(specs, (0, 0))
    assert asked == dict.fromkeys(specs, ([], [])), (
        "every copy is of memory that was pinned at the start, and nothing waits for it"
    )
