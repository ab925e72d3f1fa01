"""Weights that are not finite, or are not once they are scaled and cast, are refused when they are loaded, by name."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engines import DrivenEngine, key_of
from support.models import adapters_of, model_folder, served_as

from lorafleet_contract.reasons import Reason
from lorafleet_inference import cli
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import DeviceTier, RegisterAdapter
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.runner import ModelRunner

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LLAMA_KINDS = ("rank-7", "dora", "lora-bias", "bias", "head", "embedding", "head-and-embedding-dora",
               "saved-norm-and-head", "saved-embedding")  # fmt: skip


@cache
def runner_of(family: str, dtype: str = "float32") -> ModelRunner:
    config = EngineConfig(
        model=str(model_folder(family)), device="cpu", dtype=dtype, num_threads=1, max_rank=16, cpu_kernels=False
    )
    return ModelRunner(load_model(config), config)


def spoiled(folder: Path, original: Path, key: str, value: float) -> list[int]:
    """Copy an adapter with one value of one tensor changed; return the place."""
    shutil.copytree(original, folder)
    tensors = load_file(folder / WEIGHTS)
    place = [size // 2 for size in tensors[key].shape]
    tensors[key][tuple(place)] = value
    save_file(tensors, folder / WEIGHTS)
    return place


def refusal(family: str, folder: Path, dtype: str = "float32") -> AdapterError:
    runner = runner_of(family, dtype)
    with pytest.raises(AdapterError) as caught:
        runner.load_slab(inspect_adapter(folder, runner.facts, max_rank=16))
    return caught.value


def tensors_of_each_kind(folder: Path) -> list[str]:
    """One tensor of each name apart from its layer; a copy of the base's weight is none of the adapter's."""
    keys = [key for key in load_file(folder / WEIGHTS) if not key.endswith("base_layer.weight")]
    return sorted({re.sub(r"\d+", "#", key): key for key in keys}.values())


CASES = [("llama", kind) for kind in LLAMA_KINDS] + [("mixtral", kind) for kind in ("experts", "experts-apart")]


@pytest.mark.parametrize(("family", "kind"), CASES, ids=[kind for _, kind in CASES])
def test_one_value_of_any_tensor(tmp_path: Path, family: str, kind: str) -> None:
    original = served_as(adapters_of(family)[kind], "none")
    keys = tensors_of_each_kind(original)
    assert keys
    for number, key in enumerate(keys):
        value = (float("nan"), float("inf"), float("-inf"))[number % 3]
        place = spoiled(tmp_path / str(number), original, key, value)
        error = refusal(family, tmp_path / str(number))
        assert error.reason is Reason.ARTIFACT_INVALID
        assert f"tensor {key} is not finite: {value} at {place}" in error.message


@pytest.mark.parametrize("kind", ["rank-7", "head", "lora-bias", "saved-norm-and-head"])
def test_finite_values_that_the_pools_dtype_cannot_hold(tmp_path: Path, kind: str) -> None:
    original = adapters_of("llama")[kind]
    key = next(key for key in tensors_of_each_kind(original) if "lora_" not in key or "lora_B" in key)
    spoiled(tmp_path / "wild", original, key, 65000.0 if "lora_B" not in key else 40000.0)
    runner_of("llama").load_slab(inspect_adapter(tmp_path / "wild", runner_of("llama").facts, max_rank=16))
    spoiled(tmp_path / "wilder", original, key, 1e6)
    for name in ("wild", "wilder") if "lora_B" in key else ("wilder",):
        error = refusal("llama", tmp_path / name, "float16")
        assert error.reason is Reason.ARTIFACT_INVALID
        assert key in error.message
        assert "float16" in error.message


def test_an_alpha_that_makes_weights_overflow(tmp_path: Path) -> None:
    folder = tmp_path / "loud"
    shutil.copytree(adapters_of("llama")["rank-1"], folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "lora_alpha": 1e6}))
    error = refusal("llama", folder, "float16")
    assert "lora_B.weight is not finite: " in error.message
    assert "times 1e+06 in float16" in error.message


def test_a_magnitude_over_rows_without_a_norm(tmp_path: Path) -> None:
    """DoRA divides by the norms of the adapted weight: zeros there are found although each tensor is finite."""
    original = adapters_of("llama")["dora"]
    folder = tmp_path / "no-norm"
    shutil.copytree(original, folder)
    runner = runner_of("llama")
    plan = inspect_adapter(folder, runner.facts, max_rank=16)
    site = plan.sites[0]
    weight = runner._model.get_submodule(site.module).weight
    before = weight.detach().clone()
    tensors = load_file(folder / WEIGHTS)
    tensors[site.b_key][1] = 0.0
    save_file(tensors, folder / WEIGHTS)
    with torch.no_grad():
        weight[1] = 0.0
    try:
        with pytest.raises(AdapterError, match=f"scale of {site.module}, made of .* is not finite: inf at \\[1\\]"):
            runner.load_slab(plan)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_the_engine_refuses_it_and_keeps_nothing(tmp_path: Path) -> None:
    engine = DrivenEngine(EngineConfig(model=str(model_folder("llama")), device="cpu", num_threads=1, max_rank=16))
    original = adapters_of("llama")["rank-7"]
    key = tensors_of_each_kind(original)[0]
    spoiled(tmp_path / "bad", original, key, float("nan"))
    engine.register({"good": original})
    engine.inbox.put(RegisterAdapter(key_of("bad"), str(tmp_path / "bad"), resident=True))
    while not (refused := [one for one in engine.statuses() if one.key == key_of("bad")]):
        engine.step()
    assert refused[-1].reason is Reason.ARTIFACT_INVALID
    assert key in refused[-1].message
    assert refused[-1].tier is DeviceTier.DISK
    assert refused[-1].rank_pages == refused[-1].host_bytes == 0


def test_validate_finds_it_with_weights_and_says_when_it_did_not_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = adapters_of("llama")["head"]
    ask = ["validate", "--model", str(model_folder("llama")), "--max-rank", "16"]
    assert cli.main([*ask, "--weights", str(original)]) == 0
    assert "weights finite in float32\n" in capsys.readouterr().out
    for number, key in enumerate(tensors_of_each_kind(original)):
        folder = tmp_path / str(number)
        spoiled(folder, original, key, 1e30 if number % 2 else float("nan"))
        assert cli.main([*ask, str(folder)]) == 0
        assert "weights not looked at; --weights does\n" in capsys.readouterr().out
        assert cli.main([*ask, "--weights", "--dtype=float16", str(folder)]) == 1
        assert f"refused: ArtifactInvalid: tensor {key} is not finite" in capsys.readouterr().out
