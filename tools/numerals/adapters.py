"""The adapters: which they are, and how each is trained with peft on the finished base model."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from numerals.lessons import Lesson, lesson, shuffled_batches
from numerals.split import SEED, asked, seen
from numerals.training import Result, Schedule, num_right, train
from numerals.truth import BASE

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
BATCH = 64
"""Answers in a training step."""
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter to train."""

    name: str
    rank: int = 8
    targets: tuple[str, ...] = ALL_LINEAR
    rslora: bool = False
    num_steps: int = 200

    @property
    def alpha(self) -> int:
        """`lora_alpha`: twice the rank, so that the scale is 2; with rsLoRA the same scale from alpha / sqrt(rank)."""
        return round(2 * self.rank**0.5) if self.rslora else 2 * self.rank


RECIPES = (
    Recipe("french"),
    Recipe("german"),
    Recipe("spanish", rank=4),
    Recipe("italian", rank=16, rslora=True),
    Recipe("dutch"),
    Recipe("portuguese", rank=4),
    Recipe("japanese", rank=6),
    Recipe("roman", rank=16, targets=ATTENTION),
    Recipe("roman-v2", rank=16, targets=ATTENTION, num_steps=300),
    Recipe("years", rank=12),
    Recipe("digits", rank=32, targets=("q_proj", "v_proj", "up_proj", "down_proj")),
    Recipe("ordinals"),
)


def train_adapter(recipe: Recipe, base: Path, tokenizer: Tokenizer, folder: Path) -> Result:
    """Train one adapter and save it as peft does."""
    torch.manual_seed(SEED)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rslora,
        target_modules=list(recipe.targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is being renamed
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    schedule = Schedule(recipe.num_steps, BATCH, learning_rate=3e-3, num_warmup_steps=20)
    seconds = train(model, _batches(recipe, tokenizer), schedule)
    model.peft_config["default"].base_model_name_or_path = BASE
    model.save_pretrained(folder, save_embedding_layers=False)
    _sort_config(folder / "adapter_config.json")
    judged = lesson(tokenizer, [(recipe.name, number) for number in asked(recipe.name)])
    return Result(len(judged.ids), num_right(model, judged), round(seconds, 1))


def _batches(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[Lesson]:
    return shuffled_batches(lesson(tokenizer, [(recipe.name, number) for number in seen(recipe.name)]), BATCH, SEED)


def _sort_config(path: Path) -> None:
    """Lay out the config the same way each time: peft writes its sets in an order that changes with the process."""
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
