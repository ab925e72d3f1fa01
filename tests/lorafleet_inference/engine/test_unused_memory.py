"""No stale or padded value enters any product: with NaN in all unused memory between steps the answers are the same."""

import random
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.families import FAMILIES, VOCABULARY, adapter_specs
from support.models import model_folder, save_adapter
from support.unused import fill_unused

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams

GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
NUM_BLOCKS = 20
LENGTHS = (1, 15, 16, 17, 50, 33, 90, 2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def adapters(family: str, root: Path) -> Mapping[str, Path]:
    kinds = ["rank-7", "attention-only", "dora", "head"] + ["experts"] * (FAMILIES[family].experts is not None)
    specs = adapter_specs(FAMILIES[family])
    return {kind: save_adapter(model_folder(family), root / f"{family}-{kind}", specs[kind]) for kind in kinds}


@cache
def block_bytes(family: str, dtype: str, kv_dtype: object) -> int:
    budgets = DrivenEngine(config(family, dtype, kv_cache_dtype=kv_dtype)).runner.budgets
    return budgets.kv_cache_bytes // budgets.num_kv_blocks


def config(family: str, dtype: str, **options: object) -> EngineConfig:
    settings = {"max_rank": 16, "max_batch_tokens": 40, "max_model_len": 200, **options}
    return EngineConfig(model=str(model_folder(family)), device="cpu", dtype=dtype, num_threads=1, **settings)  # type: ignore[arg-type]


def answers(engine: DrivenEngine, folders: Mapping[str, Path], *, fill: bool, seed: int) -> list[tuple[int, ...]]:
    """Requests of all adapters join while others run, more than there is memory for; two of three share a beginning."""
    if fill:
        fill_unused(engine)
    engine.register(folders, resident=False)
    rng = random.Random(seed)
    shared = [rng.randrange(2, VOCABULARY) for _ in range(40)]
    names = [None, *folders] * 4
    for number, adapter in enumerate(names):
        own = [rng.randrange(2, VOCABULARY) for _ in range(LENGTHS[number % len(LENGTHS)])]
        engine.submit(str(number), adapter, own if number % 3 == 0 else shared + own, GREEDY)
        if fill:
            fill_unused(engine)
        engine.step()
    ids = [str(number) for number in range(len(names))]
    while set(ids) - {event.request_id for event in engine.events() if event.finish is not None}:
        if fill:
            fill_unused(engine)
        engine.step()
    assert not [event.error for event in engine.events() if event.error is not None]
    return [engine.tokens(request_id) for request_id in ids]


CASES = {
    "llama, kernels": ("llama", "float32", {}),
    "llama, torch": ("llama", "float32", {"cpu_kernels": False}),
    "llama, torch, no prefix caching": ("llama", "float32", {"cpu_kernels": False, "prefix_caching": False}),
    "llama, kernels, no prefix caching": ("llama", "float32", {"prefix_caching": False}),
    "llama, 8 bits, kernels": ("llama", "float32", {"kv_cache_dtype": "fp8"}),
    "windows and softcap, 8 bits, torch": ("gemma2", "float32", {"kv_cache_dtype": "fp8", "cpu_kernels": False}),
    "windows and softcap, kernels": ("gemma2", "float32", {}),
    "windows and softcap, torch": ("gemma2", "float32", {"cpu_kernels": False}),
    "alibi, kernels": ("falcon-alibi", "float32", {}),
    "alibi, torch": ("falcon-alibi", "float32", {"cpu_kernels": False}),
    "experts, kernels": ("mixtral", "float32", {}),
    "experts, torch": ("mixtral", "float32", {"cpu_kernels": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_nan_in_all_unused_memory_changes_no_answer(case: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    family, dtype, options = CASES[case]
    folders = adapters(family, tmp_path_factory.getbasetemp())
    size = block_bytes(family, dtype, options.get("kv_cache_dtype", "auto"))
    options = {"kv_cache_memory_bytes": NUM_BLOCKS * size, "max_resident_adapters": 3, **options}
    found = []
    for fill in (False, True):
        engine = DrivenEngine(config(family, dtype, **options))
        found.append(answers(engine, folders, fill=fill, seed=len(case)))
        assert engine.num_preempted > 0, "memory was never short"
    assert found[0] == found[1]
    assert len(set(found[0])) > len(found[0]) // 2
