"""Kinds of adapters beyond A and B on linear layers: laid out as PEFT reads them, or refused by name."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapter_files import write_adapter
from support.families import FAMILIES
from transformers import AutoModelForCausalLM

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.types import AdapterPlan, ExpertTensors, OwnParameter
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.facts import model_facts

Q = "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.1.mlp.experts"
HIDDEN, INNER, VOCABULARY, NUM_EXPERTS, RANK = 32, 48, 211, 4, 4


@cache
def facts(family: str) -> ModelFacts:
    with torch.device("meta"):
        return model_facts(AutoModelForCausalLM.from_config(FAMILIES[family].config))


def tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {f"base_model.model.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}


def lora(module: str, num_in: int = HIDDEN, num_out: int = HIDDEN, rank: int = RANK) -> dict[str, tuple[int, ...]]:
    return {f"{module}.lora_A.weight": (rank, num_in), f"{module}.lora_B.weight": (num_out, rank)}


def inspect(folder: Path, shapes: Mapping[str, tuple[int, ...]], family: str = "llama", **config: Any) -> AdapterPlan:
    config = {"targets": ["q_proj"], **config}
    return inspect_adapter(write_adapter(folder, rank=RANK, tensors=tensors(shapes), **config), facts(family), 16)


def refusal(
    folder: Path, reason: Reason, shapes: Mapping[str, tuple[int, ...]], family: str = "llama", **config: Any
) -> str:
    with pytest.raises(AdapterError) as caught:
        inspect(folder, shapes, family, **config)
    assert caught.value.reason is reason, caught.value
    return caught.value.message


def test_dora_needs_a_magnitude_for_each_module(tmp_path: Path) -> None:
    targets = {"targets": [Q], "use_dora": True}
    whole = {**lora(Q), f"{Q}.lora_magnitude_vector": (HIDDEN,)}
    (site,) = inspect(tmp_path, whole, **targets).sites
    assert site.magnitude_key == f"base_model.model.{Q}.lora_magnitude_vector"
    assert "lora_magnitude_vector" in refusal(tmp_path, Reason.ARTIFACT_INVALID, lora(Q), **targets)
    assert "use_dora" in refusal(tmp_path, Reason.ARTIFACT_INVALID, whole, targets=[Q])
    assert "use_dora" in refusal(tmp_path, Reason.ARTIFACT_INVALID, whole, use_dora=True)
    wrong = {**lora(Q), f"{Q}.lora_magnitude_vector": (HIDDEN + 1,)}
    assert "shape [33]" in refusal(tmp_path, Reason.BASE_MODEL_MISMATCH, wrong, **targets)


def test_a_bias_on_b(tmp_path: Path) -> None:
    whole = {**lora(Q), f"{Q}.lora_B.bias": (HIDDEN,)}
    (site,) = inspect(tmp_path, whole, lora_bias=True).sites
    assert site.b_bias_key == f"base_model.model.{Q}.lora_B.bias"
    assert "lora_bias" in refusal(tmp_path, Reason.ARTIFACT_INVALID, whole)
    assert "lora_B.bias" in refusal(tmp_path, Reason.ARTIFACT_INVALID, lora(Q), lora_bias=True)


def test_trained_biases_are_the_adapters_own(tmp_path: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.base_layer.bias": (HIDDEN,), "model.layers.0.mlp.c_fc.bias": (INNER,)}
    plan = inspect(tmp_path, {**lora(Q), **bias}, "starcoder2", bias="all")
    assert {(one.module, one.parameter) for one in plan.own} == {(Q, "bias"), ("model.layers.0.mlp.c_fc", "bias")}
    assert "no such parameter" in refusal(
        tmp_path, Reason.ARTIFACT_INVALID, {**lora(Q), f"{Q}.base_layer.bias": (HIDDEN,)}
    )


def test_head_and_embedding(tmp_path: Path) -> None:
    embedding = {
        "model.embed_tokens.lora_embedding_A": (RANK, VOCABULARY),
        "model.embed_tokens.lora_embedding_B": (HIDDEN, RANK),
        "model.embed_tokens.base_layer.weight": (VOCABULARY, HIDDEN),
    }
    shapes = {**lora("lm_head", HIDDEN, VOCABULARY), **embedding}
    plan = inspect(tmp_path, shapes, targets=["lm_head", "embed_tokens"])
    assert [site.module for site in plan.side_sites] == ["lm_head", "model.embed_tokens"]
    assert not plan.sites
    assert plan.facts.rank == RANK
    assert "pass it over" in refusal(
        tmp_path, Reason.ARTIFACT_INVALID, lora("lm_head", HIDDEN, VOCABULARY), targets="all-linear"
    )


def test_saved_modules(tmp_path: Path) -> None:
    saved = {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    plan = inspect(tmp_path, {**lora(Q), **saved}, modules_to_save=["norm", "lm_head"])
    assert plan.own == (
        OwnParameter("lm_head", "weight", "base_model.model.lm_head.weight"),
        OwnParameter("model.norm", "weight", "base_model.model.model.norm.weight"),
    )
    resized = {"lm_head.weight": (VOCABULARY + 1, HIDDEN)}
    assert "no weight of model.embed_tokens" in refusal(tmp_path, Reason.BASE_MODEL_MISMATCH, {**lora(Q), **resized})
    both = {**lora(Q), f"{Q}.weight": (HIDDEN, HIDDEN)}
    assert "modules_to_save" in refusal(tmp_path, Reason.ARTIFACT_INVALID, both)
    assert "no such parameter" in refusal(
        tmp_path, Reason.BASE_MODEL_MISMATCH, {**lora(Q), "mystery.weight": (2, HIDDEN)}
    )


def stacked(level: int, num_in: int, num_out: int, rank: int = RANK) -> dict[str, tuple[int, ...]]:
    name = EXPERTS + level * ".base_layer"
    return {
        f"{name}.lora_A.weight": (rank * NUM_EXPERTS, num_in),
        f"{name}.lora_B.weight": (num_out, rank * NUM_EXPERTS),
    }


UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def test_stacked_experts_are_told_apart_by_their_wrappers(tmp_path: Path) -> None:
    shapes = {**stacked(1, HIDDEN, 2 * INNER), **stacked(0, INNER, HIDDEN)}
    plan = inspect(tmp_path, shapes, "mixtral", target_parameters=[DOWN, UP])
    assert {(site.parameter, site.tensors[0].a_key.count("base_layer")) for site in plan.experts} == {
        ("gate_up_proj", 1),
        ("down_proj", 0),
    }
    (only,) = inspect(tmp_path, stacked(0, INNER, HIDDEN), "mixtral", target_parameters=[DOWN]).experts
    assert (only.module, only.parameter, only.rank) == (EXPERTS, "down_proj", RANK)
    assert "target_parameters" in refusal(
        tmp_path, Reason.ARTIFACT_INVALID, shapes, "mixtral", target_parameters=[DOWN]
    )
    assert "target_parameters" in refusal(tmp_path, Reason.ARTIFACT_INVALID, shapes, "mixtral")
    message = refusal(
        tmp_path, Reason.BASE_MODEL_MISMATCH, stacked(0, HIDDEN, HIDDEN), "mixtral", target_parameters=[DOWN]
    )
    assert "shape [16, 32]" in message
    ranks = {"target_parameters": [DOWN], "rank_pattern": {r".*\.down_proj": 17}}
    assert "rank 17" in refusal(tmp_path, Reason.RANK_TOO_HIGH, stacked(0, INNER, HIDDEN, rank=17), "mixtral", **ranks)


def apart(experts: range) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for expert in experts:
        name = f"model.layers.1.block_sparse_moe.experts.{expert}"
        shapes |= {
            **lora(f"{name}.w1", HIDDEN, INNER),
            **lora(f"{name}.w3", HIDDEN, INNER),
            **lora(f"{name}.w2", INNER),
        }
    return shapes


def test_experts_that_were_saved_one_by_one_are_fused(tmp_path: Path) -> None:
    plan = inspect(tmp_path, apart(range(NUM_EXPERTS)), "mixtral", targets=["w1", "w2", "w3"])
    down, up = plan.experts
    assert (up.rank, up.scale, len(up.tensors)) == (2 * RANK, 2.0, 2 * NUM_EXPERTS)
    assert (down.rank, down.scale, len(down.tensors)) == (RANK, 2.0, NUM_EXPERTS)
    key = "base_model.model.model.layers.1.block_sparse_moe.experts.2.w3"
    assert ExpertTensors(f"{key}.lora_A.weight", f"{key}.lora_B.weight", 2, 1) in up.tensors
    targets = {"targets": ["w1", "w2", "w3"]}
    assert "all of them" in refusal(tmp_path, Reason.ARTIFACT_INVALID, apart(range(3)), "mixtral", **targets)
    assert "all of them" in refusal(tmp_path, Reason.ARTIFACT_INVALID, apart(range(1, 5)), "mixtral", **targets)
    patterns = {"rank_pattern": {"w2": RANK}, **targets}
    assert "rank_pattern" in refusal(tmp_path, Reason.UNSUPPORTED_ADAPTER, apart(range(4)), "mixtral", **patterns)


ROUTER = "model.layers.1.mlp.gate"
OLD_ROUTER = "model.layers.1.block_sparse_moe.gate"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (ROUTER, {"target_parameters": ["mlp.gate.weight"]}),
        (ROUTER, {"targets": ["q_proj", "gate"]}),
        (OLD_ROUTER, {"targets": ["q_proj", "gate"]}),
        (OLD_ROUTER, {"targets": r".*\.(q_proj|block_sparse_moe\.gate)"}),
        (OLD_ROUTER, {"targets": "all-linear"}),
    ],
)
def test_a_router_is_named_as_today_or_as_the_linear_layer_that_it_was(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    plan = inspect(tmp_path, {**lora(Q), **lora(name, HIDDEN, NUM_EXPERTS)}, "mixtral", **config)
    (site,) = plan.side_sites
    assert (site.module, site.rank, site.scale) == (ROUTER, RANK, 2.0)
    assert site.a_key == f"base_model.model.{name}.lora_A.weight"
    assert [one.module for one in plan.sites] == [Q]


def test_routers_that_peft_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    shapes = {**lora(Q), **lora(OLD_ROUTER, HIDDEN, NUM_EXPERTS)}
    assert "pass it over" in refusal(tmp_path, Reason.ARTIFACT_INVALID, shapes, "mixtral")
    named = {"targets": ["q_proj", "gate"]}
    for patterns in ({"alpha_pattern": {"gate": 3}}, {"rank_pattern": {"block_sparse_moe.gate": 2}}):
        message = refusal(tmp_path, Reason.UNSUPPORTED_ADAPTER, shapes, "mixtral", **named, **patterns)
        assert "mlp.gate.weight" in message
    twice = {**shapes, **lora(ROUTER, HIDDEN, NUM_EXPERTS)}
    assert "same module" in refusal(tmp_path, Reason.ARTIFACT_INVALID, twice, "mixtral", **named)
    wrong = lora(ROUTER, HIDDEN, NUM_EXPERTS + 1)
    assert "shape [5, 4]" in refusal(tmp_path, Reason.BASE_MODEL_MISMATCH, wrong, "mixtral", **named)
    too_high = {"target_parameters": ["mlp.gate.weight"], "rank_pattern": {"mlp.gate.weight": 17}}
    high = lora(ROUTER, HIDDEN, NUM_EXPERTS, 17)
    assert "rank 17" in refusal(tmp_path, Reason.RANK_TOO_HIGH, high, "mixtral", **too_high)
    biased = {**lora(ROUTER, HIDDEN, NUM_EXPERTS), f"{ROUTER}.bias": (NUM_EXPERTS,)}
    assert "no such parameter" in refusal(tmp_path, Reason.BASE_MODEL_MISMATCH, biased, "mixtral", **named)


def test_other_parameters_are_refused_by_name(tmp_path: Path) -> None:
    shapes = {**lora(Q), **lora("model.layers.1.mlp.other", HIDDEN, NUM_EXPERTS)}
    message = refusal(tmp_path, Reason.UNSUPPORTED_ADAPTER, shapes, "mixtral", target_parameters=["mlp.other.weight"])
    assert "model.layers.1.mlp.other" in message
    assert "target_parameters" in message


HEAD = lora("lm_head", HIDDEN, VOCABULARY)
INVOKED: dict[str, Any] = {"alora_invocation_tokens": [5, 6]}


def test_an_invocation(tmp_path: Path) -> None:
    shapes = {**lora(Q), f"{Q}.lora_B.bias": (HIDDEN,), **HEAD, "lm_head.lora_B.bias": (VOCABULARY,)}
    plan = inspect(tmp_path, shapes, targets=["q_proj", "lm_head"], lora_bias=True, **INVOKED)
    assert plan.invocation == (5, 6)
    assert inspect(tmp_path, lora(Q), alora_invocation_tokens=[], task_type=None).invocation == ()
    assert inspect(tmp_path, lora(Q), alora_invocation_tokens=None).invocation == ()


@pytest.mark.parametrize(
    ("shapes", "config", "why"),
    [
        (lora(Q), {"task_type": None}, "PEFT does not look for them"),
        (lora(Q), {"task_type": "FEATURE_EXTRACTION"}, "PEFT does not look for them"),
        ({**lora(Q), f"{Q}.lora_magnitude_vector": (HIDDEN,)}, {"targets": [Q], "use_dora": True}, "use_dora"),
        ({**lora(Q), "model.norm.weight": (HIDDEN,)}, {"modules_to_save": ["norm"]}, "weight of the adapter's own for model.norm"),
        (
            {**lora(Q), "model.embed_tokens.lora_embedding_A": (RANK, VOCABULARY), "model.embed_tokens.lora_embedding_B": (HIDDEN, RANK)},
            {"targets": ["q_proj", "embed_tokens"]},
            "LoRA on model.embed_tokens",
        ),
        (
            {**lora(Q), "model.embed_tokens.token_adapter.trainable_tokens_delta": (1, HIDDEN)},
            {"trainable_token_indices": [7]},
            "rows of the adapter's own",
        ),
    ],
)  # fmt: skip
def test_an_invocation_with_what_changes_the_tokens_before_it_is_refused(
    tmp_path: Path, shapes: Mapping[str, tuple[int, ...]], config: dict[str, Any], why: str
) -> None:
    message = refusal(tmp_path, Reason.UNSUPPORTED_ADAPTER, shapes, **config, **INVOKED)
    assert "alora_invocation_tokens" in message
    assert why in message


def test_an_invocation_on_experts_or_of_other_tokens_is_refused(tmp_path: Path) -> None:
    experts = {"target_parameters": [DOWN], **INVOKED}
    assert "on experts" in refusal(
        tmp_path, Reason.UNSUPPORTED_ADAPTER, stacked(0, INNER, HIDDEN), "mixtral", **experts
    )
    router = {**lora(Q), **lora(ROUTER, HIDDEN, NUM_EXPERTS)}
    routed = {"target_parameters": ["mlp.gate.weight"], **INVOKED}
    assert f"LoRA on {ROUTER}" in refusal(tmp_path, Reason.UNSUPPORTED_ADAPTER, router, "mixtral", **routed)
    unknown = {"alora_invocation_tokens": [5, VOCABULARY]}
    assert f"the id {VOCABULARY}" in refusal(tmp_path, Reason.BASE_MODEL_MISMATCH, lora(Q), **unknown)
    for wrong in ([-1], [0] * 257, "ab"):
        message = refusal(tmp_path, Reason.ARTIFACT_INVALID, lora(Q), alora_invocation_tokens=wrong)
        assert "alora_invocation_tokens" in message
