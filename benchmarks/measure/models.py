"""Random Llamas of known sizes and random adapters for them, made once and kept in a folder."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from measure.sizes import SIZES
from measure.tokenizer import tokenizer

MAX_MODEL_LEN = 2048
DONE = "complete"
"""A file that is written last: a folder without it was interrupted."""


def make_model(name: str, folder: Path, dtype: str, *, max_model_len: int = MAX_MODEL_LEN) -> Path:
    """Return the folder of a random model of one of SIZES with a tokenizer, made if it is not there."""
    path = folder / f"llama-{name}-{dtype}{'' if max_model_len == MAX_MODEL_LEN else f'-{max_model_len}'}"
    if (path / DONE).exists():
        return path
    shutil.rmtree(path, ignore_errors=True)
    size = SIZES[name]
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=max_model_len,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(path)
    tokenizer(size.vocabulary).save(str(path / "tokenizer.json"))
    (path / DONE).touch()
    return path


def first_layers(model: Path, number: int, folder: Path) -> Path:
    """Return the folder of a model of the first layers of another, with its embedding and head."""
    path = folder / f"{model.name}-first-{number}"
    if not (path / DONE).exists():
        shutil.rmtree(path, ignore_errors=True)
        whole = AutoModelForCausalLM.from_pretrained(model)
        whole.model.layers = whole.model.layers[:number]
        whole.config.num_hidden_layers = number
        whole.save_pretrained(path)
        shutil.copy(model / "tokenizer.json", path)
        (path / DONE).touch()
    return path


def with_later_layers(model: Path, number: int, share: float, folder: Path) -> Path:
    """Return the folder of a model whose layers behind the first `number` add `share` of what those of `model` add.

    Its first layers alone then draw what it draws about as often as a small model of the same training does: with 0 always.
    """
    path = folder / f"{model.name}-{number}-later-{share}"
    if not (path / DONE).exists():
        shutil.rmtree(path, ignore_errors=True)
        whole = AutoModelForCausalLM.from_pretrained(model)
        with torch.no_grad():
            for layer in whole.model.layers[number:]:
                layer.self_attn.o_proj.weight.mul_(share)
                layer.mlp.down_proj.weight.mul_(share)
        whole.save_pretrained(path)
        shutil.copy(model / "tokenizer.json", path)
        (path / DONE).touch()
    return path


def make_adapters(model: Path, number: int, folder: Path, *, rank: int) -> list[Path]:
    """Return the folders of so many distinct all-linear adapters, made if they are not there."""
    config = LlamaConfig.from_pretrained(model)
    folders = []
    for index in range(number):
        path = folder / f"{model.name}-rank{rank}" / f"a{index:03}"
        folders.append(path)
        if not (path / DONE).exists():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            _save_adapter(config, path, rank, index)
            (path / DONE).touch()
    return folders


def _save_adapter(config: LlamaConfig, path: Path, rank: int, seed: int) -> None:
    width = config.hidden_size
    kv_width = width * config.num_key_value_heads // config.num_attention_heads
    modules = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, kv_width),
        "self_attn.v_proj": (width, kv_width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, config.intermediate_size),
        "mlp.up_proj": (width, config.intermediate_size),
        "mlp.down_proj": (config.intermediate_size, width),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for name, (inner, outer) in modules.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, inner, generator=generator) * inner**-0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(outer, rank, generator=generator) * 0.02
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(name.rpartition(".")[2] for name in modules),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    (path / "adapter_config.json").write_text(json.dumps(adapter, indent=2))
