"""What an adapter makes of the rows of embedding and head is read as PEFT reads it; what PEFT would draw is refused."""

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
from lorafleet_inference.adapters.types import AdapterPlan, OwnParameter, OwnRows
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.facts import model_facts

Q = "model.layers.0.self_attn.q_proj"
E, H = "model.embed_tokens", "lm_head"
WIDTH, SIZE, RANK = 32, 211, 4
BOTH = [E.rsplit(".", 1)[-1], H]


@cache
def facts(family: str) -> ModelFacts:
    with torch.device("meta"):
        return model_facts(AutoModelForCausalLM.from_config(FAMILIES[family].config))


def inspect(folder: Path, shapes: Mapping[str, tuple[int, ...]], family: str = "llama", **config: Any) -> AdapterPlan:
    lora = {f"{Q}.lora_A.weight": (RANK, WIDTH), f"{Q}.lora_B.weight": (WIDTH, RANK)}
    tensors = {f"base_model.model.{name}": np.ones(shape, np.float32) for name, shape in {**lora, **shapes}.items()}
    config = {"targets": ["q_proj"], **config}
    return inspect_adapter(write_adapter(folder, rank=RANK, tensors=tensors, **config), facts(family), 16)


def on_both(num_rows: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{E}.lora_embedding_A": (RANK, num_rows),
        f"{E}.lora_embedding_B": (WIDTH, RANK),
        f"{H}.lora_A.weight": (RANK, WIDTH),
        f"{H}.lora_B.weight": (num_rows, RANK),
    }


def own(plan: AdapterPlan) -> dict[str, str]:
    return {one.module: one.key.removeprefix("base_model.model.") for one in plan.own}


@pytest.mark.parametrize("size", [150, SIZE, 230])
def test_saved_modules_of_any_number_of_rows(tmp_path: Path, size: int) -> None:
    shapes = {f"{E}.weight": (size, WIDTH), f"{H}.weight": (size, WIDTH)}
    plan = inspect(tmp_path, shapes, modules_to_save=BOTH)
    assert plan.vocabulary == Vocabulary(size, size)
    assert own(plan) == {E: f"{E}.weight", H: f"{H}.weight"}
    written_twice = {
        f"{name}.{form}.weight": (size, WIDTH) for name in (E, H) for form in ("original_module", "modules_to_save")
    }
    again = inspect(tmp_path, {**shapes, **written_twice}, modules_to_save=BOTH)
    assert (again.own, again.vocabulary) == (plan.own, plan.vocabulary)


def test_what_is_not_saved_is_the_bases_and_tied_ones_share_it(tmp_path: Path) -> None:
    alone = {f"{E}.weight": (SIZE, WIDTH)}
    assert own(inspect(tmp_path, alone)) == {E: f"{E}.weight"}
    assert own(inspect(tmp_path, alone, "llama3-tied")) == {E: f"{E}.weight", H: f"{E}.weight"}
    assert own(inspect(tmp_path, alone, "llama3-tied", modules_to_save=["embed_tokens"])) == {E: f"{E}.weight"}
    both = {**alone, f"{H}.weight": (SIZE, WIDTH)}
    assert own(inspect(tmp_path, both, "llama3-tied")) == {E: f"{H}.weight", H: f"{H}.weight"}
    saved = {**both, f"{E}.original_module.weight": (SIZE, WIDTH)}
    plan = inspect(tmp_path, saved, "llama3-tied", modules_to_save=["embed_tokens"])
    assert own(plan) == {E: f"{E}.weight", H: f"{H}.weight"}


def test_a_weight_under_lora_is_a_copy_of_the_bases(tmp_path: Path) -> None:
    targets = ["q_proj", "embed_tokens", "lm_head"]
    shapes = {**on_both(217), f"{E}.base_layer.weight": (217, WIDTH), f"{H}.base_layer.weight": (217, WIDTH)}
    plan = inspect(tmp_path, shapes, targets=targets)
    assert plan.own == tuple(
        OwnParameter(name, "weight", f"base_model.model.{name}.base_layer.weight", is_copy=True) for name in (E, H)
    )
    assert plan.vocabulary == Vocabulary(217, 217)
    assert {site.module for site in plan.side_sites} == {E, H}


def test_rows_of_trained_tokens(tmp_path: Path) -> None:
    delta = {f"{E}.token_adapter.trainable_tokens_delta": (3, WIDTH)}
    key = f"base_model.model.{E}.token_adapter.trainable_tokens_delta"
    plan = inspect(tmp_path, delta, trainable_token_indices=[7, 3, 9])
    assert plan.own_rows == (OwnRows(E, key, (7, 3, 9), is_packed=True),)
    tied = inspect(tmp_path, delta, "llama3-tied", trainable_token_indices={"embed_tokens": [7, 3, 9]})
    assert [one.module for one in tied.own_rows] == [E, H]
    added = inspect(tmp_path, delta, "llama3-tied", trainable_token_indices=[7, 211, 212])
    assert added.vocabulary == Vocabulary(213, 213)


TOKENS = f"{E}.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("shapes", "config", "reason", "why"),
    [
        ({f"{E}.weight": (217, WIDTH)}, {}, Reason.BASE_MODEL_MISMATCH, "217 rows.*base 211.*no weight of lm_head"),
        (
            {f"{E}.weight": (217, WIDTH), f"{H}.weight": (216, WIDTH)},
            {},
            Reason.BASE_MODEL_MISMATCH,
            r"shape \[216, 32\]; the base needs \[217, 32\]",
        ),
        (
            {f"{E}.weight": (217, WIDTH)},
            {"modules_to_save": BOTH},
            Reason.ARTIFACT_INVALID,
            "modules_to_save has lm_head, and the file no weight",
        ),
        ({f"{E}.weight": (217, 16), f"{H}.weight": (217, WIDTH)}, {}, Reason.BASE_MODEL_MISMATCH, r"\[217, 16\]"),
        ({TOKENS: (2, WIDTH)}, {}, Reason.ARTIFACT_INVALID, "does not speak of it"),
        ({TOKENS: (2, WIDTH)}, {"trainable_token_indices": [1]}, Reason.ARTIFACT_INVALID, r"says \[1, 32\]"),
        ({TOKENS: (2, WIDTH)}, {"trainable_token_indices": [1, 1]}, Reason.BASE_MODEL_MISMATCH, "ids twice"),
        ({TOKENS: (2, WIDTH)}, {"trainable_token_indices": [1, 211]}, Reason.BASE_MODEL_MISMATCH, "212 rows"),
        ({}, {"trainable_token_indices": [1]}, Reason.ARTIFACT_INVALID, "no rows of it"),
        ({}, {"trainable_token_indices": {"q_proj": [1]}}, Reason.UNSUPPORTED_ADAPTER, "no embedding or head"),
        (
            {f"{Q}.base_layer.weight": (WIDTH, 1)},
            {},
            Reason.BASE_MODEL_MISMATCH,
            r"shape \[32, 1\]; the base needs \[32, 32\]",
        ),
        ({f"{Q}.original_module.weight": (WIDTH, WIDTH)}, {}, Reason.UNSUPPORTED_ADAPTER, "no kind that is computed"),
    ],
)
def test_what_peft_would_draw_or_refuse_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any], reason: Reason, why: str
) -> None:
    with pytest.raises(AdapterError, match=why) as caught:
        inspect(tmp_path, shapes, **config)
    assert caught.value.reason is reason, caught.value


def test_a_head_with_a_bias_needs_one_for_each_token(tmp_path: Path) -> None:
    head = {"lm_head.weight": (217, WIDTH), "model.embed_tokens.weight": (217, WIDTH)}
    assert inspect(tmp_path, {**head, "lm_head.bias": (217,)}, "phi").vocabulary == Vocabulary(217, 217)
    with pytest.raises(AdapterError, match="no bias of it"):
        inspect(tmp_path, head, "phi")
    rows = {"lm_head.token_adapter.trainable_tokens_delta": (1, WIDTH)}
    with pytest.raises(AdapterError, match="bias PEFT would leave out"):
        inspect(tmp_path, rows, "phi", trainable_token_indices={"lm_head": [1]})
