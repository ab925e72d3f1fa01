"""A file may repeat the base's weight under LoRA; of one that differs, as PEFT would load it, the rows that differ are kept."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import adapters_of, model_folder

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.runner import ModelRunner

WEIGHTS = "adapter_model.safetensors"
WIDTH = 32
COPIES = {
    "embedding": "base_model.model.model.embed_tokens.base_layer.weight",
    "head": "base_model.model.lm_head.base_layer.weight",
}


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    config = EngineConfig(
        model=str(model_folder("llama")), device="cpu", num_threads=1, max_rank=16, cpu_kernels=False, dtype="float32"
    )
    return ModelRunner(load_model(config), config)


def with_copy(folder: Path, kind: str, *, change: float, dtype: torch.dtype) -> Path:
    shutil.copytree(adapters_of("llama")[kind], folder)
    tensors = load_file(folder / WEIGHTS)
    module = COPIES[kind].removeprefix("base_model.model.").replace("base_layer.", "")
    copied = load_file(model_folder("llama") / "model.safetensors")[module].clone()
    copied[11, 3] += change
    tensors[COPIES[kind]] = copied.to(dtype)
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", sorted(COPIES))
def test_a_copy_of_the_bases_weight(runner: ModelRunner, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    same = with_copy(tmp_path / "same", kind, change=0.0, dtype=dtype)
    plan = runner.settle(inspect_adapter(same, runner.facts, max_rank=16))
    assert (plan.own, plan.own_rows) == ((), ())
    other = with_copy(tmp_path / "other", kind, change=0.5, dtype=dtype)
    changed = runner.settle(inspect_adapter(other, runner.facts, max_rank=16))
    assert changed.own == ()
    assert [one.token_ids for one in changed.own_rows] == [(11,)]
    assert 0 <= runner.slab_bytes(changed) - runner.slab_bytes(plan) <= 4 * WIDTH + 8, (
        "more than the row that differs and its id is kept"
    )
    runner.load_slab(changed)


def test_where_most_rows_differ_the_whole_weight_is_kept(runner: ModelRunner, tmp_path: Path) -> None:
    folder = with_copy(tmp_path / "other", "head", change=0.0, dtype=torch.float32)
    tensors = load_file(folder / WEIGHTS)
    tensors[COPIES["head"]][:60] += 0.5
    save_file(tensors, folder / WEIGHTS)
    plan = runner.settle(inspect_adapter(folder, runner.facts, max_rank=16))
    assert ([one.module for one in plan.own], plan.own_rows) == (["lm_head"], ())


def test_a_copy_of_another_linear_layer_has_to_be_the_bases(runner: ModelRunner, tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    shutil.copytree(adapters_of("llama")["head"], tmp_path / "linear")
    tensors = load_file(tmp_path / "linear" / WEIGHTS)
    base = load_file(model_folder("llama") / "model.safetensors")[f"{module}.weight"].clone()
    key = f"base_model.model.{module}.base_layer.weight"
    save_file({**tensors, key: base}, tmp_path / "linear" / WEIGHTS)
    runner.settle(inspect_adapter(tmp_path / "linear", runner.facts, max_rank=16))
    base[11, 3] += 0.5
    save_file({**tensors, key: base}, tmp_path / "linear" / WEIGHTS)
    with pytest.raises(AdapterError, match=r"is not the base's own weight \(row 11 differs\)") as caught:
        runner.settle(inspect_adapter(tmp_path / "linear", runner.facts, max_rank=16))
    assert caught.value.reason is Reason.UNSUPPORTED_ADAPTER


def test_a_copy_of_another_shape_or_of_nothing(runner: ModelRunner, tmp_path: Path) -> None:
    folder = with_copy(tmp_path / "other", "head", change=0.0, dtype=torch.float32)
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, COPIES["head"]: torch.zeros(211, 31)}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"shape \[211, 31\]; the base needs \[211, 32\]"):
        inspect_adapter(folder, runner.facts, max_rank=16)
    save_file({**tensors, COPIES["embedding"]: torch.zeros(211, 32)}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="of a module that the adapter does not change"):
        inspect_adapter(folder, runner.facts, max_rank=16)
