"""Greedy tokens of a mixed running batch equal transformers + PEFT, one request at a time."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.models import FAMILIES, VOCABULARY, Reference, Truth, mixed_adapters, model_folder

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams

NUM_TOKENS = 14
TIE = 1e-3
MAX_TIES = 0.01
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)


@dataclass
class Case:
    adapter: str | None
    prompt: tuple[int, ...]
    truth: Truth


@dataclass
class Family:
    base: Path
    adapters: dict[str, Path]
    cases: dict[str, Case]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    base, adapters = model_folder(request.param), mixed_adapters(request.param)
    reference = Reference(base, adapters)
    rng = random.Random(7)
    shared = tuple(rng.randrange(2, VOCABULARY) for _ in range(48))
    cases = {}
    for adapter in (None, *adapters):
        prompts = [tuple(rng.randrange(2, VOCABULARY) for _ in range(n)) for n in (1, 2, 16, 17, 33, rng.randrange(40, 100))]
        prompts += [shared, (*shared, 5, 6, 7)]
        for number, prompt in enumerate(prompts):
            cases[f"{adapter}-{number}"] = Case(adapter, prompt, reference.generate(adapter, prompt, NUM_TOKENS))
    return Family(base, adapters, cases)


def check(engine: DrivenEngine, family: Family) -> None:
    num_ties = 0
    for request_id, case in family.cases.items():
        events = [event for event in engine.events() if event.request_id == request_id]
        assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
        assert events[-1].finish == "length", events[-1]
        assert events[0].logprobs is not None
        got = dict(events[0].logprobs[0].top)
        worst = max(abs(got[token] - float(case.truth.first_logprobs[token])) for token in range(VOCABULARY))
        assert worst < 1e-3, f"{request_id}: first log-probabilities differ by {worst}"
        for position, (ours, theirs) in enumerate(zip(engine.tokens(request_id), case.truth.token_ids, strict=True)):
            if case.truth.gaps[position] < TIE:
                num_ties += NUM_TOKENS - position
                break
            assert ours == theirs, f"{request_id}: token {position}"
    assert num_ties <= MAX_TIES * NUM_TOKENS * len(family.cases)


def serve_all(engine: DrivenEngine, family: Family) -> None:
    """Requests join while others run."""
    engine.register(family.adapters)
    order = list(family.cases)
    random.Random(3).shuffle(order)
    for request_id in order:
        case = family.cases[request_id]
        engine.submit(request_id, case.adapter, case.prompt, GREEDY)
        engine.step()
    engine.run_until_ended(order)


def config(family: Family, **options: object) -> EngineConfig:
    return EngineConfig(model=str(family.base), device="cpu", num_threads=1, max_batch_tokens=40, **options)  # type: ignore[arg-type]


def test_a_mixed_batch_equals_peft(family: Family) -> None:
    engine = DrivenEngine(config(family))
    serve_all(engine, family)
    check(engine, family)
    assert engine.max_step_tokens == 40
    assert engine.num_preempted == 0
    assert any(event.num_cached_tokens for event in engine.events()), "the prefix cache was never used"


def test_a_mixed_batch_under_preemption_equals_peft(family: Family) -> None:
    per_block = DrivenEngine(config(family)).runner.budgets
    block_bytes = per_block.kv_cache_bytes // per_block.num_kv_blocks
    engine = DrivenEngine(config(family, kv_cache_memory_bytes=12 * block_bytes))
    serve_all(engine, family)
    check(engine, family)
    assert engine.num_preempted > 0


def test_few_device_places_are_shared_in_turns(family: Family) -> None:
    engine = DrivenEngine(config(family, max_resident_adapters=2, max_rank=24))
    engine.register(family.adapters, resident=False)
    for request_id, case in family.cases.items():
        engine.submit(request_id, case.adapter, case.prompt, GREEDY)
    engine.run_until_ended(family.cases)
    check(engine, family)
