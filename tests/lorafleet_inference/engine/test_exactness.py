"""Greedy tokens of a mixed running batch equal those of transformers + PEFT, one request at a time.

Each answer is scored by the reference, token by token after the tokens before it. If every token is the best one there,
the reference's own greedy answer is the same.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import support.families
import torch
from support.engines import DEVICE, SMALL, DrivenEngine
from support.families import FAMILIES, FEWER, INVOCATION, MORE, OWN, adapter_specs
from support.models import Reference, adapters_of, model_folder, num_rows_of, served_as

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.model.decoder import Decoder

NUM_TOKENS = 10
TIE = 1e-3
"""Of the gap between the two best logits."""
MAX_TIES = 0.01
MAX_DIFFERENCE = 1e-3
"""Of log-probabilities."""
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True, num_logprobs=MORE)


@dataclass
class Case:
    adapter: str | None
    prompt: tuple[int, ...]


@dataclass
class Family:
    made: support.families.Family
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


LENGTHS = (1, 33, 16, 2, 100, 17, 65, 300, 15, 32, 48)


QUICK = ("gpt2", "llama", "mixtral")
"""Families of `make check`; all together take minutes."""
PARAMS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(FAMILIES)]


@pytest.fixture(scope="module", params=PARAMS)
def family(request: pytest.FixtureRequest) -> Family:
    base, adapters = model_folder(request.param), adapters_of(request.param)
    rng = random.Random(7)
    shared = tuple(rng.randrange(2, FEWER) for _ in range(40))
    lengths = itertools.cycle(LENGTHS)
    cases = {}
    for adapter, folder in {None: None, **adapters}.items():
        size = num_rows_of(folder)
        prompts = [tuple(rng.randrange(2, size) for _ in range(next(lengths))) for _ in range(2)]
        if adapter == "activated":
            some = prompts[0][:120]
            prompts[0] = (*INVOCATION, *some, *INVOCATION, *some[::-1])
        for number, prompt in enumerate([*prompts, (*shared, *INVOCATION, 7)]):
            cases[f"{adapter}-{number}"] = Case(adapter, prompt)
    cases["again"] = Case(None, shared)
    specs = adapter_specs(FAMILIES[request.param])
    served = {name: served_as(folder, specs[name].rewrite) for name, folder in adapters.items()}
    return Family(FAMILIES[request.param], base, served, cases, Reference(base, adapters))


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
        assert ours.shape == logits.shape, f"{request_id}: tokens that are not the adapter's"
        worst = (ours - logits.log_softmax(-1)).abs().max()
        assert worst < MAX_DIFFERENCE, f"{request_id}: log-probabilities differ by {worst}"
    assert num_ties <= MAX_TIES * NUM_TOKENS * len(family.cases)


def serve_all(engine: DrivenEngine, family: Family, *, resident: bool = True) -> None:
    """Requests join while others run."""
    engine.register(family.adapters, resident=resident)
    order = list(family.cases)
    random.Random(3).shuffle(order)
    for request_id in order:
        case = family.cases[request_id]
        engine.submit(request_id, case.adapter, case.prompt, GREEDY)
        engine.step()
    engine.run_until_ended(order)


def engine_of(
    family: Family, *, ahead: bool | None = None, loads_first: bool = False, **options: object
) -> DrivenEngine:
    settings = {"max_rank": 256, "max_batch_tokens": 40, **SMALL, **options}
    config = EngineConfig(model=str(family.base), device=DEVICE, num_threads=1, **settings)  # type: ignore[arg-type]
    return DrivenEngine(config, ahead=ahead, loads_first=loads_first)


def test_a_mixed_batch_equals_peft(family: Family) -> None:
    engine = engine_of(family)
    serve_all(engine, family)
    check(engine, family)
    assert engine.max_step_tokens == 40
    assert any(event.num_cached_tokens for event in engine.events()), "the prefix cache was never used"
    case = family.cases["rank-7-0"]
    assert engine.tokens("rank-7-0") == family.reference.generate(case.adapter, case.prompt, NUM_TOKENS)


@pytest.mark.parametrize(
    "family", [one for one in PARAMS if (one if one in QUICK else one.values[0]) in OWN], indirect=True
)
def test_by_the_other_decoder_it_equals_peft_too(family: Family) -> None:
    """All others of the suite have the one that is chosen without being asked for."""
    chosen = isinstance(engine_of(family).runner._model, Decoder)
    assert chosen == (DEVICE == "cpu")
    engine = engine_of(family, decoder="transformers" if chosen else "own")
    assert isinstance(engine.runner._model, Decoder) != chosen
    serve_all(engine, family)
    check(engine, family)


def test_short_of_memory_and_of_places_it_equals_peft_too(family: Family) -> None:
    check_short_of_memory(family, ahead=None)


@pytest.mark.parametrize("family", ["llama", "mixtral"], indirect=True)
def test_one_step_ahead_it_equals_peft_too(family: Family) -> None:
    """As on a device, also where there is none."""
    check_short_of_memory(family, ahead=True)


def check_short_of_memory(family: Family, *, ahead: bool | None) -> None:
    budgets = engine_of(family).runner.budgets
    block_bytes = budgets.kv_cache_bytes // budgets.num_kv_blocks
    memory = 24 * block_bytes
    engine = engine_of(family, ahead=ahead, loads_first=True, kv_cache_memory_bytes=memory, max_resident_adapters=5)
    serve_all(engine, family, resident=False)
    check(engine, family)
    assert engine.num_preempted > 0
    assert engine.most_in_flight == engine.runner.ahead
