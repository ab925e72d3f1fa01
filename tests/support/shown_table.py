"""Writes docs/reference/what-was-shown.md from what tests run and what the loader refuses.

`PYTHONPATH=tests python -m support.shown_table`
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from support.adapter_table import BEGIN, END
from support.families import FAMILIES
from support.models import model_folder
from support.plan_families import PLAN_FAMILIES
from support.quantized import FORMATS
from transformers import AutoModelForCausalLM

from lorafleet_common.errors import ConfigError
from lorafleet_inference.model.base_files import check_weights
from lorafleet_inference.model.quantization.at_load import AtLoad
from lorafleet_inference.model.quantization.loading import quantized_files
from lorafleet_inference.model.quantization.method import QuantizationError
from lorafleet_inference.model.ranks.checks import shard_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "what-was-shown.md"
RANKS = (2, 4)
TAKEN = "taken, not run"


@cache
def _tests(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tests/lorafleet_inference/engine/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cases(file: str, test: str, at: int = 0) -> list[Any]:
    """Return what a test is run with: of its parameters those of the mark `at`."""
    marks = [mark for mark in getattr(_tests(file), test).pytestmark if mark.name == "parametrize"]
    return list(marks[at].args[1])


def ranks_table() -> str:
    """A row for each family, a column for each number of ranks."""
    test = "test_several_ranks_answer_as_one"
    run = {tuple(case) for case in (*_cases("test_ranks", test), *_cases("test_rank_plans", test))}
    lines = []
    for name, family in FAMILIES.items():
        cells = []
        for size in RANKS:
            try:
                shard_of(family.config, 0, size)
                cells.append("**run**" if (name, size) in run else TAKEN)
            except ConfigError as error:
                assert (name, size) not in run
                cells.append(f"refused: {error.problem.partition(' ranks: ')[2]}")
        lines.append([name, "**run**", *cells])
    return _table(["family", "1 rank", *(f"{size} ranks" for size in RANKS)], lines)


def plans_table() -> str:
    """A row for each family that is tested on several ranks alone."""
    quick = _cases("test_rank_plans", "test_two_ranks_of_other_families_answer_as_one")
    lines = []
    for name, family in PLAN_FAMILIES.items():
        for size in RANKS:
            assert shard_of(family.config, 0, size).by_plan
        lines.append([name, "**run**" if name in quick else "run by `make soak`", TAKEN])
    return _table(["family", *(f"{size} ranks" for size in RANKS)], lines)


def quantisation_table() -> str:
    """A row for each family: of checkpoints, and made small at load."""
    experts = _cases("test_quantized", "test_adapters_on_quantised_experts_equal_peft")
    at_load = _cases("test_quantized", "test_adapters_on_a_base_quantised_at_load_equal_peft")
    lines = []
    for name in FAMILIES:
        why = _not_quantised(name)
        if name == "llama":
            cells = ["**run**: all, [below](#formats)", "**run**: all, [below](#formats)"]
        elif why is not None:
            cells = [f"refused: {why}"] * 2
        else:
            formats = ", ".join(f"`{form}`" for family, form in experts if family == name)
            kinds = "**run**" if name in at_load else TAKEN
            cells = [f"**run**: {formats}" if formats else TAKEN, kinds]
        lines.append([name, *cells])
    return _table(["family", "checkpoints that are quantised", "`--quantization`"], lines)


def formats_table() -> str:
    """A row for each form of quantised weights, on Llama."""
    with_adapters = _cases("test_quantized", "test_adapters_on_top_equal_peft", 1)
    assert set(_cases("test_quantized", "test_each_format_is_read_to_the_number")) == set(FORMATS)
    kinds = _cases("test_quantized", "test_quantised_at_load_is_near")
    served = _cases("test_rank_quantized", "test_two_ranks_answer_as_one")
    read = _cases("test_rank_quantized", "test_a_rank_reads_its_part_of_each_format")
    made = _cases("test_rank_quantized", "test_a_rank_has_its_part_of_what_is_quantised_at_load")

    def on_two(name: str, parts: Sequence[str]) -> str:
        return "answers as one rank" if name in served else "its part, bit for bit" if name in parts else TAKEN

    lines = []
    for name in FORMATS:
        one = "read to the number" + (", adapters equal PEFT" if name in with_adapters else "")
        lines.append([f"`{name}`", one, on_two(name, read)])
    lines += [[f"`--quantization {name}`", "near the base in 32 bit", on_two(name, made)] for name in kinds]
    return _table(["form", "1 rank", "2 ranks"], lines)


def _not_quantised(family: str) -> str | None:
    """Return why the loader refuses to have layers of a family quantised; None where it does not."""
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(FAMILIES[family].config)
    files = check_weights(model_folder(family)) if FAMILIES[family].experts else dict.fromkeys(bare.state_dict(), PAGE)
    try:
        quantized_files(bare, AtLoad("int8"), files)
    except QuantizationError as error:
        return str(error)
    return None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rendered() -> str:
    """Return the page with its tables as they should be."""
    text = PAGE.read_text()
    for name, made in (
        ("ranks", ranks_table),
        ("plans", plans_table),
        ("quantisation", quantisation_table),
        ("formats", formats_table),
    ):
        head, rest = text.split(BEGIN.format(name), 1)
        _, tail = rest.split(END, 1)
        text = f"{head}{BEGIN.format(name)}\n{made()}\n{END}{tail}"
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered())
