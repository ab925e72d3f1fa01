"""How much of the weights has been read is told while they are read, of each kind of base and by the slowest of ranks."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.models import model_folder
from support.ranks import ranked

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.model.base_files import check_weights
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.reading import Reading, Slowest, sizes_of


def test_each_per_cent_is_told_once_and_tensors_count_by_their_bytes() -> None:
    told: list[int] = []
    reading = Reading({"small": 10, "large": 89, "last": 1}, told.append)
    for names in (["small"], ["small", "nobody"], ["large"]):
        reading.have_read(names)
    assert told == [0, 10, 99]
    reading.end()
    reading.end()
    assert told == [0, 10, 99, 100]


def test_a_base_without_weights_is_read_at_once() -> None:
    told: list[int] = []
    Reading({}, told.append).end()
    assert told == [0, 100]


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert sizes_of(check_weights(tmp_path)) == {"a": 60, "b": 14}


@pytest.mark.parametrize(
    ("family", "quantization"), [("llama", None), ("gpt2", None), ("mixtral", None), ("llama", "int8")]
)
def test_what_is_told_while_a_base_is_loaded(family: str, quantization: str | None) -> None:
    folder, told = model_folder(family), list[int]()
    config = EngineConfig(
        model=str(folder), device="cpu", num_threads=1, cpu_kernels=False, quantization=quantization
    )  # fmt: skip
    load_model(config, tell=told.append)
    assert (told[0], told[-1]) == (0, 100)
    assert told == sorted(set(told))
    assert max(after - before for before, after in pairwise(told)) <= 50, "no parameter is more than half of them"


def test_the_slowest_rank_counts() -> None:
    told: list[int] = []
    slowest = Slowest(2, told.append)
    for rank, percent in ((0, 0), (1, 0), (0, 60), (1, 30), (1, 90), (0, 100), (1, 100)):
        slowest.tell(rank, percent)
    assert told == [0, 30, 60, 90, 100]


def test_ranks_tell_together() -> None:
    told: list[int] = []
    config = EngineConfig(model=str(model_folder("llama")), device="cpu", decoder="own", max_rank=8, cpu_kernels=False)
    with ranked(config, 2, tell=told.append):
        assert (told[0], told[-1]) == (0, 100)
        assert told == sorted(set(told))
