"""An adapter is loaded on all ranks or on none, and what only the first rank computes is as of one."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engines import DrivenEngine, key_of
from support.models import adapter_of, model_folder
from support.ranks import RankedEngine, ranked

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import DeviceTier, Pooling, RegisterAdapter, SamplingParams
from lorafleet_inference.errors import AdapterError

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=12, temperature=1.5, seed=7, ignore_eos=True, prompt_logprobs=3)
CONFIG = EngineConfig(model="", device="cpu", decoder="own", num_threads=1, max_rank=16, cpu_kernels=False)
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def config() -> EngineConfig:
    return replace(CONFIG, model=str(model_folder("llama")))


@pytest.fixture(scope="module")
def shared(config: EngineConfig) -> Iterator[RankedEngine]:
    with ranked(replace(config, speculative_tokens=4), 2) as engine:
        yield engine
        assert not engine.lost


@pytest.fixture(scope="module")
def one(config: EngineConfig) -> DrivenEngine:
    return DrivenEngine(config)


def answer(engine: DrivenEngine, name: str, adapter: str | None) -> tuple[int, ...]:
    engine.submit(name, adapter, (5, 6, 7, 8), GREEDY)
    engine.run_until_ended([name])
    return engine.tokens(name)


def load(engine: DrivenEngine, name: str, folder: Path) -> None:
    engine.inbox.put(RegisterAdapter(key_of(name), str(folder), resident=True))
    wait_for(
        lambda: any(one.key == key_of(name) and one.tier is DeviceTier.DEVICE for one in engine.statuses()), engine
    )


def wait_for(condition: Callable[[], bool], engine: DrivenEngine | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        if engine is not None:
            engine.step()
        time.sleep(0.01)


def broken_beyond(folder: Path, place: Path, first: int) -> Path:
    """Return a copy of an adapter one of whose B has a value that is not finite, in the row `first`."""
    shutil.copytree(folder, place)
    tensors = load_file(place / "adapter_model.safetensors")
    key = next(key for key in sorted(tensors) if "q_proj.lora_B" in key)
    tensors[key][first, 0] = torch.nan
    save_file(tensors, place / "adapter_model.safetensors")
    return place


@pytest.mark.parametrize(("row", "named"), [(31, "rank 1: "), (3, "")])
def test_an_adapter_that_one_rank_cannot_load_is_loaded_on_none(
    shared: RankedEngine, one: DrivenEngine, tmp_path: Path, row: int, named: str
) -> None:
    name = f"broken-{row}"
    folder = broken_beyond(adapter_of("llama", "dora"), tmp_path / name, row)
    shared.inbox.put(RegisterAdapter(key_of(name), str(folder), resident=True))
    wait_for(lambda: any(status.key == key_of(name) and status.reason for status in shared.statuses()), shared)
    status = next(status for status in shared.statuses() if status.key == key_of(name) and status.reason)
    assert status.reason is Reason.ARTIFACT_INVALID
    assert status.message.startswith(f"{named}tensor ")
    assert "q_proj.lora_B" in status.message
    good = f"good-{row}"
    for engine in (shared, one):
        load(engine, good, adapter_of("llama", "dora"))
    assert answer(shared, f"{good}-answer", good) == answer(one, f"{good}-answer", good)


def test_a_slow_rank_fails_the_adapter_by_name_and_what_it_says_late_is_passed_over(
    shared: RankedEngine, one: DrivenEngine
) -> None:
    folder = adapter_of("llama", "rank-7")
    plan = inspect_adapter(folder, shared.runner.facts, max_rank=16)
    loads, pid = shared.runner._loads, shared.ranks[0].process.pid
    limit = loads._limit_seconds
    loads._limit_seconds = 0.3
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(AdapterError, match=r"rank 1 did not do its part in 0\.3 seconds") as caught:
            shared.runner.load_slab(plan)
        with pytest.raises(AdapterError, match="rank 1 did not do its part"):
            shared.runner.load_slab(plan)
    finally:
        os.kill(pid, signal.SIGCONT)
        loads._limit_seconds = limit
    assert caught.value.reason is Reason.LOAD_FAILED
    for engine in (shared, one):
        load(engine, "slow", folder)
    assert answer(shared, "slow-answer", "slow") == answer(one, "slow-answer", "slow")


def test_an_adapter_that_one_rank_cannot_copy_is_on_no_device(shared: RankedEngine) -> None:
    plan = inspect_adapter(adapter_of("llama", "rank-7"), shared.runner.facts, max_rank=16)
    slab = shared.runner.load_slab(plan)
    key = key_of("not-copied")
    with pytest.raises(AdapterError, match="rank 1: KeyError"):
        shared.runner.install(key, tuple(range(shared.runner.num_pages(plan))), replace(slab, number=-1))
    assert key not in shared.runner._runner._adapters.bank._resident


def test_what_nobody_needs_any_more_is_dropped_by_all_ranks(shared: RankedEngine) -> None:
    plan = inspect_adapter(adapter_of("llama", "rank-7"), shared.runner.facts, max_rank=16)
    first = shared.runner.load_slab(plan)
    number = first.number
    shared.runner.drop_slab(first)
    second = shared.runner.load_slab(plan)
    pages = tuple(range(shared.runner.num_pages(plan)))
    with pytest.raises(AdapterError, match=f"rank 1: KeyError: {number}"):
        shared.runner.install(key_of("dropped"), pages, replace(second, number=number))


def test_sampled_tokens_scores_and_embeddings_are_those_of_one_rank(shared: RankedEngine, one: DrivenEngine) -> None:
    found = []
    for engine in (shared, one):
        engine.submit("drawn", None, range(5, 60), DRAWN)
        engine.embed("embedded", None, range(5, 60), Pooling())
        engine.run_until_ended(["drawn", "embedded"])
        scores = [event.prompt_logprobs for event in engine.events() if event.prompt_logprobs]
        vectors = [event.embedding for event in engine.events() if event.embedding is not None]
        found.append((engine.tokens("drawn"), scores, torch.from_numpy(np.frombuffer(vectors[-1], np.float32).copy())))
    (tokens, scores, vector), (right, right_scores, right_vector) = found
    assert tokens == right
    chosen, right_chosen = ([one.chosen for event in some for one in event] for some in (scores, right_scores))
    assert torch.allclose(torch.tensor(chosen), torch.tensor(right_chosen), atol=1e-4)
    assert torch.allclose(vector, right_vector, atol=1e-4)


def test_drafts_are_checked_by_all_ranks(shared: RankedEngine, one: DrivenEngine) -> None:
    for engine in (shared, one):
        engine.submit("repeated", None, (5, 6) * 15, GREEDY)
        engine.run_until_ended(["repeated"])
    drafted = [event.num_draft_tokens for event in shared.events() if event.request_id == "repeated"]
    assert sum(drafted) > 0
    assert shared.tokens("repeated") == one.tokens("repeated")
