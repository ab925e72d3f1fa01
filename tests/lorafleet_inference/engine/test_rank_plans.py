"""Families that transformers computes are split by its own plans, and several ranks answer as one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from support.families import FAMILIES, adapter_specs
from support.models import AdapterSpec, adapter_of, model_folder, save_adapter, served_as
from support.plan_families import PLAN_FAMILIES, QUICK, check_two_ranks, config_of
from support.ranks import check_answers_as_one
from transformers import (
    AfmoeConfig,
    DogeConfig,
    Gemma3nTextConfig,
    GraniteConfig,
    MambaConfig,
    NanoChatConfig,
    PreTrainedConfig,
)

from lorafleet_common.errors import ConfigError
from lorafleet_inference.model.dry_run import model_size
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.ranks.checks import shard_of
from lorafleet_inference.model.sizing import weight_bytes

KINDS: Mapping[str, tuple[str, ...]] = {
    "phi": ("rank-7", "dora", "bias", "saved-norm-and-head", "head-and-embedding-dora"),
    "gpt-neox": ("rank-7", "dora", "lora-bias"),
    "starcoder2": ("rank-7", "bias", "more-tokens"),
    "cohere": ("rank-7", "dora", "token-rows"),
    "olmo2": ("rank-7", "dora"),
    "mixtral": ("rank-7", "experts", "router-and-experts-apart"),
}
RUN = (("phi", 2), ("gpt-neox", 2), ("starcoder2", 2), ("cohere", 4), ("olmo2", 4))
BY_TRANSFORMERS = ("mixtral",)
"""Which the decoder of our own computes, too."""


@pytest.mark.parametrize(("family", "size"), RUN)
def test_several_ranks_answer_as_one(family: str, size: int) -> None:
    specs = adapter_specs(FAMILIES[family])
    adapters = {kind: served_as(adapter_of(family, kind), specs[kind].rewrite) for kind in KINDS[family]}
    check_answers_as_one(config_of(model_folder(family)), size, adapters)


def test_norms_of_all_heads_may_be_of_an_adapter(tmp_path: Path) -> None:
    linear = FAMILIES["olmo2"].linear
    saved = AdapterSpec(4, linear, options={"modules_to_save": ["q_norm", "k_norm"]})
    folder = model_folder("olmo2")
    adapter = save_adapter(folder, tmp_path, saved)
    check_answers_as_one(config_of(folder), 2, {"saved-norms": adapter})


@pytest.mark.parametrize("family", BY_TRANSFORMERS)
def test_what_our_decoder_computes_can_be_computed_by_transformers(family: str) -> None:
    specs = adapter_specs(FAMILIES[family])
    adapters = {kind: served_as(adapter_of(family, kind), specs[kind].rewrite) for kind in KINDS[family]}
    check_answers_as_one(config_of(model_folder(family), "transformers"), 2, adapters)


@pytest.mark.parametrize("family", QUICK)
def test_two_ranks_of_other_families_answer_as_one(family: str, tmp_path: Path) -> None:
    check_two_ranks(family, tmp_path)


@pytest.mark.parametrize("family", ["phi", "cohere", "gpt-neox"])
def test_what_a_rank_loads_is_what_was_counted(family: str) -> None:
    config = replace(config_of(model_folder(family)), tensor_parallel_size=2)
    sized = model_size(model_folder(family), dtype="float32", max_batch_tokens=16, max_batch_requests=2, num_ranks=2)
    for rank in range(2):
        loaded = load_model(config, rank)
        whole_bias = sum(one.numel() for name, one in loaded.model.named_parameters() if name == "lm_head.bias")
        counted = sized.weights + 4 * whole_bias // 2
        assert abs(weight_bytes(loaded.model) - counted) <= 4
        assert loaded.shapes == sized.shapes
        assert loaded.held.modules == sized.facts.modules


@pytest.mark.parametrize("name", ["phi", "mixtral", "glm"])
def test_half_of_a_model_is_counted_for_each_of_two_ranks(name: str, tmp_path: Path) -> None:
    config = (FAMILIES.get(name) or PLAN_FAMILIES[name]).config
    config.save_pretrained(tmp_path)
    sizes = [
        model_size(tmp_path, dtype="float32", max_batch_tokens=16, max_batch_requests=2, num_ranks=ranks)
        for ranks in (1, 2)
    ]
    whole, part = (size.facts for size in sizes)
    assert sizes[1].weights < 0.7 * sizes[0].weights
    assert {one.num_kv_heads for one in sizes[1].shapes} == {one.num_kv_heads // 2 for one in sizes[0].shapes}
    assert part.vocab_size == whole.vocab_size
    pairs = zip(whole.modules, part.modules, strict=True)
    assert {(all_.in_features * all_.out_features) // (one.in_features * one.out_features) for all_, one in pairs} <= {
        1,
        2,
    }


@pytest.mark.parametrize(
    ("config", "size", "why"),
    [
        (MambaConfig(), 2, "MambaForCausalLM cannot be split among 2 ranks: it is of no family of our decoder"),
        (AfmoeConfig(num_hidden_layers=1, num_dense_layers=0), 2, "0.self_attn, only the outputs of gate_proj would be split"),
        (Gemma3nTextConfig(num_hidden_layers=2, intermediate_size=[48, 49]), 2, "its intermediate_size is 49"),
        (DogeConfig(), 2, "transformers' plan has layers.*.self_attn.dt_proj as rowwise, which is not known here"),
        (NanoChatConfig(num_hidden_layers=1), 2, "layers.0.self_attn.q_norm is a NanoChatRMSNorm of all heads together"),
        (GraniteConfig(num_attention_heads=6, num_key_value_heads=6, hidden_size=48), 4, "it has 6 attention heads"),
        (GraniteConfig(num_attention_heads=4, num_key_value_heads=4, hidden_size=32, intermediate_size=49), 2, "intermediate_size is 49"),
    ],
)  # fmt: skip
def test_what_no_plan_can_split_is_refused_by_name(config: PreTrainedConfig, size: int, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shard_of(config, 0, size)
    assert caught.value.option == "--tensor-parallel-size"
    assert why in caught.value.problem


def test_a_config_of_which_there_is_no_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="GraniteForCausalLM cannot be loaded") as caught:
        shard_of(GraniteConfig(num_hidden_layers=1, hidden_act="none-such"), 0, 2)
    assert caught.value.option == "--model"
