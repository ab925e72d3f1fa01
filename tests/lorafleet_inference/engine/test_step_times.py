"""When steps ran, and how long the next one should take."""

from support.engines import key_of

from lorafleet_inference.engine.pace import FIRST_PROMPT_TOKENS, MIN_BUSY_PROMPT_TOKENS, MIN_PROMPT_TOKENS
from lorafleet_inference.engine.plan import StepItem, StepPlan
from lorafleet_inference.engine.quiet import REMEMBERED_SECONDS
from lorafleet_inference.engine.step_times import UNHURRIED, StepTimes

A, B = key_of("a"), key_of("b")


class Clock:
    """Seconds that are told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(num_prompt: int = 0, num_answers: int = 0) -> StepPlan:
    """A plan of so many tokens of a prompt, and so many that continue answers."""
    items = [StepItem("p", 0, num_prompt, samples=False)] if num_prompt else []
    items += [StepItem(f"a{number}", 9, 1, samples=True, decode=True) for number in range(num_answers)]
    return StepPlan(items=tuple(items), max_tokens=num_prompt + num_answers)


def times(seconds_a_token: float, clock: Clock, target: float = 0.25) -> StepTimes:
    """What has learned, from steps of a base that is alone, that a token takes so long and nothing else does."""
    found = StepTimes(target, clock)
    for number in range(1, 40):
        num_tokens = 100 * number
        found.bound({None: 50})
        found.submitted(step(num_tokens))
        clock.now += num_tokens * seconds_a_token
        found.collected()
    return found


def test_the_bound_is_the_target_for_who_is_quiet_and_ten_times_as_long_where_nobody_is() -> None:
    clock = Clock()
    found = times(1e-3, clock)
    assert found.bound({None: 50}).num_prompt_tokens(0) == round(UNHURRIED * 250)
    beside = found.bound({None: 50, B: 1})
    assert (beside.num_prompt_tokens(0), beside.num_busy_tokens(0)) == (250, 250)
    assert (beside.is_busy(None), beside.is_busy(B)) == (True, False)
    assert found.bound({None: 50}).num_prompt_tokens(0) == 250, "it is expected again"
    clock.now += REMEMBERED_SECONDS + 1
    alone = found.bound({None: 50})
    assert alone.num_prompt_tokens(0) == alone.num_busy_tokens(0) == round(UNHURRIED * 250)


def test_on_a_slow_device_nothing_is_so_long_that_the_engine_seems_to_hang() -> None:
    """A tenth of a second a token: a full batch of 4,096 tokens would take seven minutes."""
    found = times(0.1, Clock(), target=0.3)
    assert found.bound({None: 50}).num_prompt_tokens(0) == MIN_PROMPT_TOKENS
    beside = found.bound({None: 50, B: 1})
    assert (beside.num_prompt_tokens(0), beside.num_busy_tokens(0)) == (MIN_PROMPT_TOKENS, MIN_BUSY_PROMPT_TOKENS)
    assert StepTimes(0.3, Clock()).bound({None: 50}).num_prompt_tokens(0) == FIRST_PROMPT_TOKENS, "nothing is known"


def test_a_step_that_was_submitted_ahead_begins_when_the_one_before_it_ends() -> None:
    clock = Clock()
    found = StepTimes(0.25, clock)
    found.submitted(step(10))
    clock.now += 0.1
    found.submitted(step(20))
    clock.now += 0.2
    found.collected()
    assert (round(found.total_seconds, 6), found.max_tokens) == (0.3, 10)
    clock.now += 0.4
    found.collected()
    assert (round(found.total_seconds, 6), found.max_tokens) == (0.7, 20)
    clock.now += 5  # nothing to do
    found.submitted(step(30))
    clock.now += 0.1
    found.collected()
    assert round(found.total_seconds, 6) == 0.8


def test_late_is_what_was_kept_short_and_took_longer() -> None:
    clock = Clock()
    found = StepTimes(0.25, clock)
    for requests, seconds, num_late in (
        ({A: 50}, 0.5, 0),
        ({A: 50, B: 1}, 0.2, 0),
        ({A: 50, B: 1}, 0.3, 1),
        ({A: 9}, 0.3, 2),
    ):
        found.bound(requests)
        found.submitted(step(10))
        clock.now += seconds
        found.collected()
        assert found.num_late == num_late
