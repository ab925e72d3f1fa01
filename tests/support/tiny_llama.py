"""A tiny random Llama with a real tokenizer and chat template, and adapters on it that change every answer."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from support.tokenizers_made import byte_level
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant:{% endif %}"
)
MAX_MODEL_LEN = 256


def make_base(folder: Path) -> LlamaForCausalLM:
    """Save the model to a folder and return it."""
    tokenizer = byte_level()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.2,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
    )
    model = LlamaForCausalLM(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return model


def make_adapter(base: Path, folder: Path, *, rank: int, seed: int) -> None:
    """Save a random LoRA on all linear layers."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is being renamed
        model = get_peft_model(
            LlamaForCausalLM.from_pretrained(base),
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)


def vary_adapter(original: Path, folder: Path, *, seed: int) -> Path:
    """Write a copy of an adapter with other random weights; quick enough for hundreds."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(scale=0.2, size=tensor.shape).astype(tensor.dtype)
        for name, tensor in load_file(original / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    shutil.copy(original / "adapter_config.json", folder / "adapter_config.json")
    return folder
