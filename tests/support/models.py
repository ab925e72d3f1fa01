"""Tiny random models and adapters, and what transformers + PEFT answer with them, one request at a time.

Weights are drawn with initializer_range 0.2: at the usual 0.02 the logits of a tiny model lie so close together that
many greedy tokens are ties.
"""

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig

VOCABULARY = 211
MAX_MODEL_LEN = 256
_COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_ROPE = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
}
FAMILIES: Mapping[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_ROPE),
    "mistral": MistralConfig(**_ROPE, sliding_window=24),
    "gemma": GemmaConfig(**_ROPE, head_dim=16),
    "gpt2": GPT2Config(**_COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=MAX_MODEL_LEN),
}


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A random adapter to make."""

    rank: int = 8
    targets: str | tuple[str, ...] = "all-linear"
    seed: int = 1
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """More fields of LoraConfig; `lora_alpha` is twice the rank unless named here."""


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="lorafleet-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def model_folder(family: str) -> Path:
    """Return the folder of a tiny random model of one of FAMILIES; made once in a process."""
    return save_model(FAMILIES[family], _root() / family)


@contextmanager
def _quiet() -> Iterator[None]:
    """peft asks transformers for a name that is being renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def save_model(config: PreTrainedConfig, folder: Path, *, seed: int = 0) -> Path:
    """Save a random model of this config, without a tokenizer, and return the folder."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, spec: AdapterSpec) -> Path:
    """Save a random adapter on the model in `base`, strong enough to change most tokens, and return its folder."""
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"lora_alpha": 2 * spec.rank, **spec.options}
    if type(model).__name__.startswith("GPT2"):
        options.setdefault("fan_in_fan_out", True)
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    with _quiet():
        peft = get_peft_model(model, LoraConfig(r=spec.rank, target_modules=targets, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.no_grad():
        for name, parameter in sorted(peft.named_parameters()):
            if "lora_" in name:
                parameter.normal_(std=0.25 / spec.rank**0.5, generator=generator)
    peft.save_pretrained(folder)
    return folder


def mixed_adapters(family: str) -> dict[str, Path]:
    """Return folders of adapters of odd and different ranks, with rsLoRA, patterns and partial targets among them."""
    base = model_folder(family)
    attention, wide = (("c_attn",), "mlp.c_fc") if family == "gpt2" else (("q_proj", "v_proj"), "down_proj")
    specs = {
        "seven": AdapterSpec(rank=7, seed=1),
        "sixteen": AdapterSpec(rank=16, seed=2),
        "one": AdapterSpec(rank=1, seed=3, options={"lora_alpha": 3}),
        "rslora": AdapterSpec(rank=9, seed=4, options={"use_rslora": True, "lora_alpha": 5}),
        "patterns": AdapterSpec(rank=5, seed=5, options={"rank_pattern": {wide: 12}, "alpha_pattern": {wide: 30}}),
        "attention": AdapterSpec(rank=8, targets=attention, seed=6),
        "one-layer": AdapterSpec(rank=24, targets=attention, seed=7, options={"layers_to_transform": [1]}),
    }
    folders = {}
    for name, spec in specs.items():
        folder = _root() / f"{family}-adapters" / name
        folders[name] = folder if folder.exists() else save_adapter(base, folder, spec)
    return folders


class Reference:
    """transformers + PEFT in float32, one request at a time."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        self._base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        with _quiet():
            self._adapted = {
                name: PeftModel.from_pretrained(
                    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder
                ).eval()
                for name, folder in adapters.items()
            }

    @torch.inference_mode()
    def score(self, adapter: str | None, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Return the logits that choose each token of the answer, after the true tokens before: [answer, vocabulary]."""
        model = self._base if adapter is None else self._adapted[adapter]
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()

    @torch.inference_mode()
    def generate(self, adapter: str | None, prompt: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        """Return the greedy answer; end tokens do not stop it."""
        model = self._base if adapter is None else self._adapted[adapter]
        ids = torch.tensor([list(prompt)])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        return tuple(out[0, len(prompt) :].tolist())
