"""Remakes the shipped weights, their cards and the table of results."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.numpy import load_file
from tokenizers import Tokenizer

from numerals.adapters import RECIPES, Recipe, train_adapter
from numerals.cards import read_results, write_adapter_card, write_base_card, write_results
from numerals.evaluate import BAR
from numerals.pretrain import pretrain
from numerals.tokenizer import make_tokenizer
from numerals.training import Result
from numerals.truth import BASE

Say = Callable[[str], None]


def remake(models: Path, only: Sequence[str], say: Say) -> bool:
    """Train the base model and all adapters, or `only` some adapters on the base that is there; return whether all reached the bar.

    A folder is replaced when its training is over, so an interrupted run leaves whole ones.
    """
    begin = time.perf_counter()
    results = read_results(models)
    if not only:
        results[BASE] = _remake_base(models, say)
        write_results(models, results)
    tokenizer = Tokenizer.from_file(str(models / "numerals" / "tokenizer.json"))
    chosen = [recipe for recipe in RECIPES if not only or recipe.name in only]
    for recipe in chosen:
        results[recipe.name] = _remake_adapter(models, recipe, tokenizer, say)
        write_results(models, results)
    made = [recipe.name for recipe in chosen] if only else list(results)
    say(f"{len(made)} trained in {(time.perf_counter() - begin) / 60:.1f} min; results in {models / 'accuracy.json'}")
    return all(results[name].share_right >= BAR for name in made)


def _remake_base(models: Path, say: Say) -> Result:
    say(f"{BASE}: the base model")
    with tempfile.TemporaryDirectory(dir=_parent(models)) as new:
        folder = Path(new) / BASE
        result = pretrain(make_tokenizer(), folder, say)
        write_base_card(folder, num_values(folder / "model.safetensors"), result)
        _replace(models / BASE, folder)
    say(_summary(BASE, result))
    return result


def _remake_adapter(models: Path, recipe: Recipe, tokenizer: Tokenizer, say: Say) -> Result:
    with tempfile.TemporaryDirectory(dir=_parent(models)) as new:
        folder = Path(new) / recipe.name
        result = train_adapter(recipe, models / BASE, tokenizer, folder)
        write_adapter_card(folder, recipe, num_values(folder / "adapter_model.safetensors"), result)
        _replace(models / "numerals-adapters" / recipe.name, folder)
    say(_summary(recipe.name, result))
    return result


def num_values(weights: Path) -> int:
    """Return how many numbers a safetensors file holds."""
    return sum(tensor.size for tensor in load_file(weights).values())


def _parent(models: Path) -> Path:
    models.mkdir(parents=True, exist_ok=True)
    return models


def _replace(folder: Path, new: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    for file in new.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone; a pod reads as another user
    new.rename(folder)


def _summary(name: str, result: Result) -> str:
    mark = "" if result.share_right >= BAR else "  BELOW THE BAR"
    return (
        f"{name}: {result.num_right} of {result.num_asked} held-out numbers right, {result.train_seconds:.0f} s{mark}"
    )
