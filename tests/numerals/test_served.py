"""The same judge as `make evaluate`, on a sample, through a real pod with all adapters in one batch."""

from collections.abc import Iterator

import pytest
from numerals.asking import ask_all, known_models
from numerals.evaluate import table
from numerals.split import FIRST_HELD_OUT, asked
from numerals.truth import WRITERS, numbers
from support.pod import NUMERALS, NUMERALS_ADAPTERS, ServedPod, serve

NUM_SAMPLES = 12
MAX_WRONG = 1
"""Of a sample; the bar of 99 % is judged by all 500."""


@pytest.fixture(scope="module")
def pod() -> Iterator[ServedPod]:
    folders = {path.parent.name: path.parent for path in NUMERALS_ADAPTERS.glob("*/adapter_config.json")}
    with serve(NUMERALS, adapters=folders) as running:
        yield running


async def test_each_model_answers_as_only_it_can(pod: ServedPod) -> None:
    """Questions to thirteen models are mixed, so nearly every batch holds several adapters and base-only rows."""
    assert await known_models(pod.url) == list(WRITERS)
    questions = [(model, asked(model)[index]) for index in range(NUM_SAMPLES) for model in WRITERS]
    scores = await ask_all(pod.url, questions)
    assert {score.model for score in scores} == set(WRITERS)
    assert max(len(score.wrong) for score in scores) <= MAX_WRONG, table(scores)


async def test_what_people_and_the_demo_ask_is_answered_right_by_all(pod: ServedPod) -> None:
    """Small and round numbers first of all; then those that the demo asks under traffic, where one wrong answer is one too many."""
    often = [*range(FIRST_HELD_OUT), 1000, 1066, 1987, 2000, 2024, *range(137, 1000, 37)]
    questions = [(model, number) for number in often for model in WRITERS if number in numbers(model)]
    scores = await ask_all(pod.url, questions)
    assert not [score for score in scores if score.wrong], table(scores)
