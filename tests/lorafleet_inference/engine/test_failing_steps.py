"""A step that raises ends the requests that raise alone, and the engine only where nothing can be computed any more."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import torch
from support.engines import DrivenEngine
from support.families import VOCABULARY
from support.models import adapters_of, model_folder
from support.rows import KnownRequests

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import InFlight, SamplingState, StepPlan, StepResult
from lorafleet_inference.engine.steps import MAX_FAILED_STEPS, StepFailed
from lorafleet_inference.engine.token_events import FinishReason

TRAP = 3
ADAPTERS = (None, "rank-7", "dora")
GREEDY = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True, logit_bias=((TRAP, -100.0),))
SAMPLING = (
    GREEDY,
    msgspec.structs.replace(GREEDY, temperature=1.0, seed=7, num_logprobs=2),
    msgspec.structs.replace(GREEDY, temperature=0.8, seed=8, repetition_penalty=1.3, top_p=0.9),
    msgspec.structs.replace(GREEDY, prompt_logprobs=1),
)


@dataclass
class Watched(InFlight):
    """A step whose tokens are noted too."""

    inner: InFlight
    plan: StepPlan
    known: KnownRequests

    def choose(self, state: SamplingState) -> None:
        self.inner.choose(state)

    def collect(self) -> StepResult:
        result = self.inner.collect()
        self.known.resolve(self.plan, result)
        return result


class Trapped:
    """A runner whose steps raise where an item holds TRAP, before or after all of it was computed."""

    def __init__(
        self, inner: Any, *, after: bool, error: Callable[[], Exception] = lambda: RuntimeError("trap")
    ) -> None:
        self.inner = inner
        self.after = after
        self.error = error
        self.known = KnownRequests()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, plan: StepPlan) -> InFlight:
        self.known.apply(plan)
        computing = self.inner.submit(plan) if self.after else None
        if any(TRAP in self.known.tokens(item) for item in plan.items):
            raise self.error()
        return Watched(computing or self.inner.submit(plan), plan, self.known)


class Broken(Trapped):
    """Nothing can be computed."""

    def submit(self, plan: StepPlan) -> InFlight:
        raise self.error()


class Lost(Trapped):
    """After its errors the device cannot be used."""

    def is_lost(self, error: Exception) -> bool:
        return isinstance(error, RuntimeError)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine_of(
    wrap: Callable[[Any], Any] = lambda runner: runner, *, ahead: bool = False, **options: object
) -> DrivenEngine:
    settings = {"max_batch_tokens": 48, "max_rank": 16, **options}
    config = EngineConfig(model=str(model_folder("llama")), device="cpu", num_threads=1, **settings)  # type: ignore[arg-type]
    return DrivenEngine(config, wrap, ahead=ahead)


def prompts(seed: int) -> dict[str, list[int]]:
    """Some have the trap, at their beginning, their end, or in a later part; some share a beginning."""
    rng = random.Random(seed)
    draw = [token for token in range(2, VOCABULARY) if token != TRAP]
    shared = [rng.choice(draw) for _ in range(40)]
    made = {}
    for number in range(14):
        prompt = [*(shared if number % 2 else []), *(rng.choice(draw) for _ in range(rng.randrange(1, 70)))]
        if number % 4 == 3:
            prompt[rng.choice([0, len(prompt) // 2, -1])] = TRAP
        made[str(number)] = prompt
    return made


def ask_all(engine: DrivenEngine, wanted: dict[str, list[int]]) -> None:
    engine.register({"rank-7": adapters_of("llama")["rank-7"], "dora": adapters_of("llama")["dora"]})
    for name, prompt in wanted.items():
        engine.submit(name, ADAPTERS[int(name) % 3], prompt, SAMPLING[int(name) // 2 % len(SAMPLING)])
        engine.step()
        engine.engine._blocks.check()
    engine.run_until_ended(wanted)


@pytest.mark.parametrize("after", [False, True], ids=["before computing", "after computing"])
@pytest.mark.parametrize(("seed", "ahead"), [(1, False), (2, False), (3, False), (4, True), (5, True)])
def test_only_the_request_that_raises_alone_ends(seed: int, *, ahead: bool, after: bool) -> None:
    wanted = prompts(seed)
    good = {name: prompt for name, prompt in wanted.items() if TRAP not in prompt}
    calm, trapped = engine_of(), engine_of(lambda runner: Trapped(runner, after=after), ahead=ahead)
    ask_all(calm, good)
    ask_all(trapped, wanted)
    for name in good:
        assert trapped.tokens(name) == calm.tokens(name), name
        ours, right = ([one for one in engine.events() if one.request_id == name] for engine in (trapped, calm))
        assert [one.finish for one in ours] == [one.finish for one in right]
        assert (ours[0].prompt_logprobs is None) == (right[0].prompt_logprobs is None)
    for name in wanted.keys() - good.keys():
        (event,) = [one for one in trapped.events() if one.request_id == name]
        assert (event.finish, event.reason, event.code) == (FinishReason.ERROR, None, None)
        assert event.error == "the engine failed in a step: RuntimeError: trap"
        num_cached = trapped.num_cached_blocks(ADAPTERS[int(name) % 3], wanted[name])
        assert num_cached * 16 <= wanted[name].index(TRAP), "a block of a failed step is in the prefix cache"
    assert trapped.engine._blocks.num_used == 0
    to_be_told = trapped.engine._scheduler._planner._gone
    assert set(trapped.runner._rows._rows) <= {"engine-check", *to_be_told}, "a request that ended is kept"
    assert trapped.engine._stats().num_failed_steps > 0


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, IndexError, AssertionError, torch.OutOfMemoryError])
def test_many_requests_that_fail_one_after_the_other_end_no_engine(error: type[Exception]) -> None:
    engine = engine_of(lambda runner: Trapped(runner, after=False, error=error))
    names = [f"bad-{number}" for number in range(3 * MAX_FAILED_STEPS)]
    for name in names:
        engine.submit(name, None, [TRAP], GREEDY)
        engine.run_until_ended([name])
    engine.submit("good", None, [5, 6], GREEDY)
    engine.run_until_ended(["good"])
    assert len(engine.tokens("good")) == 10
    assert engine.engine._blocks.num_used == 0
    engine.engine._blocks.check()


def test_an_engine_that_can_compute_nothing_ends() -> None:
    engine = engine_of(lambda runner: Broken(runner, after=False))
    names = [f"r{number}" for number in range(MAX_FAILED_STEPS)]
    for name in names[:-1]:
        engine.submit(name, None, [5, 6], GREEDY)
        engine.run_until_ended([name])
    engine.submit(names[-1], None, [5, 6], GREEDY)
    with pytest.raises(StepFailed, match=f"{MAX_FAILED_STEPS} steps in a row failed, and a token of the base too"):
        engine.run_until_ended(names)
    ended = {event.request_id: event.finish for event in engine.events()}
    assert ended == dict.fromkeys(names, FinishReason.ERROR)


def test_a_lost_device_ends_the_engine_at_once() -> None:
    engine = engine_of(lambda runner: Lost(runner, after=False))
    engine.submit("good", None, [5, 6], GREEDY)
    engine.step()
    engine.submit("bad", None, [TRAP], GREEDY)
    with pytest.raises(StepFailed, match="the device is lost: RuntimeError: trap"):
        engine.run_until_ended(["bad"])
    assert {event.finish for event in engine.events()[-2:]} == {FinishReason.ERROR}


def test_which_errors_lose_the_device() -> None:
    runner = engine_of().runner
    assert runner.is_lost(torch.AcceleratorError("device-side assert triggered"))
    assert not any(runner.is_lost(error) for error in (torch.OutOfMemoryError("2 GiB"), MemoryError(), IndexError("x")))


class FailsOnce:
    """A runner whose step raises while the request `bad` is in it: before anything of it is computed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, plan: StepPlan) -> InFlight:
        if any(item.request_id == "bad" for item in plan.items):
            raise RuntimeError("trap")
        computing: InFlight = self.inner.submit(plan)
        return computing


def test_equal_prompts_that_start_together_answer_as_they_do_alone() -> None:
    """Also when the one that was to compute what they share is the one that fails."""
    greedy = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    prompt = [3 + at % 90 for at in range(41)]
    answers = []
    for names in (["alone"], ["bad", "second", "third"], ["one", "two"]):
        config = EngineConfig(model=str(model_folder("llama")), device="cpu", num_threads=1, max_rank=16)
        engine = DrivenEngine(config, FailsOnce)
        for number, name in enumerate(names):
            engine.submit(name, None, prompt + [5] * number, greedy)
        engine.run_until_ended(names)
        answers.append({name: engine.tokens(name) for name in names})
        assert engine.engine._blocks.num_used == 0
        engine.engine._blocks.check()
    alone, failed, together = answers
    assert together["one"] == alone["alone"]
    assert failed["bad"] == ()
    assert failed["second"] == together["two"]
    assert len(failed["third"]) == 6
