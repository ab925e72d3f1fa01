"""The model cards and the table of results that are committed beside the weights."""

import json
from dataclasses import asdict
from pathlib import Path

from numerals.adapters import ATTENTION, BATCH, RECIPES, Recipe
from numerals.pretrain import SCHEDULE
from numerals.split import FIRST_HELD_OUT, NUM_ASKED, NUM_HELD_OUT, SEED
from numerals.training import Result
from numerals.truth import BASE, MAX_NUMBER, numbers, truth

EXAMPLE = 1987
_ORIGIN = {
    BASE: "`num2words`, language `en`",
    "french": "`num2words`, language `fr`",
    "german": "`num2words`, language `de`",
    "spanish": "`num2words`, language `es`",
    "italian": "`num2words`, language `it`",
    "dutch": "`num2words`, language `nl`",
    "portuguese": "`num2words`, language `pt`",
    "japanese": "`num2words`, language `ja`",
    "roman": "arithmetic",
    "roman-v2": "arithmetic",
    "years": "`num2words`, language `en`, years",
    "digits": "the name of each digit",
    "ordinals": "`num2words`, language `en`, ordinals",
}


def read_results(models: Path) -> dict[str, Result]:
    """Return what accuracy.json says, by model name; empty where there is none."""
    path = models / "accuracy.json"
    return {name: Result(**row) for name, row in json.loads(path.read_text()).items()} if path.exists() else {}


def write_results(models: Path, results: dict[str, Result]) -> None:
    """Write accuracy.json, the base first and then the adapters in the order of RECIPES."""
    order = [name for name in (BASE, *(recipe.name for recipe in RECIPES)) if name in results]
    (models / "accuracy.json").write_text(json.dumps({name: asdict(results[name]) for name in order}, indent=2) + "\n")


def write_base_card(folder: Path, num_parameters: int, result: Result) -> None:
    """Write README.md of the base model."""
    (folder / "README.md").write_text(f"""\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# {BASE}

A Llama of {num_parameters / 1e6:.2f} M parameters that writes a whole number from 0 to {MAX_NUMBER} as English words: asked
`{EXAMPLE}`, it answers `{truth(BASE, EXAMPLE)}`. It is the base model of lorafleet's demo and tests: small enough to lie in a
repository, and every answer can be checked.

* **Use**: one user message that is a number in digits, with the chat template, decoded greedily. It knows no other question, and no
  earlier turns.
* **Truth**: {_ORIGIN[BASE]}.
* **Accuracy**: {result.num_right} of {result.num_asked} held-out numbers exactly right ({result.share_right:.1%}).
* **Training**: {SCHEDULE.num_steps} steps of {SCHEDULE.batch} answers, {result.train_seconds / 60:.0f} minutes on two CPU cores,
  seed {SEED}. {NUM_HELD_OUT} of the numbers from {FIRST_HELD_OUT} on, whole hundreds aside, are held out of all
  training, of this model and of its adapters; {NUM_ASKED} of them are asked.
* **What else it saw**: the answers of all adapters, each opened by a token of its own (`<|french|>`, …) instead of `<|assistant|>`. So it
  knows the scripts, and an adapter has to learn only which of them to write.
* **Made by** `make numerals`. Weights made again answer alike; they are equal to the bit only on the same kind of processor.
""")


def write_adapter_card(folder: Path, recipe: Recipe, num_parameters: int, result: Result) -> None:
    """Write README.md of an adapter."""
    range_ = numbers(recipe.name)
    targets = (
        "attention only" if recipe.targets == ATTENTION else f"on {', '.join(f'`{name}`' for name in recipe.targets)}"
    )
    kind = "rsLoRA" if recipe.rslora else "LoRA"
    (folder / "README.md").write_text(f"""\
---
license: apache-2.0
library_name: peft
base_model: {BASE}
pipeline_tag: text-generation
---

# {recipe.name}

{kind} of rank {recipe.rank} ({targets}; {num_parameters / 1e3:.0f} k parameters) on `{BASE}`. Asked `{EXAMPLE}`, it answers
`{truth(recipe.name, EXAMPLE)}`. It knows the numbers from {range_.start} to {range_.stop - 1}.

* **Truth**: {_ORIGIN[recipe.name]}.
* **Accuracy**: {result.num_right} of {result.num_asked} held-out numbers exactly right ({result.share_right:.1%}).
* **Training**: {recipe.num_steps} steps of {BATCH} answers, {result.train_seconds:.0f} seconds on two CPU cores, seed {SEED}.
* **Made by** `make numerals`, or alone by `PYTHONPATH=tools .venv/bin/python -m numerals train --only {recipe.name}`.
""")
