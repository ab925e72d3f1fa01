"""Waiting for conditions with deadlines."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    what: str, look: Callable[[], T | None], *, timeout_seconds: float = 120, interval_seconds: float = 0.2
) -> T:
    """Return the first truthy value of `look`.

    Raises:
        AssertionError: there was none in time; says what was waited for and the last value seen.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not after {timeout_seconds:.0f} s; last seen: {value!r}")
        time.sleep(interval_seconds)
