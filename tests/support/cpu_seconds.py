"""Which tests take how many seconds of a core, with the programs that they started, and how long they wait.

`pytest -p support.cpu_seconds`, with PYTHONPATH=tests. What a program of several tests takes counts for the one that runs
meanwhile. What a test waits is its time less its seconds of a core, and says something on a quiet machine alone: on a busy one
it also waits for a core. With LORAFLEET_TEST_SECONDS=write what the files took becomes their lines of `tests/file_seconds.txt`,
which `support.file_turns` goes by.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.file_turns import TABLE, Seconds, read_table, write_table
from support.processes import core_seconds, descendants

MAX_TESTS, MIN_SECONDS = 25, 0.5
_SENT = "seconds of tests"


class _Seconds:
    """Of the tests of this process and of those that work for it."""

    def __init__(self) -> None:
        self.core: Counter[str] = Counter()
        self.all: Counter[str] = Counter()
        self.with_imports = 0.0

    def add(self, sent: list[Any]) -> None:
        """Add what another process has sent."""
        core, everything, with_imports = sent
        self.core.update(core)
        self.all.update(everything)
        self.with_imports += with_imports


_seconds = _Seconds()


def _core_seconds() -> float:
    """Of this process, of the programs that it started and of theirs, those that run and those that have ended."""
    own = os.getpid()
    return core_seconds([own, *descendants(own)])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    core, start = _core_seconds(), time.monotonic()
    try:
        return (yield)
    finally:
        _seconds.core[item.nodeid] += _core_seconds() - core
        _seconds.all[item.nodeid] += time.monotonic() - start


def pytest_sessionfinish(session: pytest.Session) -> None:
    sent = getattr(session.config, "workeroutput", None)
    if sent is not None:
        sent[_SENT] = [dict(_seconds.core), dict(_seconds.all), _core_seconds()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    _seconds.add(getattr(node, "workeroutput", {}).get(_SENT, [{}, {}, 0.0]))


def _by_file(seconds: Counter[str]) -> Counter[str]:
    files: Counter[str] = Counter()
    for test, taken in seconds.items():
        files[test.partition("::")[0]] += taken
    return files


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files, everything = _by_file(_seconds.core), _seconds.all + _by_file(_seconds.all)
    terminalreporter.section("seconds of a core, and of waiting")
    for name, seconds in [*_seconds.core.most_common(MAX_TESTS), *files.most_common()]:
        waited = max(everything[name] - seconds, 0.0)
        if seconds + waited >= MIN_SECONDS:
            terminalreporter.write_line(f"{seconds:8.1f} {waited:8.1f}  {name}")
    own = time.process_time() if _seconds.with_imports else _core_seconds()
    terminalreporter.write_line(f"{_seconds.with_imports + own:8.1f}           all, with imports")
    if os.environ.get("LORAFLEET_TEST_SECONDS") == "write":
        taken = {file: Seconds(files[file], seconds) for file, seconds in _by_file(_seconds.all).items()}
        write_table({**read_table(TABLE.read_text()), **taken})
