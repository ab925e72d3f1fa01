"""Which tests take how many seconds of a core, with the programs that they started: `pytest -p support.cpu_seconds`, with PYTHONPATH=tests.

A program counts for the test at whose end it has ended; in one process alone (`WORKERS=0`).
"""

import resource
from collections import Counter
from collections.abc import Iterator

import pytest
from support.forked import spent_seconds

_spent: Counter[str] = Counter()
MAX_TESTS, MIN_SECONDS = 25, 0.5


def _seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + spent_seconds()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = _seconds()
    try:
        return (yield)
    finally:
        _spent[item.nodeid] += _seconds() - before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files: Counter[str] = Counter()
    for test, seconds in _spent.items():
        files[test.partition("::")[0]] += seconds
    terminalreporter.section("seconds of a core")
    for name, seconds in [*_spent.most_common(MAX_TESTS), *files.most_common()]:
        if seconds >= MIN_SECONDS:
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
    terminalreporter.write_line(f"{_seconds():8.1f}  all, with imports")
