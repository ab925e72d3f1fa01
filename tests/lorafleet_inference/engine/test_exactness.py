"""Greedy tokens of a mixed running batch equal those of transformers + PEFT, one request at a time.

Each answer is scored by the reference, token by token after the tokens before it. If every token is the best one there,
the reference's own greedy answer is the same.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.engines import DrivenEngine
from support.models import FAMILIES, VOCABULARY, Reference, mixed_adapters, model_folder

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams

NUM_TOKENS = 14
TIE = 1e-3
"""Of the gap between the two best logits."""
MAX_TIES = 0.01
MAX_DIFFERENCE = 1e-3
"""Of log-probabilities."""
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, num_logprobs=VOCABULARY)


@dataclass
class Case:
    adapter: str | None
    prompt: tuple[int, ...]


@dataclass
class Family:
    base: Path
    adapters: dict[str, Path]
    cases: dict[str, Case]
    reference: Reference


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    base, adapters = model_folder(request.param), mixed_adapters(request.param)
    rng = random.Random(7)
    shared = tuple(rng.randrange(2, VOCABULARY) for _ in range(48))
    cases = {}
    for adapter in (None, *adapters):
        lengths = (1, 2, 16, 17, 33, rng.randrange(40, 100))
        prompts = [tuple(rng.randrange(2, VOCABULARY) for _ in range(length)) for length in lengths]
        for number, prompt in enumerate([*prompts, shared, (*shared, 5, 6, 7)]):
            cases[f"{adapter}-{number}"] = Case(adapter, prompt)
    return Family(base, adapters, cases, Reference(base, adapters))


def check(engine: DrivenEngine, family: Family) -> None:
    num_ties = 0
    for request_id, case in family.cases.items():
        events = [event for event in engine.events() if event.request_id == request_id]
        assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
        assert events[-1].finish == "length", events[-1]
        answer = engine.tokens(request_id)
        assert len(answer) == NUM_TOKENS
        logits = family.reference.score(case.adapter, case.prompt, answer)
        best = logits.topk(2).values
        num_ties += int((best[:, 0] - best[:, 1] < TIE).sum())
        for position, token in enumerate(answer):
            assert logits[position, token] > best[position, 0] - TIE, f"{request_id}: token {position}"
        ours = torch.tensor([[value for _, value in sorted(event.logprobs[0].top)] for event in events])
        worst = (ours - logits.log_softmax(-1)).abs().max()
        assert worst < MAX_DIFFERENCE, f"{request_id}: log-probabilities differ by {worst}"
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
    request_id = f"{next(iter(family.adapters))}-3"
    case = family.cases[request_id]
    assert engine.tokens(request_id) == family.reference.generate(case.adapter, case.prompt, NUM_TOKENS)


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
