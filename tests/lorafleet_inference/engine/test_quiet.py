"""Steps are kept short for an adapter that asks for little beside others that ask for much, and for nobody else."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from support.engines import DrivenEngine, key_of
from support.models import AdapterSpec, model_folder, save_adapter

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams
from lorafleet_inference.engine.pace import MIN_BUSY_PROMPT_TOKENS, MIN_PROMPT_TOKENS
from lorafleet_inference.engine.quiet import QUIET_PART, REMEMBERED_SECONDS, QuietAdapters

A, B, C = key_of("a"), key_of("b"), key_of("c")


@pytest.mark.parametrize(
    ("num_requests", "expected"),
    [
        ({}, None),
        ({A: 50}, None),
        ({A: 50, B: 1}, {B}),
        ({A: 50, None: 1}, {None}),
        ({None: 50, B: 1}, {B}),
        ({A: 1, B: 1}, None),
        ({A: 6, B: 1}, None),  # a quarter of an equal share is 0.875
        ({A: 7, B: 1}, None),  # a quarter of it is one
        ({A: 8, B: 1}, {B}),
        ({A: 20, B: 20, C: 2}, {C}),
        ({A: 20, B: 20, C: 4}, None),
        ({A: 30, B: 2, C: 1}, {B, C}),
        ({key_of(f"a{number}"): 1 for number in range(64)}, None),
        ({key_of(f"a{number}"): 8 for number in range(8)}, None),
    ],
)
def test_who_is_quiet_now(
    num_requests: Mapping[AdapterKey | None, int], expected: Collection[AdapterKey | None] | None
) -> None:
    assert QuietAdapters().observe(num_requests, 0.0) == expected


def test_who_was_there_lately_is_expected_again() -> None:
    quiet = QuietAdapters()
    assert quiet.observe({A: 8, B: 8}, 0.0) is None
    assert quiet.observe({A: 8}, 1.0) == set(), "B is expected again"
    assert quiet.observe({A: 8}, REMEMBERED_SECONDS) == set()
    assert quiet.observe({A: 8}, REMEMBERED_SECONDS + 0.1) is None
    assert quiet.observe({B: 8}, 2 * REMEMBERED_SECONDS + 0.2) is None, "and so is nobody who was not there for long"


def test_nobody_is_quiet_where_there_is_nothing_to_do() -> None:
    quiet = QuietAdapters()
    quiet.observe({A: 8, B: 1}, 0.0)
    assert quiet.observe({}, 1.0) is None
    assert quiet.observe({A: 1}, 2.0) == set(), "but B is remembered"


def test_whoever_is_there_most_of_the_time_is_remembered_by_its_last_request() -> None:
    quiet = QuietAdapters()
    for second in range(0, 300, 10):
        quiet.observe({A: 8, B: 1}, float(second))
    assert quiet.observe({A: 8}, 290 + REMEMBERED_SECONDS) == set()
    assert quiet.observe({A: 8}, 291 + REMEMBERED_SECONDS) is None


def test_the_part_is_of_an_equal_share_of_those_who_were_there_lately() -> None:
    """Two with one request beside one with six: a quarter of a share is 2/3 of a request, and 1/2 beside a fourth one."""
    assert QUIET_PART == 0.25
    quiet = QuietAdapters()
    assert quiet.observe({A: 6, B: 1, C: 1}, 0.0) is None
    assert quiet.observe({A: 11, B: 1, C: 1}, 0.0) == {B, C}, "a quarter of a share is 13/12"
    quiet.observe({key_of("d"): 1}, 0.0)
    assert quiet.observe({A: 9, B: 1, C: 1, key_of("d"): 1}, 0.0) is None


def test_an_engine_keeps_steps_short_while_a_quiet_one_is_there(tmp_path: Path) -> None:
    """Nothing takes as little as a microsecond, nor ten of them, so that a step has only what it always may."""
    base = model_folder("llama")
    engine = DrivenEngine(
        EngineConfig(
            model=str(base),
            device="cpu",
            num_threads=1,
            max_batch_tokens=1024,
            prefix_caching=False,
            target_step_ms=0.001,
        )
    )
    engine.register({"a": save_adapter(base, tmp_path, AdapterSpec(4))})
    short = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)

    def longest_step(name: str) -> int:
        """Of ten requests on the base that come at once."""
        engine.max_step_tokens = 0
        ids = [f"{name}{number}" for number in range(10)]
        for number, request_id in enumerate(ids):
            engine.submit(request_id, None, [5 + number] * 100, short)
        engine.run_until_ended(ids)
        return engine.max_step_tokens

    longest_step("first")  # before anything is known of how long a step takes
    assert MIN_PROMPT_TOKENS <= longest_step("alone") <= MIN_PROMPT_TOKENS + 10
    assert engine.engine._stats().num_late_steps == 0, "they were not kept short"
    engine.submit("quiet", "a", [5] * 100, short)
    engine.run_until_ended(["quiet"])
    engine.engine.publish()
    assert longest_step("beside") <= MIN_BUSY_PROMPT_TOKENS + 10
    late = engine.engine._stats().num_late_steps
    engine.engine._times._quiet = QuietAdapters()  # a minute has passed
    assert longest_step("later") >= MIN_PROMPT_TOKENS
    assert engine.engine._stats().num_late_steps == late > 0
