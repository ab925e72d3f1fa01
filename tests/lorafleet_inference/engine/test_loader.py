"""A base model that would be computed wrongly is refused at the start, by name."""

import copy
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES
from support.models import model_folder, save_model
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
)

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import LengthRope, ModuleFacts, ModuleKind, RopeKind
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.facts import facts_of_folder, model_facts
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.rope import LengthRopes

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
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


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
    folder = save_model(config, tmp_path / "dynamic")
    whole, short = load(folder), load(folder, max_model_len=64)
    assert whole.facts.max_model_len == facts_of_folder(folder).max_model_len == 128
    assert whole.facts.length_rope == LengthRope(RopeKind.DYNAMIC, 64)
    assert whole.ropes is not None
    assert (short.facts.length_rope, short.ropes) == (None, None), "a base that does not depend on it pays nothing"
    longrope = Phi3Config(
        **SIZES,
        pad_token_id=0,
        intermediate_size=16,
        max_position_embeddings=64,
        original_max_position_embeddings=32,
        rope_parameters=LONGROPE,
    )
    facts = load(save_model(longrope, tmp_path / "longrope")).facts
    assert (facts.max_model_len, facts.length_rope) == (64, LengthRope(RopeKind.LONGROPE, 32))


def test_a_context_whose_frequencies_by_layer_depend_on_the_length_is_cut(tmp_path: Path) -> None:
    by_layer = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    by_layer["full_attention"] = {**LONGROPE, "original_max_position_embeddings": 32}
    config = Gemma3TextConfig(**SIZES, head_dim=8, intermediate_size=16, num_key_value_heads=1, pad_token_id=0,
                              max_position_embeddings=64, rope_parameters=by_layer)  # fmt: skip
    assert load(save_model(config, tmp_path)).facts.max_model_len == 32


def test_a_rotary_embedding_that_is_made_otherwise_is_told_from_the_usual_ones(tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES, intermediate_size=16, max_position_embeddings=64, rope_parameters=DYNAMIC)
    model = AutoModelForCausalLM.from_pretrained(save_model(config, tmp_path))
    rope = LengthRope(RopeKind.DYNAMIC, 64)
    assert LengthRopes(copy.deepcopy(model), rope).are_exact()

    def of_the_longest(_: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return position_ids[..., None] / (position_ids.max() + 1)

    model.model.rotary_emb.forward = of_the_longest
    assert not LengthRopes(model, rope).are_exact()


def test_windows_that_exist_only_in_the_mask_cut_the_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = PhimoeConfig(
        **SIZES,
        intermediate_size=16,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=64,
        sliding_window=16,
    )
    folder = save_model(config, tmp_path)
    assert load(folder).facts.max_model_len == 16
    assert "does not pass on its window, so the context is cut from 64 to 16 tokens" in caplog.text
    caplog.clear()
    assert load(folder, max_model_len=8).facts.max_model_len == 8
    assert "cut" not in caplog.text


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "falcon-alibi"])
def test_facts_are_the_same_without_weights(family: str) -> None:
    loaded = load(model_folder(family))
    assert facts_of_folder(model_folder(family)) == loaded.facts.__replace__(device="meta")
    assert loaded.facts.num_layers == len(loaded.shapes) == 3
    assert loaded.facts.max_model_len == FAMILIES[family].config.max_position_embeddings


def test_routers_that_are_linear_layers_are_no_module_of_rows() -> None:
    """They return more than their product, so that nothing may be added to what they return."""
    config = PhimoeConfig(**SIZES, intermediate_size=16, num_key_value_heads=2, num_local_experts=3)
    with torch.device("meta"):
        facts = model_facts(AutoModelForCausalLM.from_config(config))
    router = "model.layers.0.mlp.router"
    assert router not in {module.name for module in facts.modules}
    assert ModuleFacts(router, ModuleKind.ROUTER, 16, 3) in facts.side_modules
