"""What tests do differently below `make mutants`: the same examples each time, nothing shrunk, endless loops ended."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import Phase, settings

NOTICED, TIMEOUT, NOT_JUDGED = 3, 36, 35
"""Exit statuses, as mutmut knows them. A process that merely breaks ends with 1, so a test that failed says so by another."""
CPU_SECONDS = Path("cpu_seconds.json")
"""What each test takes of the CPU where nothing is changed. Time on the wall says little of a machine that others use."""


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """After the profile of tests/conftest.py."""
    profile = {"phases": (Phase.explicit, Phase.generate), "derandomize": True, "database": None}
    settings.register_profile("mutants", settings.get_profile("house"), **profile, report_multiple_bugs=False)
    settings.load_profile("mutants")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what waits for a simulated fleet by the clock on the wall: on a busy machine it fails without any fault."""
    items[:] = [item for item in items if "fleet" not in getattr(item, "fixturenames", ())]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that takes a multiple of its usual CPU time has noticed that nothing ends."""
    usual = json.loads(CPU_SECONDS.read_text()) if CPU_SECONDS.exists() else {}
    if _is_mutant() and item.nodeid in usual:
        signal.signal(signal.SIGVTALRM, _give_up)
        signal.setitimer(signal.ITIMER_VIRTUAL, 5 + 5 * usual[item.nodeid])
    start = time.process_time()
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if not _is_mutant():
            taken = max(time.process_time() - start, usual.get(item.nodeid, 0.0))
            CPU_SECONDS.write_text(json.dumps({**usual, item.nodeid: taken}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus: int) -> None:
    """Only a test that ran and failed has noticed a mutant: not one that was not found, nor pytest when it breaks."""
    if _is_mutant() and exitstatus != pytest.ExitCode.OK:
        os._exit(NOTICED if exitstatus == pytest.ExitCode.TESTS_FAILED else NOT_JUDGED)


def _is_mutant() -> bool:
    return "__mutmut_" in os.environ.get("MUTANT_UNDER_TEST", "")


def _give_up(_: int, __: FrameType | None) -> None:
    os._exit(TIMEOUT)
