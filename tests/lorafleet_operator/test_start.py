"""When a base says how far a pod is with its start."""

import pytest

from lorafleet_contract.admin import StartProgress, StartStep
from lorafleet_operator.decide.start import MIN_PERCENT, MIN_SECONDS, is_worth_telling


def at(percent: int) -> StartProgress:
    return StartProgress(step=StartStep.LOADING, percent=percent)


@pytest.mark.parametrize(
    ("told", "now", "seconds", "expected"),
    [
        (None, 0, 0.0, True),
        (0, 0, 60.0, False),
        (10, 10 + MIN_PERCENT, MIN_SECONDS, True),
        (10, 10 + MIN_PERCENT - 1, 60.0, False),
        (10, 60, MIN_SECONDS - 0.1, False),
        (90, 10, MIN_SECONDS, True),  # begun anew
    ],
)
def test_not_each_per_cent_is_told(told: int | None, now: int, seconds: float, *, expected: bool) -> None:
    assert is_worth_telling(None if told is None else at(told), at(now), seconds) is expected


def test_the_next_step_is_told_wherever_it_begins() -> None:
    downloaded = StartProgress(step=StartStep.DOWNLOADING, percent=100)
    for percent in (0, 100):
        assert is_worth_telling(downloaded, at(percent), MIN_SECONDS)


def test_words() -> None:
    assert at(41).words == "Loading 41 %"
    assert StartProgress(step=StartStep.DOWNLOADING, percent=12).words == "Downloading 12 %"
