"""A model on several ranks answers as on one: all families of the decoder, with adapters of all kinds side by side."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.families import FAMILIES, OWN, adapter_specs
from support.models import adapter_of, model_folder, served_as
from support.ranks import answers, ranked

from lorafleet_inference.config import EngineConfig

SIZE_OF_ALL = 2
MORE_RANKS = ("llama", "mixtral")
"""Also on four, of which two each repeat a key-value head."""
KINDS = ("rank-7",)
MORE_KINDS = {
    "llama": (
        "dora",
        "rank-pattern",
        "lora-bias",
        "bias",
        "head-and-embedding-dora",
        "saved-norm-and-head",
        "more-tokens",
        "activated",
    ),
    "qwen2": ("bias",),
    "gemma3": ("dora",),
    "phi3": ("dora",),
    "mixtral": ("experts", "router-and-experts-apart"),
    "qwen3-moe": ("experts-apart", "experts-down-rslora"),
}
MAX_DIFFERENCE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(family: str, size: int) -> EngineConfig:
    return EngineConfig(
        model=str(model_folder(family)),
        device="cpu",
        decoder="own",
        num_threads=1,
        max_rank=16,
        max_batch_tokens=40,
        cpu_kernels=family == "llama" and size == SIZE_OF_ALL,
    )


def adapters_of(family: str, size: int) -> dict[str, Path]:
    specs = adapter_specs(FAMILIES[family])
    kinds = (*KINDS, *MORE_KINDS.get(family, ()))[: None if size == SIZE_OF_ALL else 2]
    return {kind: served_as(adapter_of(family, kind), specs[kind].rewrite) for kind in kinds}


@pytest.mark.parametrize(
    ("family", "size"),
    [*((name, SIZE_OF_ALL) for name in OWN if name != "phi3-longrope"), *((name, 4) for name in MORE_RANKS)],
)
def test_several_ranks_answer_as_one(family: str, size: int) -> None:
    adapters = adapters_of(family, size)
    wanted = answers(DrivenEngine(config_of(family, size)), adapters)
    with ranked(config_of(family, size), size) as engine:
        found = answers(engine, adapters)
        assert not engine.lost
    for name, (tokens, scores) in wanted.items():
        assert found[name][0] == tokens, name
        assert (found[name][1] - scores).abs().max() < MAX_DIFFERENCE, name
