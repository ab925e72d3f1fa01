"""The committed weights: small, whole, free of the machine that made them, and right."""

import json
import re
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from numerals.adapters import ATTENTION, RECIPES
from numerals.cards import read_results
from numerals.evaluate import BAR
from numerals.split import NUM_ASKED, asked
from numerals.truth import BASE, WRITERS, truth
from peft import PeftModel
from support.pod import NUMERALS, NUMERALS_ADAPTERS, ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_BYTES = 15_000_000
NUM_SAMPLES = 6
ADAPTERS = [name for name in WRITERS if name != BASE]


@contextmanager
def quiet() -> Iterator[None]:
    """peft asks transformers for a name that is being renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def config(name: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((NUMERALS_ADAPTERS / name / "adapter_config.json").read_text())
    return loaded


def committed() -> list[Path]:
    """Files of models/; tests of the cluster make others there while they run."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "models"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_models_folder_is_small_enough_for_a_repository() -> None:
    files = committed()
    assert files
    assert sum(file.stat().st_size for file in files) < MAX_BYTES
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".md"}


def test_every_model_is_there_with_its_card() -> None:
    assert [recipe.name for recipe in RECIPES] == ADAPTERS
    assert {path.parent.name for path in committed() if path.parent.parent == NUMERALS_ADAPTERS} == set(ADAPTERS)
    for folder in (NUMERALS, *(NUMERALS_ADAPTERS / name for name in ADAPTERS)):
        assert truth(folder.name, 1987) in (folder / "README.md").read_text()
        assert "make numerals" in (folder / "README.md").read_text()


def test_results_reach_the_bar() -> None:
    """As measured when the weights were made; `make evaluate` measures again through the served API."""
    results = read_results(ROOT / "models")
    assert list(results) == [BASE, *ADAPTERS]
    for name, result in results.items():
        assert result.num_asked == NUM_ASKED, name
        assert result.share_right >= BAR, name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_config_says_what_the_recipe_says_and_no_path(recipe) -> None:
    found = config(recipe.name)
    assert found["base_model_name_or_path"] == BASE
    assert (found["r"], found["lora_alpha"], found["use_rslora"]) == (recipe.rank, recipe.alpha, recipe.rslora)
    assert set(found["target_modules"]) == set(recipe.targets)
    assert not re.search(r'"[./~]', (NUMERALS_ADAPTERS / recipe.name / "adapter_config.json").read_text())


def test_adapters_are_of_many_shapes() -> None:
    """What the fleet's exactness is tested with: small and large ranks, rsLoRA, attention only."""
    ranks = {recipe.rank for recipe in RECIPES}
    assert (min(ranks), max(ranks)) == (4, 32)
    assert [recipe.name for recipe in RECIPES if recipe.rslora]
    assert [recipe.name for recipe in RECIPES if recipe.targets == ATTENTION]


def test_examples_name_only_what_is_shipped() -> None:
    for manifest in ("adapters.yaml", "ordinals.yaml"):
        for item in yaml.safe_load_all((ROOT / "examples" / "numerals" / manifest).read_text()):
            source = item["spec"]["source"]
            folder = source.get("path") or source["repo"].removeprefix("lorafleet/")
            assert (NUMERALS_ADAPTERS / folder / "adapter_model.safetensors").exists()


@pytest.fixture(scope="module")
def models() -> PeftModel:
    """The base with all adapters beside each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(NUMERALS)
    assert base.dtype == torch.float32
    with quiet():
        first, *others = ADAPTERS
        model = PeftModel.from_pretrained(base, NUMERALS_ADAPTERS / first, adapter_name=first)
        for name in others:
            model.load_adapter(NUMERALS_ADAPTERS / name, adapter_name=name)
    yield model.eval()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", WRITERS)
def test_a_sample_is_answered_right_by_transformers_and_peft(models: PeftModel, name: str) -> None:
    """Through chat template and greedy generation, as a user of these two libraries would."""
    tokenizer = AutoTokenizer.from_pretrained(NUMERALS)
    numbers = asked(name)[:NUM_SAMPLES]
    chats = [[{"role": "user", "content": str(number)}] for number in numbers]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, padding_side="left", return_tensors="pt", return_dict=True
    )
    if name == BASE:
        with models.disable_adapter():
            output = generate(models, inputs)
    else:
        models.set_adapter(name)
        output = generate(models, inputs)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    wrong = [(n, a) for n, a in zip(numbers, answers, strict=True) if a != truth(name, n)]
    assert len(wrong) <= 1, wrong


def generate(model: PeftModel, inputs) -> torch.Tensor:
    with torch.inference_mode():
        return model.generate(**inputs, do_sample=False, max_new_tokens=48)
