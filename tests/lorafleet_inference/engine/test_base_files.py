"""A folder that holds no base model that can be served is refused at the start, in one sentence that names what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import adapters_of, model_folder

from lorafleet_common.errors import ConfigError
from lorafleet_inference.cli import main
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.facts import facts_of_folder
from lorafleet_inference.model.loader import load_model

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
UP = "model.layers.1.mlp.up_proj.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123456\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "base"))


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(EngineConfig(model=str(folder), device="cpu", num_threads=1, cpu_kernels=False, **options))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, **options)
    assert caught.value.option == "--model"
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **fields: Any) -> Path:
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **fields}))
    return folder


def test_a_missing_tensor(base: Path) -> None:
    message = refusal(change_tensors(base, lambda tensors: tensors.pop(UP)))
    assert f"LlamaForCausalLM cannot be loaded: the files lack 1 ({UP}) of its tensors" in message


def test_a_tensor_of_another_shape(base: Path) -> None:
    message = refusal(change_tensors(base, lambda tensors: tensors.update({UP: torch.zeros(47, 32)})))
    assert f"tensor {UP} has the shape [47, 32], and config.json says [48, 32]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_is_not_finite(base: Path, value: float) -> None:
    message = refusal(change_tensors(base, lambda tensors: tensors[UP].view(-1)[7:8].fill_(value)))
    assert f"tensor {UP} holds values that are not finite in float32" in message


def test_a_tensor_that_the_wanted_dtype_cannot_hold(base: Path) -> None:
    change_tensors(base, lambda tensors: tensors[UP].view(-1)[7:8].fill_(1e6))
    load(base)
    assert "not finite in float16" in refusal(base, dtype="float16")


def test_the_weights_of_another_architecture(base: Path) -> None:
    shutil.copy(model_folder("gpt2") / WEIGHTS, base / WEIGHTS)
    message = refusal(base)
    assert "LlamaForCausalLM cannot be loaded: the files lack 30 (lm_head.weight, " in message
    assert "that it does not have" in message


def test_tensors_that_the_model_does_not_have_are_said(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(change_tensors(base, lambda tensors: tensors.update({"model.vision.weight": torch.zeros(2)})))
    assert "hold 1 (model.vision.weight) that the model does not have" in caplog.text


@pytest.mark.parametrize(
    ("content", "named"),
    [(POINTER, "Git LFS pointer"), (PAGE, "web page"), (b"PK\x03\x04" + bytes(100), "pickle"), (b"", "truncated")],
)
def test_files_that_are_something_else(base: Path, content: bytes, named: str) -> None:
    (base / WEIGHTS).write_bytes(content)
    message = refusal(base)
    assert WEIGHTS in message
    assert named in message


def test_a_shard_that_is_not_there(base: Path) -> None:
    (base / WEIGHTS).rename(base / "model-00001-of-00002.safetensors")
    index = {"weight_map": {UP: "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors cannot be read: No such file" in refusal(base)


def test_pickled_weights_only(base: Path) -> None:
    (base / WEIGHTS).rename(base / "pytorch_model.bin")
    assert "pytorch_model.bin only, a pickle" in refusal(base)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"quant_method": "aqlm"}, "quantization_config.quant_method is 'aqlm'; supported are awq, "),
        ({"bits": 4}, "quantization_config.quant_method is None; supported are awq, "),
        ({"quant_method": "gptq", "bits": 4}, "quantization_config.group_size: Field required"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups: Field required"),
        ({"quant_method": "fp8"}, "its files hold no quantised layer (weight_scale, weight_scale_inv)"),
        ("int8", "quantization_config is 'int8'"),
    ],
)
def test_quantised_weights(base: Path, fields: object, named: str) -> None:
    """Those that are served are in `test_quantized.py`."""
    assert named in refusal(change_config(base, quantization_config=fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "t5 is no decoder-only"),
        ({"model_type": "never-heard-of"}, "never-heard-of"),
        ({"model_type": "never-heard-of", "auto_map": {"AutoModelForCausalLM": "a.B"}}, "auto_map"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"hidden_act": "loud"}, "'loud' is nothing that transformers knows"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5"),
    ],
)
def test_configs_of_something_else(base: Path, fields: dict[str, Any], named: str) -> None:
    assert named in refusal(change_config(base, **fields))


@pytest.mark.parametrize(
    ("content", "named"),
    [(POINTER, "Git LFS pointer"), (PAGE, "web page"), (b"{", "not JSON"), (b"[]", "no JSON object")],
)
def test_config_files_that_are_something_else(base: Path, content: bytes, named: str) -> None:
    (base / CONFIG).write_bytes(content)
    assert f"config.json is {named}" in refusal(base).replace("a Git", "Git").replace("a web", "web")


@pytest.mark.parametrize(
    ("content", "named"), [(POINTER, "Git LFS pointer"), (b'{"eos_', "not JSON"), (b"[]", "no JSON object")]
)
def test_a_generation_config_that_cannot_be_read_is_not_done_without(base: Path, content: bytes, named: str) -> None:
    """The end tokens of many models are in it alone: without them answers go on to the end of the context."""
    (base / GENERATION).write_bytes(content)
    message = refusal(base)
    assert GENERATION in message
    assert named in message


def test_end_tokens_beyond_the_vocabulary_are_passed_over(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To hold them back until `min_tokens` would be an error of each such request, and on CUDA the end of the engine."""
    (base / GENERATION).write_text(json.dumps({"eos_token_id": [5, 1_000_000, -1]}))
    loaded = load(base)
    assert loaded.facts.eos_token_ids == facts_of_folder(base).eos_token_ids == (5,)
    assert "end tokens that it has not: 1000000, -1" in caplog.text


def test_the_folder_of_an_adapter() -> None:
    assert "it has no config.json; it is the folder of an adapter" in refusal(adapters_of("llama")["rank-7"])


def test_adapter_files_beside_a_base_are_not_of_the_base(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapters_of("llama")["rank-7"]
    alone = load(base)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, base / name)
    beside = load(base)
    assert beside.facts == alone.facts
    assert beside.facts.__replace__(device="meta") == facts_of_folder(base)
    assert not hasattr(beside.model, "peft_config")
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(beside.model.state_dict()[name], tensor), name
    (base / "adapter_model.safetensors").unlink()
    assert load(base).facts == alone.facts
    assert main(["validate", str(adapter), "--model", str(base)]) == 0
    assert "accepted" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": {"quant_method": "gptq"}},
        {"model_type": "never-heard-of"},
        {"hidden_act": "loud"},
        {"hidden_size": -4},
    ],
)
def test_validate_and_plan_refuse_the_base_that_the_pod_refuses(
    base: Path, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(change_config(base, **fields))
    assert main(["validate", str(adapters_of("llama")["rank-7"]), "--model", str(base)]) == 2
    assert message in capsys.readouterr().err
    assert main(["plan", "--model", str(base)]) == 2
    assert message in capsys.readouterr().err
