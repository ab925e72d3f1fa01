"""Router LoRA that PEFT of today does not load, because a router is no linear layer any more, equals the merged router."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.adapter_files import write_adapter
from support.engines import DrivenEngine
from support.families import VOCABULARY
from support.models import Reference, model_folder
from transformers import AutoModelForCausalLM

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams

RANK, ALPHA, NUM_TOKENS, HIDDEN, NUM_EXPERTS = 4, 8, 8, 32, 4
PROMPTS = [tuple(range(3, 3 + length)) for length in (1, 21, 47)]
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)


def merged(base: Path, folder: Path, made: dict[str, torch.Tensor], *, use_dora: bool) -> Path:
    """Save the base with the routers that a linear layer with LoRA would be."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            weight = block.mlp.gate.weight
            name = f"base_model.model.model.layers.{layer}.block_sparse_moe.gate"
            weight += ALPHA / RANK * made[f"{name}.lora_B.weight"] @ made[f"{name}.lora_A.weight"]
            if use_dora:
                magnitude = made[f"{name}.lora_magnitude_vector"]
                weight *= (magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None]
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{"lora_dropout": 0.05}, {"use_dora": True}], ids=["dropout", "dora"])
def test_a_router_that_was_a_linear_layer(tmp_path: Path, options: dict[str, Any]) -> None:
    base, generator = model_folder("mixtral"), torch.Generator().manual_seed(3)
    made = {}
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.block_sparse_moe.gate"
        made[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator) / 4
        made[f"{name}.lora_B.weight"] = torch.randn(NUM_EXPERTS, RANK, generator=generator) / 4
        if "use_dora" in options:
            made[f"{name}.lora_magnitude_vector"] = 1 + torch.rand(NUM_EXPERTS, generator=generator)
    adapter = write_adapter(tmp_path / "adapter", rank=RANK, targets=["gate"], tensors={}, **options)
    save_file(made, adapter / "adapter_model.safetensors")
    engine = DrivenEngine(EngineConfig(model=str(base), device="cpu", num_threads=1, max_batch_tokens=40))
    engine.register({"router": adapter})
    for number, prompt in enumerate(PROMPTS):
        engine.submit(f"router-{number}", "router", prompt, GREEDY)
        engine.submit(f"base-{number}", None, prompt, GREEDY)
        engine.step()
    names = [f"{who}-{number}" for who in ("router", "base") for number in range(len(PROMPTS))]
    engine.run_until_ended(names)
    changed = merged(base, tmp_path / "merged", made, use_dora="use_dora" in options)
    for who, reference in (("router", Reference(changed, {})), ("base", Reference(base, {}))):
        for number, prompt in enumerate(PROMPTS):
            answer = engine.tokens(f"{who}-{number}")
            wanted = reference.score(None, prompt, answer).log_softmax(-1)
            events = [event for event in engine.events() if event.request_id == f"{who}-{number}"]
            ours = torch.tensor(
                [[value for _, value in sorted(event.logprobs[0].top)] for event in events if event.logprobs]
            )
            assert (ours - wanted).abs().max() < 1e-3
    assert engine.tokens("router-2") != engine.tokens("base-2")
