"""What tests do differently below `make mutants`: the same examples each time, nothing shrunk, endless loops ended."""

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from hypothesis import Phase, settings
from mutmut.state import state

NOTICED, TIMEOUT, NOT_JUDGED = 3, 36, 35
"""Exit statuses, as mutmut knows them. A process that merely breaks ends with 1, so a test that failed says so by another."""


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """After the profile of tests/conftest.py."""
    profile = {"phases": (Phase.explicit, Phase.generate), "derandomize": True, "database": None}
    settings.register_profile("mutants", settings.get_profile("house"), **profile, report_multiple_bugs=False)
    settings.load_profile("mutants")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that takes a multiple of its usual time, counted in the CPU's, has noticed that nothing ends."""
    usual = state().duration_by_test.get(item.nodeid)
    if _is_mutant() and usual is not None:
        signal.signal(signal.SIGVTALRM, _give_up)
        signal.setitimer(signal.ITIMER_VIRTUAL, 5 + 5 * usual)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus: int) -> None:
    """Only a test that ran and failed has noticed a mutant: not one that was not found, nor pytest when it breaks."""
    if _is_mutant() and exitstatus != pytest.ExitCode.OK:
        os._exit(NOTICED if exitstatus == pytest.ExitCode.TESTS_FAILED else NOT_JUDGED)


def _is_mutant() -> bool:
    return "__mutmut_" in os.environ.get("MUTANT_UNDER_TEST", "")


def _give_up(_: int, __: FrameType | None) -> None:
    os._exit(TIMEOUT)
