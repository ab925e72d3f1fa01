"""A base model that would be computed wrongly is refused at the start, by name."""

from pathlib import Path

import pytest
from support.families import FAMILIES
from support.models import model_folder, save_model
from transformers import (
    AutoConfig,
    CodeGenConfig,
    LlamaConfig,
    PhimoeConfig,
    PreTrainedConfig,
)

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.model.facts import facts_of_folder
from lorafleet_inference.model.loader import LoadedModel, load_model

IDS = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


def load(folder: Path, **options: int) -> LoadedModel:
    return load_model(EngineConfig(model=str(folder), device="cpu", num_threads=1, **options))  # type: ignore[arg-type]


def refusal(config: PreTrainedConfig, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(save_model(config, folder))
    assert caught.value.option == "--model"
    return str(caught.value)


def test_attention_that_is_not_ours(tmp_path: Path) -> None:
    config = CodeGenConfig(**IDS, n_embd=16, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
    assert "attention" in refusal(config, tmp_path)


def test_rotary_embeddings_that_depend_on_the_length(tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES, intermediate_size=16, max_position_embeddings=64, rope_parameters=DYNAMIC)
    folder = save_model(config, tmp_path)
    assert load(folder).facts.max_model_len == 64
    longer = AutoConfig.from_pretrained(folder)
    longer.rope_parameters = {**longer.rope_parameters, "original_max_position_embeddings": 32}
    longer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="--max-model-len 32 serves it exactly"):
        load(folder)
    assert load(folder, max_model_len=32).facts.max_model_len == 32


def test_windows_that_exist_only_in_the_mask(tmp_path: Path) -> None:
    config = PhimoeConfig(
        **SIZES,
        intermediate_size=16,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=64,
        sliding_window=16,
    )
    folder = save_model(config, tmp_path)
    with pytest.raises(ConfigError, match="--max-model-len 16 serves it exactly"):
        load(folder)
    assert load(folder, max_model_len=16).facts.max_model_len == 16


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "falcon-alibi"])
def test_facts_are_the_same_without_weights(family: str) -> None:
    loaded = load(model_folder(family))
    assert facts_of_folder(model_folder(family)) == loaded.facts.__replace__(device="meta")
    assert loaded.facts.num_layers == len(loaded.shapes) == 3
    assert loaded.facts.max_model_len == FAMILIES[family].config.max_position_embeddings
