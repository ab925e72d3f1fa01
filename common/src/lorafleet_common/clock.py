"""The two clocks: the wall's, in which status is written, and the event loop's, which never jumps."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

WallClock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time of the wall clock, in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Return the seconds of the running event loop's clock, which timers use too."""
    return asyncio.get_running_loop().time()


def whole_seconds(moment: datetime) -> datetime:
    """Return a moment as status keeps it."""
    return moment.replace(microsecond=0)
