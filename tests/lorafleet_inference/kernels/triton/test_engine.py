"""A whole engine answers the same by Triton kernels and by plain torch: Llama by our own decoder beside transformers'."""

from collections.abc import Mapping, Sequence
from dataclasses import replace as replace_config
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from msgspec.structs import replace
from support.engines import DrivenEngine
from support.families import VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.triton_launches import launches
from support.triton_sizes import SMALL
from transformers import Gemma2Config, LlamaConfig, PreTrainedConfig

from lorafleet_inference.config import DecoderChoice, EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.kernels.triton.backend import TritonKernels
from lorafleet_inference.kernels.triton.launch import launching

GREEDY = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, num_logprobs=0)
DRAWN = replace(GREEDY, temperature=0.8, min_p=0.05, seed=7)
CHANGED = replace(GREEDY, repetition_penalty=1.3)
SIZES = {
    "vocab_size": VOCABULARY, "initializer_range": 0.2, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, PreTrainedConfig] = {
    # what the MLP computes has widths that are left to torch
    "llama": LlamaConfig(**{**SIZES, "intermediate_size": 40}),
    # the second layer sees everything; both cap their scores
    "gemma2": Gemma2Config(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=12),
}
ADAPTERS = {
    # in the prompt of its first request
    "small": AdapterSpec(3, seed=1, options={"alora_invocation_tokens": [12, 13]}),
    "large": AdapterSpec(80, ("q_proj", "v_proj"), seed=2),
    "dora": AdapterSpec(6, seed=3, options={"use_dora": True}),
    "sides": AdapterSpec(3, ("o_proj", "lm_head", "embed_tokens"), seed=4, options={"use_dora": True}),
}
NAMES = (None, "small", "large", "dora", None, "small", "sides")


def answers(model: Path, adapters: dict[str, Path], device: torch.device, triton: TritonKernels | None) -> DrivenEngine:
    """Prompts of 2 to 32 tokens in steps of at most 24: decodes beside parts of prompts."""
    engine = DrivenEngine(
        EngineConfig(
            model=str(model),
            device=device.type,
            dtype="float32",
            num_threads=1,
            max_batch_tokens=24,
            max_rank=80,
            max_resident_adapters=4,
            kv_cache_memory_bytes=1 << 20,
            host_cache_bytes=1 << 26,
            cpu_kernels=False,
            gpu_kernels=False,
            decoder="own" if triton is not None and "llama" in model.name else "transformers",
        ),
        triton=triton,
    )
    engine.register(adapters)
    for number, name in enumerate(NAMES):
        prompt = [(7 * number + at) % (VOCABULARY - 2) + 2 for at in range(2 + 6 * number)]
        engine.submit(str(number), name, prompt, (GREEDY, DRAWN, CHANGED)[number % 3])
    engine.run_until_ended(map(str, range(len(NAMES))))
    return engine


def test_with_keys_and_values_in_8_bits_the_same_tokens_as_by_torch(device: torch.device, tmp_path: Path) -> None:
    """A prompt in two pieces, and steps of one token, by our own decoder and by transformers'."""
    model = save_model(LlamaConfig(**{**SIZES, "num_hidden_layers": 1}), tmp_path / "llama")
    config = EngineConfig(
        model=str(model), device=device.type, dtype="float32", num_threads=1, max_batch_tokens=16, max_rank=8,
        max_resident_adapters=1, kv_cache_memory_bytes=1 << 18, host_cache_bytes=1 << 26, kv_cache_dtype="fp8",
        cpu_kernels=False, gpu_kernels=False,
    )  # fmt: skip
    told, launched = [], set()

    def run(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
        launched.add(kernel.fn.__name__)
        kernel[grid](*args, **constants)

    for decoder in get_args(DecoderChoice):
        triton = None if decoder == "auto" else TritonKernels(device, SMALL)
        with launching(run):
            engine = DrivenEngine(replace_config(config, decoder=decoder), triton=triton)
            engine.submit("some", None, range(3, 26), replace(GREEDY, max_tokens=4))
            engine.run_until_ended(["some"])
        told.append(engine.tokens("some"))
    assert len(told[0]) == 4
    assert told == [told[0]] * 3
    assert {"write", "rotate_write", "prefill", "decode"} <= launched


@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens_as_by_torch(device: torch.device, name: str, tmp_path: Path) -> None:
    model = save_model(MODELS[name], tmp_path / name)
    adapters = {one: save_adapter(model, tmp_path / one, spec) for one, spec in ADAPTERS.items()}
    with launches() as seen:
        launched = answers(model, adapters, device, TritonKernels(device, SMALL))
    plain = answers(model, adapters, device, None)
    told = [{event.request_id: [] for event in plain.events()} for _ in range(2)]
    for engine, by_request in zip((launched, plain), told, strict=True):
        for event in engine.events():
            by_request[event.request_id] += [one.chosen for one in event.logprobs or ()]
    for number in map(str, range(len(NAMES))):
        assert launched.tokens(number) == plain.tokens(number)
        assert told[0][number] == pytest.approx(told[1][number], abs=1e-3)
        assert len(told[0][number]) == 3
    own = {"rotate_write", "add_norm", "gate"} if name == "llama" else {"write", "affine"}
    sides = {"embed", "side_shrink", "side_expand"}
    assert {"decode", "prefill", "record", "both", "shrink", "expand", "choose", *own, *sides} == set(seen.kernels)
