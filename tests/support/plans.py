"""Plans of adapters that PEFT has just saved, without validation: for tests of the engine alone."""

import json
from pathlib import Path

from peft.utils.other import get_pattern_key
from safetensors import safe_open

from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite

PREFIX, A_END, B_END = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def plan_of(directory: Path) -> AdapterPlan:
    """Read a plan from a folder that `PeftModel.save_pretrained` wrote."""
    config = json.loads((directory / "adapter_config.json").read_text())
    sites = []
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  not a mapping
            if key.endswith(A_END):
                module = key.removeprefix(PREFIX).removesuffix(A_END)
                rank = file.get_slice(key).get_shape()[0]
                pattern = config["alpha_pattern"]
                alpha = pattern.get(get_pattern_key(pattern.keys(), module), config["lora_alpha"])
                scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
                sites.append(LoraSite(module, rank, scale, key, key.removesuffix(A_END) + B_END))
    facts = AdapterFacts(rank=max(site.rank for site in sites), size_bytes=1, target_modules=[])
    sites.sort(key=lambda site: site.module)
    return AdapterPlan(directory, tuple(sites), ("adapter_model.safetensors",), facts)
