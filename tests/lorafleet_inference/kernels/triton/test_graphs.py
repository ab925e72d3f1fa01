"""Decode steps that are replayed answer as steps that are not, whatever comes between capture and replay."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from support.engines import DrivenEngine, key_of
from support.families import BOTH_EXPERT_MAPS, ROUTER, VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.quantized import FORMATS, save_quantised
from support.recorded_graphs import RecordedGraphs
from support.triton_sizes import SMALL
from transformers import LlamaConfig, MixtralConfig

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.device.interface import Captured, Graphs
from lorafleet_inference.engine.messages import Backend, Kernels, ReleaseAdapter, SamplingParams
from lorafleet_inference.kernels.triton.backend import TritonKernels
from lorafleet_inference.model.graph_rooms import DecodeRoom, PromptRoom

ASKED = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, num_logprobs=0)
DRAWN = replace(ASKED, temperature=0.9, top_k=20, seed=5)
MODEL = LlamaConfig(
    vocab_size=VOCABULARY, initializer_range=0.2, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
ADAPTERS = {
    # in the prompts of all its requests but the last one
    "small": AdapterSpec(3, seed=1, options={"alora_invocation_tokens": [20, 21]}),
    "large": AdapterSpec(20, ("q_proj", "v_proj"), seed=2),
    "dora": AdapterSpec(6, seed=3, options={"use_dora": True}),
}
MIXTURE = MixtralConfig(
    vocab_size=VOCABULARY, initializer_range=0.2, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, num_local_experts=4, num_experts_per_tok=2,
    sliding_window=None,
)  # fmt: skip
OF_SIDES = {
    "sides": AdapterSpec(5, ("q_proj", "lm_head", "embed_tokens"), seed=1),
    # and a router
    "experts": AdapterSpec(4, ("v_proj",), seed=2, options={"target_parameters": [*BOTH_EXPERT_MAPS, ROUTER]}),
    "attention": AdapterSpec(8, ("q_proj", "o_proj"), seed=3),
}
WAVES = ((None, None), ("small", None, "large"), ("dora", "small"), ("late", "small", "small", None))


def graphs_of(device: torch.device) -> Graphs:
    return device_at(device).graphs() or RecordedGraphs()


def engine_of(
    model: Path, device: torch.device, triton: TritonKernels | None, graphs: Graphs | None, *, ahead: bool = False
) -> DrivenEngine:
    return DrivenEngine(
        EngineConfig(
            model=str(model), device=device.type, dtype="float32", num_threads=1, max_batch_tokens=24, max_rank=24,
            max_resident_adapters=3, max_batch_requests=2, kv_cache_memory_bytes=1 << 18, cpu_kernels=False, gpu_kernels=False,
            decoder="transformers" if triton is None else "own",
        ),
        triton=triton,
        graphs=graphs,
        ahead=ahead,
    )  # fmt: skip


def answers(
    model: Path, adapters: dict[str, Path], device: torch.device, triton: TritonKernels | None, graphs: Graphs | None
) -> DrivenEngine:
    """Waves of requests, each longer than the last; before the last one an adapter makes room for another.

    Graphs are replayed one step ahead of the results, as on a device.
    """
    engine = engine_of(model, device, triton, graphs, ahead=graphs is not None)
    engine.register({name: folder for name, folder in adapters.items() if name != "late"})
    for wave, names in enumerate(WAVES):
        if "late" in names:
            engine.inbox.put(ReleaseAdapter(key_of("large")))
            engine.step()
            engine.register({"late": adapters["late"]})
        for number, name in enumerate(names):
            prompt = [(7 * number + 3 * wave + at) % (VOCABULARY - 2) + 2 for at in range(3 + 15 * wave - number)]
            engine.submit(f"{wave}-{number}", name, prompt, (ASKED, DRAWN)[number % 2])
        engine.run_until_ended(f"{wave}-{number}" for number in range(len(names)))
    return engine


def test_replayed_steps_answer_as_others_do(device: torch.device, tmp_path: Path) -> None:
    model = save_model(MODEL, tmp_path / "model")
    adapters = {one: save_adapter(model, tmp_path / one, spec) for one, spec in ADAPTERS.items()}
    adapters["late"] = save_adapter(model, tmp_path / "late", AdapterSpec(9, seed=4))
    replayed = answers(model, adapters, device, TritonKernels(device, SMALL), graphs_of(device))
    plain = answers(model, adapters, device, None, None)
    for wave, names in enumerate(WAVES):
        for number in range(len(names)):
            one = f"{wave}-{number}"
            assert replayed.tokens(one) == plain.tokens(one), one
            told, wanted = (
                [entry.chosen for event in engine.events() if event.request_id == one for entry in event.logprobs or ()]
                for engine in (replayed, plain)
            )
            assert told == pytest.approx(wanted, abs=1e-3)
    graphs = replayed.runner.graphs
    assert graphs is not None
    assert graphs.num_replayed >= 16, "most steps"
    assert replayed.runner.num_replayed_steps == graphs.num_replayed
    assert replayed.runner.backend == Backend(Kernels.TRITON, num_captured_steps=12)
    assert plain.runner.backend == Backend(Kernels.TORCH)
    of_rows = {DecodeRoom(1, 0), DecodeRoom(1, 1), DecodeRoom(2, 0), DecodeRoom(2, 2)}
    of_sides = {
        DecodeRoom(size, size, has_sides=True, has_affine=affine) for size in (1, 2) for affine in (False, True)
    }
    of_prompts = {PromptRoom(24, 2, beside, items) for beside in (False, True) for items in (0, 3)}
    assert set(graphs.captured) == of_rows | of_sides | of_prompts


@pytest.mark.parametrize("quantised", [None, "gptq-4-order"])
def test_lora_on_head_embedding_and_experts_is_replayed(
    device: torch.device, tmp_path: Path, quantised: str | None
) -> None:
    """Beside adapters and requests without."""
    model = save_model(MIXTURE, tmp_path / "model")
    adapters = {one: save_adapter(model, tmp_path / one, spec) for one, spec in OF_SIDES.items()}
    if quantised is not None:
        model, _ = save_quantised(model, tmp_path, *FORMATS[quantised])
    engines = []
    waves = [("sides", "experts"), ("experts", None), ("attention", "sides")][: 3 if quantised is None else 1]
    for triton, graphs in ((TritonKernels(device, SMALL), graphs_of(device)), (None, None)):
        engine = engine_of(model, device, triton, graphs, ahead=graphs is not None)
        engine.register(adapters)
        for wave, names in enumerate(waves):
            for number, name in enumerate(names):
                prompt = [(7 * number + 3 * wave + at) % (VOCABULARY - 2) + 2 for at in range(4 + 5 * number)]
                engine.submit(f"{wave}-{number}", name, prompt, ASKED)
            engine.run_until_ended(f"{wave}-{number}" for number in range(len(names)))
        engines.append(engine)
    replayed, plain = engines
    for wave in range(len(waves)):
        for number in range(2):
            assert replayed.tokens(f"{wave}-{number}") == plain.tokens(f"{wave}-{number}"), (wave, number)
    if device.type == "cpu" or quantised is not None:  # on CUDA torch's grouped product of float32 waits for the device
        assert replayed.runner.num_replayed_steps >= 3 * len(waves), "all decode steps"
    assert replayed.runner._adapters.extras._resident == {}, "nothing is left outside of the pool"


def test_what_cannot_be_captured_is_computed_without(
    device: torch.device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one fails: the first is not kept either, and the pod says that it has none."""

    class Broken(RecordedGraphs):
        def capture(self, compute: Callable[[], torch.Tensor]) -> Captured:
            if next(number):
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().capture(compute)

    number = itertools.count()
    model = save_model(MODEL, tmp_path / "model")
    engine = engine_of(model, device, TritonKernels(device, SMALL), Broken())
    assert engine.runner.backend == Backend(Kernels.TRITON, num_captured_steps=0)
    engine.submit("one", None, (5, 6, 7), ASKED)
    engine.run_until_ended(["one"])
    assert engine.runner.num_replayed_steps == 0
    assert len(engine.tokens("one")) == ASKED.max_tokens
    assert [one.message for one in caplog.records if "not captured" in one.message] == [
        "decode steps are not captured, so they are slower: RuntimeError: operation not permitted when stream is capturing"
    ]
