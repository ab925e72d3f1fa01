"""Remakes the shipped weights, their cards and the table of results."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.numpy import load_file
from tokenizers import Tokenizer

from numerals.adapters import RECIPES, train_adapter
from numerals.cards import read_results, write_adapter_card, write_base_card, write_results
from numerals.evaluate import BAR
from numerals.pretrain import pretrain
from numerals.tokenizer import make_tokenizer
from numerals.training import Result
from numerals.truth import BASE

ADAPTERS = f"{BASE}-adapters"
Say = Callable[[str], None]


def remake(models: Path, only: Sequence[str], say: Say) -> bool:
    """Train the base model and all adapters, or `only` some adapters on the base that is there; return whether all reached the bar.

    What is there is replaced when all is trained: an interrupted run changes nothing, and adapters never stand beside another base than
    theirs.
    """
    begin = time.perf_counter()
    making = models / ".making"
    shutil.rmtree(making, ignore_errors=True)
    made: dict[str, Result] = {}
    if not only:
        made[BASE] = _make_base(making / BASE, say)
    base = making / BASE if BASE in made else models / BASE
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    for recipe in RECIPES:
        if recipe.name in only or not only:
            folder = making / ADAPTERS / recipe.name
            made[recipe.name] = result = train_adapter(recipe, base, tokenizer, folder)
            write_adapter_card(folder, recipe, num_values(folder / "adapter_model.safetensors"), result)
            say(_summary(recipe.name, result))
    _install(making, models)
    write_results(models, read_results(models) | made)
    say(f"{len(made)} trained in {(time.perf_counter() - begin) / 60:.1f} min; results in {models / 'accuracy.json'}")
    return all(result.share_right >= BAR for result in made.values())


def num_values(weights: Path) -> int:
    """Return how many numbers a safetensors file holds."""
    return sum(tensor.size for tensor in load_file(weights).values())


def _make_base(folder: Path, say: Say) -> Result:
    say(f"{BASE}: the base model")
    result = pretrain(make_tokenizer(), folder, say)
    write_base_card(folder, num_values(folder / "model.safetensors"), result)
    say(_summary(BASE, result))
    return result


def _install(making: Path, models: Path) -> None:
    for config in [*making.glob("*/config.json"), *making.glob("*/*/adapter_config.json")]:
        new = config.parent
        old = models / new.relative_to(making)
        shutil.rmtree(old, ignore_errors=True)
        old.parent.mkdir(parents=True, exist_ok=True)
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner alone; a pod reads as another user
        new.rename(old)
    shutil.rmtree(making)


def _summary(name: str, result: Result) -> str:
    mark = "" if result.share_right >= BAR else "  BELOW THE BAR"
    return (
        f"{name}: {result.num_right} of {result.num_asked} held-out numbers right, {result.train_seconds:.0f} s{mark}"
    )
