"""Small adapters written without torch, and the facts of a base that they fit."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lorafleet_inference.engine.messages import ModelFacts, ModuleFacts, ModuleKind

HIDDEN, INNER = 16, 24
SHAPES = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, 8), "mlp.down_proj": (INNER, HIDDEN)}
"""Per module of a layer: in and out features."""
MODULES = {f"model.layers.{layer}.{name}": shape for layer in range(3) for name, shape in SHAPES.items()}


def base_facts(**changes: Any) -> ModelFacts:
    """Facts of a base with three layers."""
    fields: dict[str, Any] = {
        "architecture": "TinyForCausalLM",
        "model_type": "tiny",
        "num_layers": 3,
        "vocab_size": 100,
        "max_model_len": 64,
        "dtype": "float32",
        "device": "cpu",
        "eos_token_ids": (1,),
        "modules": tuple(ModuleFacts(name, ModuleKind.LINEAR, *shape) for name, shape in MODULES.items()),
    }
    return ModelFacts(**{**fields, **changes})


def tensors_of(modules: Mapping[str, int], *, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """A and B of modules with their ranks, as peft names them."""
    random = np.random.default_rng(seed)
    made = {}
    for name, rank in modules.items():
        num_in, num_out = MODULES[name]
        made[f"base_model.model.{name}.lora_A.weight"] = random.normal(size=(rank, num_in)).astype(dtype)
        made[f"base_model.model.{name}.lora_B.weight"] = random.normal(size=(num_out, rank)).astype(dtype)
    return made


def write_adapter(
    folder: Path,
    *,
    rank: int = 4,
    targets: Any = ("q_proj", "v_proj", "down_proj"),
    tensors: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write an adapter and return its folder; without `tensors` on all modules that `targets` names by their endings."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = targets if isinstance(targets, str) else list(targets)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
    }
    (folder / "adapter_config.json").write_text(json.dumps({**fields, **config}))
    if tensors is None:
        named = {name: rank for name in MODULES if isinstance(targets, str) or name.rsplit(".", 1)[-1] in targets}
        tensors = tensors_of(named, seed=seed)
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def write_safetensors(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a file with exactly this header (JSON, or bytes as they are) and data; `length`: a lie about the header's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path
