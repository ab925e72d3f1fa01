"""In steady state, loads pin nothing: their memory is the host tier's, which is there from the start."""

from pathlib import Path

from support.engines import key_of
from support.families import VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.simulated_cuda import SimulatedCuda
from support.simulated_engine import SimulatedRunner, on_cuda
from transformers import LlamaConfig

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig

MODEL = LlamaConfig(
    vocab_size=VOCABULARY, initializer_range=0.3, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
SPECS = {
    "large": AdapterSpec(8, seed=1),
    "small": AdapterSpec(2, ("q_proj",), seed=2),
    "middle": AdapterSpec(5, seed=3),
}
HOST_BYTES = 1 << 15


def test_loads_pin_nothing_and_copy_what_the_files_have(tmp_path: Path) -> None:
    model = save_model(MODEL, tmp_path / "model")
    config = EngineConfig(
        model=str(model), device="cuda", dtype="float32", num_threads=1, max_batch_tokens=16, max_rank=8,
        max_resident_adapters=3, max_batch_requests=1, kv_cache_memory_bytes=1 << 14, gpu_kernels=False, decoder="own",
        host_cache_bytes=HOST_BYTES,
    )  # fmt: skip
    simulated = SimulatedCuda(0, haste=0.0)
    with simulated.there():
        runner = SimulatedRunner(simulated, on_cuda(config), config)
        plans = {
            name: inspect_adapter(save_adapter(model, tmp_path / name, spec), runner.facts, max_rank=8)
            for name, spec in SPECS.items()
        }
        work = simulated.begin()
        for number in range(4):
            held = [runner.load_slab(plans[name]) for name in ("large", "small", "middle")[number % 2 :]]
            assert runner._adapters.arena.used_bytes == sum(one.slab.num_bytes for one in held) <= HOST_BYTES
            at = 0
            for name, slab in zip(("large", "small", "middle")[number % 2 :], held, strict=True):
                pages = range(at, at + len(slab.slab.pages))
                runner.install(key_of(name), pages, slab)
                there = simulated.contents(runner._adapters.bank.pool)[at : pages.stop]
                assert all(there[row].tolist() == page.tolist() for row, page in enumerate(slab.slab.pages.pages))
                assert bool(there.any())
                at = pages.stop
            for slab in held[:: 1 if number % 2 else -1]:
                runner.drop_slab(slab)
            assert runner._adapters.arena.used_bytes == 0
        assert (work.pinned, work.unpinned) == ([], [])
        slabs = [runner.load_slab(plans["large"])]
        while slabs[-1].slab.pages.numbers:
            slabs.append(runner.load_slab(plans["large"]))
        assert work.pinned == [slabs[-1].slab.num_bytes], "what is beyond the host tier is pinned by itself"
        runner.drop_slab(slabs.pop())
        assert work.unpinned == work.pinned
        simulated.check()
