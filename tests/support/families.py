"""The model families that are tested, tiny, and the kinds of adapters that each is tested with.

Weights are drawn with initializer_range 0.2: at the usual 0.02 the logits of a tiny model lie so close together that
many greedy tokens are ties.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

from lorafleet_inference.model.decoder import SPECS

VOCABULARY = 211
MORE, FEWER = 219, 190
"""Tokens of resized vocabularies."""
MAX_MODEL_LEN = 336
INVOCATION = (5, 6)
"""Of activated adapters."""
LONGROPE_LIMIT = 64
"""Longer sequences of the longrope model have other frequencies; none of the suite's grows across it."""
_COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_SIZES = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_MODEL_LEN,
}
_GQA = {**_SIZES, "num_key_value_heads": 2}
_FALCON = {
    **_COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_MODEL_LEN,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
}


@dataclass(frozen=True, slots=True)
class Family:
    """A model to make, and what its modules are called."""

    config: PreTrainedConfig
    attention: tuple[str, ...] = ("q_proj", "v_proj")
    wide: str = "down_proj"
    head: str = "lm_head"
    embedding: str = "embed_tokens"
    norm: str = "model.norm"
    linear: str | tuple[str, ...] = "all-linear"
    """Where experts are fused, peft's all-linear would take in the router too."""
    experts: tuple[str, str, str] | None = None
    """What the gate, up and down maps of an expert were called before they were fused."""
    mixture: str = "mlp"
    """What the parent of router and experts was called then."""


_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_OLD = {"attention": ("query_key_value",), "wide": "dense_4h_to_h", "embedding": "word_embeddings", "norm": "ln_f"}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(LlamaConfig(**_GQA)),
    "llama3-tied": Family(LlamaConfig(**_GQA, tie_word_embeddings=True, rope_parameters=_LLAMA3)),
    "mistral": Family(MistralConfig(**_GQA, sliding_window=24)),
    "mixtral": Family(
        MixtralConfig(**_GQA, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
        wide="o_proj",
        linear=_PROJECTIONS,
        experts=("w1", "w3", "w2"),
        mixture="block_sparse_moe",
    ),
    "gemma": Family(GemmaConfig(**_GQA, head_dim=16)),
    "gemma2": Family(Gemma2Config(**_GQA, head_dim=16, query_pre_attn_scalar=16, sliding_window=24)),
    "gemma3": Family(
        Gemma3TextConfig(
            **_GQA,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "phi": Family(PhiConfig(**_SIZES, partial_rotary_factor=0.5), wide="fc2", norm="final_layernorm"),
    "phi3": Family(Phi3Config(**_GQA, sliding_window=24), attention=("qkv_proj",)),
    "phi3-longrope": Family(
        Phi3Config(
            **_GQA,
            original_max_position_embeddings=LONGROPE_LIMIT,
            rope_parameters=_LONGROPE,
            sliding_window=None,
        ),
        attention=("qkv_proj",),
    ),
    "falcon-multi-query": Family(FalconConfig(**_FALCON, multi_query=True, alibi=False, bias=False), **_OLD),
    "falcon-new-decoder": Family(
        FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2, alibi=False, bias=False), **_OLD
    ),
    "falcon-alibi": Family(
        FalconConfig(**_FALCON, multi_query=False, alibi=True, bias=True, parallel_attn=False), **_OLD
    ),
    "bloom": Family(BloomConfig(**_COMMON, hidden_size=32, n_layer=3, n_head=4), **_OLD),
    "qwen2": Family(Qwen2Config(**_GQA)),
    "qwen3": Family(Qwen3Config(**_GQA, head_dim=16)),
    "qwen3-moe": Family(
        Qwen3MoeConfig(**_GQA, head_dim=16, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2),
        wide="o_proj",
        linear=_PROJECTIONS,
        experts=("gate_proj", "up_proj", "down_proj"),
    ),
    "gpt2": Family(
        GPT2Config(**_COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=MAX_MODEL_LEN),
        attention=("c_attn",),
        wide="mlp.c_fc",
        embedding="wte",
        norm="ln_f",
    ),
    "gpt-j": Family(
        GPTJConfig(**_COMMON, n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_positions=MAX_MODEL_LEN),
        wide="fc_out",
        embedding="wte",
        norm="ln_f",
    ),
    "gpt-neox": Family(
        GPTNeoXConfig(**_SIZES),
        attention=("query_key_value",),
        wide="dense_4h_to_h",
        head="embed_out",
        embedding="embed_in",
        norm="final_layer_norm",
    ),
    "opt": Family(
        OPTConfig(**{key: value for key, value in _SIZES.items() if key not in ("intermediate_size", "initializer_range")},
                  init_std=0.2, ffn_dim=48, word_embed_proj_dim=32),
        wide="fc2",
        norm="decoder.final_layer_norm",
    ),
    "starcoder2": Family(Starcoder2Config(**_GQA, sliding_window=24, use_bias=True), wide="c_proj"),
    "olmo2": Family(Olmo2Config(**_GQA)),
    "cohere": Family(CohereConfig(**_GQA, logit_scale=1.0)),
}  # fmt: skip


OWN = tuple(
    name for name, family in FAMILIES.items() if MODEL_FOR_CAUSAL_LM_MAPPING[type(family.config)].__name__ in SPECS
)
"""Those that the decoder of our own computes."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A random adapter to make."""

    rank: int = 8
    targets: str | tuple[str, ...] = "all-linear"
    seed: int = 1
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """More fields of LoraConfig; `lora_alpha` is twice the rank unless named here."""
    rewrite: Literal["none", "old-peft", "old-experts"] = "none"
    """How the saved files are changed into those of older releases."""
    num_rows: int | None = None
    """To which the vocabulary was resized before it was trained."""
    changes_base: bool = False
    """Whether the base's own weights under LoRA on embedding and head were changed, some rows of them."""


KINDS: Mapping[str, str] = {
    "rank-1": "all linear layers, rank 1",
    "rank-7": "all linear layers, an odd rank",
    "rank-16": "all linear layers, rank 16",
    "rank-256": "attention, the largest rank",
    "attention-only": "attention",
    "one-layer": "`layers_to_transform`",
    "rank-pattern": "`rank_pattern`",
    "alpha-pattern": "`alpha_pattern`",
    "rslora": "`use_rslora`",
    "dora": "`use_dora`",
    "lora-bias": "`lora_bias`",
    "bias": '`bias="all"`',
    "head": "LoRA on the output head",
    "embedding": "LoRA on the input embedding",
    "head-and-embedding-dora": "DoRA on both",
    "saved-norm-and-head": "`modules_to_save` with the last norm and the output head",
    "saved-embedding": "`modules_to_save` with the input embedding",
    "more-tokens": "a vocabulary that was resized to more tokens, `modules_to_save` with embedding and head",
    "fewer-tokens": "a vocabulary that was cut, saved without `modules_to_save`",
    "token-rows": "`trainable_token_indices` of the embedding, some of them added",
    "changed-base": "LoRA on embedding and head of more tokens, over weights that are not the base's",
    "old-peft": "names and config as peft 0.3 wrote them",
    "experts": "`target_parameters` with both weights of fused experts",
    "experts-down-rslora": "`target_parameters` with the down weights only, `use_rslora`",
    "experts-apart": "saved one by one, before transformers fused experts",
    "router": "`target_parameters` with the router, `use_rslora`",
    "router-and-experts-apart": "all linear layers, before transformers fused experts and made routers modules",
    "activated": "`alora_invocation_tokens` with `lora_bias` and the output head: prompts with one, several and none of them",
}
"""Kind of adapter -> what it is."""
ROUTER = "mlp.gate.weight"
BOTH_EXPERT_MAPS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def adapter_specs(family: Family) -> dict[str, AdapterSpec]:
    """Return an adapter of each kind."""
    wide, attention, linear = family.wide, family.attention, family.linear
    specs = {
        "rank-1": AdapterSpec(1, linear, options={"lora_alpha": 3}),
        "rank-7": AdapterSpec(7, linear),
        "rank-16": AdapterSpec(16, linear),
        "rank-256": AdapterSpec(256, attention, options={"lora_alpha": 64}),
        "attention-only": AdapterSpec(8, attention),
        "one-layer": AdapterSpec(24, attention, options={"layers_to_transform": [1]}),
        "rank-pattern": AdapterSpec(5, linear, options={"rank_pattern": {wide: 12}}),
        "alpha-pattern": AdapterSpec(5, linear, options={"alpha_pattern": {wide: 30}}),
        "rslora": AdapterSpec(9, linear, options={"use_rslora": True, "lora_alpha": 5}),
        "dora": AdapterSpec(6, linear, options={"use_dora": True}),
        "lora-bias": AdapterSpec(4, linear, options={"lora_bias": True}),
        "bias": AdapterSpec(4, linear, options={"bias": "all"}),
        "head": AdapterSpec(5, (*attention, family.head)),
        "embedding": AdapterSpec(3, (*attention, family.embedding)),
        "head-and-embedding-dora": AdapterSpec(3, (wide, family.head, family.embedding), options={"use_dora": True}),
        "saved-norm-and-head": AdapterSpec(4, linear, options={"modules_to_save": [family.norm, family.head]}),
        "saved-embedding": AdapterSpec(4, attention, options={"modules_to_save": [family.embedding]}),
        "more-tokens": AdapterSpec(
            4, attention, options={"modules_to_save": [family.embedding, family.head]}, num_rows=MORE
        ),
        "fewer-tokens": AdapterSpec(4, attention, num_rows=FEWER),
        "token-rows": AdapterSpec(
            4, attention, options={"trainable_token_indices": {family.embedding: [5, MORE - 1, 9, 211]}}, num_rows=MORE
        ),
        "changed-base": AdapterSpec(
            3, (*attention, family.embedding, family.head), num_rows=MORE - 2, changes_base=True
        ),
        "old-peft": AdapterSpec(6, attention, rewrite="old-peft"),
    }
    if family.experts is not None:
        specs |= {
            "experts": AdapterSpec(4, attention, options={"target_parameters": [*BOTH_EXPERT_MAPS]}),
            "experts-down-rslora": AdapterSpec(
                3, attention, options={"target_parameters": [BOTH_EXPERT_MAPS[1]], "use_rslora": True}
            ),
            "experts-apart": AdapterSpec(
                4, attention, options={"target_parameters": [*BOTH_EXPERT_MAPS]}, rewrite="old-experts"
            ),
            "router": AdapterSpec(6, attention, options={"target_parameters": [ROUTER], "use_rslora": True}),
            "router-and-experts-apart": AdapterSpec(
                4, linear, options={"target_parameters": [*BOTH_EXPERT_MAPS, ROUTER]}, rewrite="old-experts"
            ),
        }
    activated = {"alora_invocation_tokens": list(INVOCATION), "lora_bias": True}
    specs["activated"] = AdapterSpec(5, (*attention, wide, family.head), options=activated)
    return {name: dataclasses.replace(spec, seed=number) for number, (name, spec) in enumerate(specs.items())}
