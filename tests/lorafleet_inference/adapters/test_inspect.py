"""What is taken is laid out as PEFT would compute it; what is not is refused with the tensor or the field."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapter_files import MODULES, base_facts, tensors_of, write_adapter

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.digest import digest_of
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.errors import AdapterError

Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def refusal(folder: Path, reason: Reason, **facts: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        inspect_adapter(folder, base_facts(**facts), max_rank=16)
    assert caught.value.reason is reason, caught.value
    return caught.value.message


def test_a_plain_adapter(tmp_path: Path) -> None:
    plan = inspect_adapter(write_adapter(tmp_path, rank=4, base_model_name_or_path="org/base"), base_facts(), 16)
    assert [site.module for site in plan.sites] == sorted(MODULES)
    assert {(site.rank, site.scale) for site in plan.sites} == {(4, 2.0)}
    assert plan.facts.rank == 4
    assert plan.facts.target_modules == ["down_proj", "q_proj", "v_proj"]
    assert plan.facts.base_model_name == "org/base"
    assert plan.facts.size_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


def test_patterns_decide_rank_and_scale(tmp_path: Path) -> None:
    tensors = tensors_of({Q0: 4, V1: 9})
    folder = write_adapter(
        tmp_path, rank=4, tensors=tensors, use_rslora=True,
        rank_pattern={r"1\.self_attn\.v_proj": 9}, alpha_pattern={"v_proj": 6},
    )  # fmt: skip
    sites = {site.module: site for site in inspect_adapter(folder, base_facts(), 16).sites}
    assert (sites[Q0].rank, sites[Q0].scale) == (4, 4.0)
    assert (sites[V1].rank, sites[V1].scale) == (9, 2.0)


def test_modules_without_tensors_stay_as_they_are(tmp_path: Path) -> None:
    plan = inspect_adapter(write_adapter(tmp_path, tensors=tensors_of({V1: 4})), base_facts(), 16)
    assert [site.module for site in plan.sites] == [V1]
    write_adapter(tmp_path, tensors=tensors_of({V1: 4}), init_lora_weights=False)
    assert "init_lora_weights" in refusal(tmp_path, Reason.ARTIFACT_INVALID)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lora_A.weight", "lora_A.default.weight"),
        ("base_model.model.", ""),
        ("lora_B.weight", "lora_B.my_adapter.weight"),
    ],
)
def test_names_of_old_peft_are_understood(tmp_path: Path, old: str, new: str) -> None:
    tensors = {name.replace(old, new): tensor for name, tensor in tensors_of({Q0: 4}).items()}
    (site,) = inspect_adapter(write_adapter(tmp_path, tensors=tensors), base_facts(), 16).sites
    assert site.module == Q0
    assert {site.a_key, site.b_key} == set(tensors)


def test_the_wrong_base(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    elsewhere = refusal(tmp_path, Reason.BASE_MODEL_MISMATCH, modules=base_facts().modules[:1])
    assert "has no module" in elsewhere
    narrow = tensors_of({Q0: 4})
    narrow[f"base_model.model.{Q0}.lora_A.weight"] = np.zeros((4, 15), np.float32)
    assert "shape [4, 15]" in refusal(write_adapter(tmp_path, tensors=narrow), Reason.BASE_MODEL_MISMATCH)


def test_a_rank_over_the_budget(tmp_path: Path) -> None:
    assert "serves up to 16" in refusal(write_adapter(tmp_path, rank=17), Reason.RANK_TOO_HIGH)
    inspect_adapter(write_adapter(tmp_path, rank=16), base_facts(), 16)


def test_ranks_that_contradict_the_config(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, rank=8, tensors=tensors_of({Q0: 4}))
    assert "not of rank 8" in refusal(folder, Reason.ARTIFACT_INVALID)


def test_half_a_pair(tmp_path: Path) -> None:
    tensors = tensors_of({Q0: 4})
    del tensors[f"base_model.model.{Q0}.lora_B.weight"]
    assert "lora_B" in refusal(write_adapter(tmp_path, tensors=tensors), Reason.ARTIFACT_INVALID)


def test_two_tensors_of_one_module(tmp_path: Path) -> None:
    tensors = tensors_of({Q0: 4})
    tensors[f"{Q0}.lora_A.weight"] = tensors[f"base_model.model.{Q0}.lora_A.weight"]
    assert "same module" in refusal(write_adapter(tmp_path, tensors=tensors), Reason.ARTIFACT_INVALID)


def test_tensors_that_peft_would_pass_over(tmp_path: Path) -> None:
    for config in ({"targets": ["down_proj"]}, {"exclude_modules": [Q0]}, {"layers_to_transform": [1, 2]}):
        folder = write_adapter(tmp_path, tensors=tensors_of({Q0: 4}), **config)  # type: ignore[arg-type]
        assert "pass it over" in refusal(folder, Reason.ARTIFACT_INVALID)


def test_numbers_that_are_not_floats(tmp_path: Path) -> None:
    tensors = {name: tensor.astype(np.int8) for name, tensor in tensors_of({Q0: 4}).items()}
    assert "dtype I8" in refusal(write_adapter(tmp_path, tensors=tensors), Reason.UNSUPPORTED_ADAPTER)


@pytest.mark.parametrize("name", ["model.layers.0.mystery", "base_model.model.model.embed_tokens.prompt"])
def test_tensors_that_nobody_knows(tmp_path: Path, name: str) -> None:
    tensors = {**tensors_of({Q0: 4}), name: np.zeros((4, 4), np.float32)}
    assert name in refusal(write_adapter(tmp_path, tensors=tensors), Reason.UNSUPPORTED_ADAPTER)


def test_no_tensors_at_all(tmp_path: Path) -> None:
    assert "no tensor" in refusal(write_adapter(tmp_path, tensors={}), Reason.ARTIFACT_INVALID)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    assert "adapter_model.bin" in refusal(tmp_path, Reason.UNSAFE_FORMAT)


@pytest.mark.parametrize("task_type", [None, "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
@pytest.mark.parametrize("head", ["v_head.summary", "base_model.model.score", "base_model.model.classifier.dense"])
def test_tasks_of_others_and_their_heads_change_nothing(tmp_path: Path, task_type: str | None, head: str) -> None:
    tensors = {**tensors_of({Q0: 4}), f"{head}.weight": np.zeros((1, 16), np.float32)}
    plan = inspect_adapter(write_adapter(tmp_path, tensors=tensors, task_type=task_type), base_facts(), 16)
    assert [site.module for site in plan.sites] == [Q0]
    assert plan.own == ()
    assert plan.facts.target_modules == ["q_proj"]


def test_an_adapter_of_a_model_without_its_head_is_told_so(tmp_path: Path) -> None:
    tensors = {name.replace("model.model.", "model."): one for name, one in tensors_of({Q0: 4}).items()}
    assert "without its head" in refusal(write_adapter(tmp_path, tensors=tensors), Reason.BASE_MODEL_MISMATCH)


def test_target_modules_that_are_not_given_are_those_of_the_family(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, tensors=tensors_of({Q0: 4, V1: 4}), target_modules=None)
    plan = inspect_adapter(folder, base_facts(model_type="llama"), 16)
    assert [site.module for site in plan.sites] == [Q0, V1]
    assert "knows no default" in refusal(folder, Reason.ARTIFACT_INVALID)
    write_adapter(tmp_path, tensors=tensors_of({"model.layers.0.mlp.down_proj": 4}), target_modules=None)
    assert "pass it over" in refusal(tmp_path, Reason.ARTIFACT_INVALID, model_type="llama")


def test_empty_text_files_are_as_good_as_absent(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    before = digest_of(folder)
    (folder / "merges.txt").touch()
    inspect_adapter(folder, base_facts(), 16)
    assert digest_of(folder) == before
    (folder / "adapter_config.json").write_bytes(b"")
    assert "has 0 bytes" in refusal(folder, Reason.ARTIFACT_INVALID)
