"""Rotary embeddings that depend on the length: answers before, at and beyond the limit equal those of transformers' generate.

The base starts without options and serves its whole context; short and long sequences run in one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.families import LONGROPE_LIMIT, VOCABULARY, AdapterSpec
from support.models import Reference, save_adapter, save_model
from transformers import LlamaConfig, Phi3Config, PhimoeConfig, PreTrainedConfig

from lorafleet_inference.config import KV_BLOCK_TOKENS, EngineConfig
from lorafleet_inference.engine.messages import SamplingParams

LIMIT, FACTOR, NUM_TOKENS = LONGROPE_LIMIT, 4, 12
TOLERANCE = 1e-3
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)
SIZES = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": LIMIT,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "phi3": Phi3Config(
        **SIZES,
        max_position_embeddings=FACTOR * LIMIT,
        original_max_position_embeddings=LIMIT,
        rope_parameters={**LONGROPE},
    ),
    "phimoe": PhimoeConfig(
        **SIZES,
        max_position_embeddings=FACTOR * LIMIT,
        num_local_experts=2,
        sliding_window=None,
        rope_parameters={**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3},
    ),
    "dynamic": LlamaConfig(
        **SIZES,
        max_position_embeddings=LIMIT,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": float(FACTOR)},
    ),
}
ATTENTION = {"phi3": ("qkv_proj", "o_proj"), "phimoe": ("q_proj", "v_proj"), "dynamic": ("q_proj", "v_proj")}
LENGTHS = (10, LIMIT - NUM_TOKENS // 2, LIMIT - 1, LIMIT, LIMIT + 1, 3 * LIMIT + 5)


@dataclass
class Made:
    base: Path
    adapter: Path
    reference: Reference


@pytest.fixture(scope="module", params=CONFIGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    base = save_model(CONFIGS[request.param], folder / "base")
    adapter = save_adapter(base, folder / "adapter", AdapterSpec(8, ATTENTION[request.param]))
    return Made(base, adapter, Reference(base, {"adapter": adapter}))


def text(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(2, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def engine_of(made: Made, **options: int) -> DrivenEngine:
    config = EngineConfig(model=str(made.base), device="cpu", num_threads=1, max_batch_tokens=40, **options)  # type: ignore[arg-type]
    engine = DrivenEngine(config)
    engine.register({"adapter": made.adapter})
    return engine


def check(engine: DrivenEngine, made: Made, request_id: str, adapter: str | None, prompt: Sequence[int]) -> None:
    tokens, logits = made.reference.generate_scored(adapter, prompt, NUM_TOKENS)
    assert engine.tokens(request_id) == tokens, request_id
    events = [event for event in engine.events() if event.request_id == request_id]
    ours = torch.tensor([[value for _, value in sorted(one.top)] for event in events for one in event.logprobs or ()])
    assert (ours - logits.log_softmax(-1)).abs().max() < TOLERANCE, request_id


def serve(engine: DrivenEngine, made: Made) -> None:
    """All lengths, on base and adapter, which join while others run."""
    cases = {f"{who}-{length}": (who, text(length)) for length in LENGTHS for who in (None, "adapter")}
    for request_id, (who, prompt) in cases.items():
        engine.submit(request_id, who, prompt, GREEDY)
        engine.step()
    engine.run_until_ended(cases)
    for request_id, (who, prompt) in cases.items():
        check(engine, made, request_id, who, prompt)


def test_short_and_long_sequences_in_one_batch(made: Made) -> None:
    engine = engine_of(made)
    assert engine.runner.facts.max_model_len == FACTOR * LIMIT
    serve(engine, made)


def test_short_of_memory_too(made: Made) -> None:
    budgets = engine_of(made).runner.budgets
    block_bytes = budgets.kv_cache_bytes // budgets.num_kv_blocks
    engine = engine_of(made, kv_cache_memory_bytes=FACTOR * LIMIT // KV_BLOCK_TOKENS * block_bytes)
    serve(engine, made)
    assert engine.num_preempted > 0


def test_what_was_computed_for_a_short_text_is_not_used_for_a_long_one(made: Made) -> None:
    engine = engine_of(made)
    long = text(LIMIT + KV_BLOCK_TOKENS, seed=5)
    for turn in range(2):
        for length in (LIMIT - KV_BLOCK_TOKENS, LIMIT + KV_BLOCK_TOKENS):
            name = f"{length}-{turn}"
            engine.submit(name, None, long[:length], GREEDY)
            engine.run_until_ended([name])
            check(engine, made, name, None, long[:length])
            first = next(event for event in engine.events() if event.request_id == name)
            assert (first.num_cached_tokens > 0) == (turn > 0), name
