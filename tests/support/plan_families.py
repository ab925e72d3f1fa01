"""Families that transformers computes and has a plan for, beside those of `families.py`: tiny, and tested on several ranks alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from support.families import MAX_MODEL_LEN, VOCABULARY, Family, adapter_specs
from support.models import save_adapter, save_model
from support.ranks import check_answers_as_one
from transformers import (
    ApertusConfig,
    ArceeConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Ernie4_5Config,
    Exaone4Config,
    FlexOlmoConfig,
    Glm4Config,
    GlmConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeSharedConfig,
    HeliumConfig,
    LlamaConfig,
    MiniMaxM2Config,
    NemotronConfig,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from lorafleet_inference.config import DecoderChoice, EngineConfig, Quantization

_COMMON = {
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
    "max_position_embeddings": MAX_MODEL_LEN,
}
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

PLAN_FAMILIES: Mapping[str, Family] = {
    "granite": Family(
        GraniteConfig(
            **_COMMON, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.6, attention_multiplier=0.4
        )
    ),
    "glm": Family(GlmConfig(**_COMMON, head_dim=8, attention_bias=True)),
    "glm4": Family(Glm4Config(**_COMMON, head_dim=8, attention_bias=True)),
    "olmo": Family(OlmoConfig(**_COMMON, clip_qkv=1.5)),
    "nemotron": Family(NemotronConfig(**_COMMON)),
    "arcee": Family(ArceeConfig(**_COMMON)),
    "helium": Family(HeliumConfig(**_COMMON, head_dim=8)),
    "smollm3": Family(SmolLM3Config(**_COMMON)),
    "cohere2": Family(Cohere2Config(**_COMMON, sliding_window=24, logit_scale=1.0)),
    "cohere-norms": Family(CohereConfig(**_COMMON, use_qk_norm=True, logit_scale=1.0)),
    "olmo3": Family(Olmo3Config(**_COMMON, sliding_window=24)),
    "olmoe": Family(
        OlmoeConfig(**_COMMON, num_experts=4, num_experts_per_tok=2),
        linear=_LINEAR[:4],
        experts=("gate_proj", "up_proj", "down_proj"),
    ),
    "flex-olmo": Family(FlexOlmoConfig(**_COMMON, num_experts=4, num_experts_per_tok=2), linear=_LINEAR[:4]),
    "minimax-m2": Family(
        MiniMaxM2Config(**_COMMON, head_dim=8, num_local_experts=4, num_experts_per_tok=2), linear=_LINEAR[:4]
    ),
    "granitemoe": Family(GraniteMoeConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2), linear=_LINEAR[:4]),
    "granitemoe-shared": Family(
        GraniteMoeSharedConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16),
        linear=(*_LINEAR[:4], "input_linear", "output_linear"),
    ),
    "phimoe": Family(PhimoeConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2), linear=_LINEAR[:4]),
    "deepseek-v3": Family(
        DeepseekV3Config(
            **{**_COMMON, "num_key_value_heads": 4},
            moe_intermediate_size=24,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
        ),
        linear=("q_a_proj", "q_b_proj", "o_proj"),
    ),
    "exaone4": Family(Exaone4Config(**_COMMON, sliding_window=24)),
    "ernie4.5": Family(Ernie4_5Config(**_COMMON, head_dim=8)),
    "seed-oss": Family(SeedOssConfig(**_COMMON, head_dim=8)),
    "apertus": Family(ApertusConfig(**_COMMON)),
    "llama-relu": Family(LlamaConfig(**_COMMON, hidden_act="relu")),
    "qwen2-moe": Family(
        Qwen2MoeConfig(
            **_COMMON,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        linear=_LINEAR[:4],
        experts=("gate_proj", "up_proj", "down_proj"),
    ),
}
QUICK = ("cohere-norms", "glm")
"""Run on each change; the others by `make soak`."""


def config_of(folder: Path, decoder: DecoderChoice = "auto") -> EngineConfig:
    """Return the config of an engine on a CPU."""
    return EngineConfig(
        model=str(folder),
        device="cpu",
        decoder=decoder,
        num_threads=1,
        max_rank=16,
        max_batch_tokens=40,
        cpu_kernels=False,
    )


def check_two_ranks(family: str, folder: Path, quantization: Quantization | None = None) -> None:
    """See that a family of PLAN_FAMILIES answers on two ranks as on one, with adapters. `folder`: where its files may be.

    `quantization`: made when the base is read.
    """
    made = PLAN_FAMILIES[family]
    specs = adapter_specs(made)
    base = save_model(made.config, folder / "base", norms=True)
    kinds = ("rank-7", "experts") if made.experts else ("rank-7", "dora")
    check_answers_as_one(
        replace(config_of(base), quantization=quantization),
        2,
        {kind: save_adapter(base, folder / kind, specs[kind]) for kind in kinds},
    )
