"""The order in which steps are computed, and computed again where one of them raises."""

from dataclasses import dataclass, field

import pytest

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import (
    InFlight,
    NewRequest,
    Sampled,
    SamplingState,
    StepItem,
    StepPlan,
    StepResult,
    Unconstrained,
)
from lorafleet_inference.engine.steps import Executor, Steps


@dataclass
class Recorder(Executor):
    """Computes nothing, and tells what it was asked for. `faults`: what raises, once each."""

    ahead: bool = True
    faults: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def tell(self, what: str, plan: StepPlan) -> None:
        said = f"{what} {' '.join(item.request_id for item in plan.items)}"
        self.told.append(said)
        if said in self.faults:
            self.faults.remove(said)
            raise RuntimeError(said)

    def submit(self, plan: StepPlan) -> InFlight:
        self.tell("submit", plan)
        return _Recorded(self, plan)

    def is_lost(self, error: Exception) -> bool:
        return False


@dataclass
class _Recorded(InFlight):
    recorder: Recorder
    plan: StepPlan

    def choose(self, state: SamplingState) -> None:
        self.recorder.tell("choose", self.plan)

    def collect(self) -> StepResult:
        self.recorder.tell("collect", self.plan)
        return StepResult({item.request_id: Sampled(5) for item in self.plan.items})


def plan(*names: str, start: int = 0, gone: tuple[str, ...] = ()) -> StepPlan:
    items = tuple(StepItem(name, start, 1, samples=True) for name in names)
    new = () if start else tuple(NewRequest(name, None, (5,), 1, SamplingParams(max_tokens=9), (0,)) for name in names)
    return StepPlan(items, gone, new)


def steps_of(recorder: Recorder) -> Steps:
    return Steps(recorder, BlockManager(4, 4, prefix_caching=True), Unconstrained())


def alone(*names: str) -> list[str]:
    return [f"{what} {name}" for name in names for what in ("submit", "choose", "collect")]


def test_tokens_are_chosen_when_the_step_before_is_collected() -> None:
    recorder = Recorder()
    steps = steps_of(recorder)
    steps.submit(plan("a", "b"))
    steps.choose()
    steps.submit(plan("a", "b", "c", start=1))
    assert steps.may_go_on
    assert steps.num_in_flight == 2
    assert set(steps.collect().sampled) == {"a", "b"}
    steps.choose()
    assert recorder.told == ["submit a b", "choose a b", "submit a b c", "collect a b", "choose a b c"]
    assert not steps_of(Recorder(ahead=False)).may_go_on


@pytest.mark.parametrize("fault", ["submit a b", "choose a b"])
def test_nothing_goes_on_from_a_step_that_was_not_computed(fault: str) -> None:
    recorder = Recorder(faults={fault})
    steps = steps_of(recorder)
    steps.submit(plan("a", "b"))
    steps.choose()
    assert not steps.may_go_on
    result = steps.collect()
    assert (set(result.sampled), result.failed) == ({"a", "b"}, {})
    assert recorder.told[recorder.told.index(fault) + 1 :] == alone("a", "b")
    assert steps.may_go_on
    assert steps.num_failed == 1


def test_a_step_that_cannot_be_read_is_computed_again_and_so_is_what_went_on_from_it() -> None:
    """Not again: who fails alone, in the later step, and who was preempted by it, in the earlier one."""
    recorder = Recorder(faults={"collect a b c", "choose b"})
    steps = steps_of(recorder)
    steps.submit(plan("a", "b", "c"))
    steps.choose()
    steps.submit(plan("a", "b", start=1, gone=("c",)))
    first = steps.collect()
    assert (set(first.sampled), set(first.failed)) == ({"a"}, {"b"})
    assert not steps.may_go_on
    steps.choose()
    second = steps.collect()
    assert (set(second.sampled), second.failed) == ({"a"}, {})
    after = recorder.told[recorder.told.index("collect a b c") + 1 :]
    assert after == [*alone("a"), "submit b", "choose b", *alone("a")]
    assert steps.num_failed == 1


def test_a_step_of_one_request_that_went_on_from_one_that_cannot_be_read_is_computed_again() -> None:
    recorder = Recorder(faults={"collect a b"})
    steps = steps_of(recorder)
    steps.submit(plan("a", "b"))
    steps.choose()
    steps.submit(plan("a", start=1))
    assert set(steps.collect().sampled) == {"a", "b"}
    steps.choose()
    assert set(steps.collect().sampled) == {"a"}
    assert recorder.told[-3:] == alone("a")
