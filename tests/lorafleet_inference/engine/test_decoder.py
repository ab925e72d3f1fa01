"""The decoder of our own: who gets it, and that it takes a model over without holding it twice.

That its numbers are transformers' is shown by `test_exactness.py`; here it is what that suite's models do not have.
"""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import DrivenEngine
from support.families import VOCABULARY
from support.models import Reference, model_folder, save_model
from transformers import AutoModelForCausalLM, LlamaConfig

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.kernels.packed import can_pack, pack_linears, plain_weight
from lorafleet_inference.model import loader
from lorafleet_inference.model.attention import Probe, attending
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.decoder import Decoder
from lorafleet_inference.model.loader import load_model

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


def load(folder: Path, decoder: str, **options: Any) -> LoadedModel:
    return load_model(EngineConfig(model=str(folder), device="cpu", num_threads=1, decoder=decoder, **options))  # type: ignore[arg-type]


def answer(base: Path, prompt: tuple[int, ...], **options: Any) -> tuple[tuple[int, ...], torch.Tensor]:
    """Return greedy tokens and the log-probabilities that chose them."""
    engine = DrivenEngine(EngineConfig(model=str(base), device="cpu", num_threads=1, decoder="own", **options))
    engine.submit("one", None, prompt, GREEDY)
    engine.run_until_ended(["one"])
    scores = [[value for _, value in sorted(event.logprobs[0].top)] for event in engine.events()]
    return engine.tokens("one"), torch.tensor(scores)


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_frequencies_are_transformers(rope: str, tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10000.0, **ROPES[rope]})
    base = save_model(config, tmp_path)
    prompt = tuple(2 + 7 * at % 200 for at in range(90))
    tokens, scores = answer(base, prompt)
    wanted = Reference(base, {}).score(None, prompt, tokens).log_softmax(-1)
    assert (scores - wanted).abs().max() < 1e-3


def test_biases_are_added(tmp_path: Path) -> None:
    base = save_model(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=12), tmp_path)
    tokens, scores = answer(base, (5, 6, 7, 8))
    wanted = Reference(base, {}).score(None, (5, 6, 7, 8), tokens).log_softmax(-1)
    assert (scores - wanted).abs().max() < 1e-3


def test_sixteen_bits_are_near(tmp_path: Path) -> None:
    base = save_model(LlamaConfig(**{**SIZES, "initializer_range": 0.05}), tmp_path)
    tokens, scores = answer(base, tuple(range(3, 40)), dtype="bfloat16")
    wanted = Reference(base, {}).score(None, tuple(range(3, 40)), tokens).log_softmax(-1)
    assert 0 < (scores - wanted).abs().max() < 0.1


def test_a_family_without_one_is_refused_by_name_or_left_to_transformers() -> None:
    with pytest.raises(ConfigError, match="GPT2LMHeadModel") as caught:
        load(model_folder("gpt2"), "own")
    assert caught.value.option == "--decoder"
    assert not isinstance(load(model_folder("gpt2"), "auto").model, Decoder)


def test_without_being_asked_for_it_is_there_where_it_was_measured() -> None:
    assert isinstance(load(model_folder("llama"), "auto").model, Decoder)
    assert not isinstance(load(model_folder("llama"), "transformers").model, Decoder)
    assert not isinstance(load(model_folder("llama"), "auto", dtype="bfloat16").model, Decoder)
    assert not isinstance(load(model_folder("llama"), "auto", cpu_kernels=False).model, Decoder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_on_a_gpu_it_is_there_without_being_asked_for_with_our_kernels(dtype: torch.dtype) -> None:
    config = EngineConfig(model="some", decoder="auto")
    assert loader._is_faster(config, torch.device("cuda"), dtype)
    assert not loader._is_faster(replace(config, gpu_kernels=False), torch.device("cuda"), dtype)


def test_a_gate_that_it_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    base = save_model(LlamaConfig(**SIZES, hidden_act="relu"), tmp_path)
    with pytest.raises(ConfigError, match="hidden_act is relu"):
        load(base, "own")
    assert not isinstance(load(base, "auto").model, Decoder)


@torch.inference_mode()
def test_weights_are_taken_over_and_not_copied_twice() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    before = dict(model.state_dict())
    gone = {name: weakref.ref(module) for name, module in model.named_modules() if name.endswith(("proj", "norm"))}
    num_bytes = sum(tensor.nbytes for tensor in before.values())
    decoder = Decoder(model).eval()
    del model
    assert [name for name, module in gone.items() if module() is not None] == []
    assert sum(one.nbytes for one in decoder.parameters()) == num_bytes
    packed = [name for name, module in decoder.named_modules() if name.endswith("proj")]
    assert len(packed) == 7 * len(decoder.model.layers)
    for name in packed:
        assert torch.equal(plain_weight(decoder.get_submodule(name)), before[f"{name}.weight"])


@torch.inference_mode()
@pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")
def test_a_part_gives_its_weight_back_when_the_whole_is_packed_for_the_cpu() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    before = model.get_submodule("model.layers.1.self_attn.k_proj").weight.clone()
    decoder = Decoder(model)
    ids = torch.tensor([[5, 6, 7]])
    with attending(Probe()):
        right = decoder(ids, torch.arange(3)[None]).logits
        assert pack_linears(decoder) == 4 * len(decoder.model.layers) + 1
        assert torch.allclose(decoder(ids, torch.arange(3)[None]).logits, right, atol=1e-5)
    assert torch.equal(plain_weight(decoder.get_submodule("model.layers.1.self_attn.k_proj")), before)


@torch.inference_mode()
def test_hooks_see_modules_by_transformers_names() -> None:
    loaded = load(model_folder("llama"), "own")
    seen = []
    for name in ("q_proj", "v_proj", "o_proj"):
        module = loaded.model.get_submodule(f"model.layers.0.self_attn.{name}")
        module.register_forward_hook(lambda _, args, y: seen.append((args[0].shape, y.shape)))
    with attending(Probe()):
        loaded.model(torch.tensor([[5, 6, 7]]), torch.arange(3)[None])
    assert seen == [((3, 32), (3, 32)), ((3, 32), (3, 16)), ((3, 32), (3, 32))]
