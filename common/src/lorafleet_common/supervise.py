"""Tasks that must not die unseen, and work that must not be left half done."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Final, TypeVar

logger = logging.getLogger(__name__)
PAUSE_SECONDS: Final = 1.0
T = TypeVar("T")


async def supervise(name: str, run: Callable[[], Awaitable[None]], *, pause_seconds: float = PAUSE_SECONDS) -> None:
    """Run something that never ends. If it ends all the same, or fails, that is logged and it is begun again."""
    while True:
        try:
            await run()
            logger.error("%s ended; it is begun again", name)
        except Exception:
            logger.exception("%s failed; it is begun again", name)
        await asyncio.sleep(pause_seconds)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end what closes things, also if the caller is cancelled meanwhile: that is passed on afterwards."""
    task, is_cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            is_cancelled = True
    result = task.result()
    if is_cancelled:
        raise asyncio.CancelledError
    return result


async def end(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks, each once, and wait until all have ended, also if the caller is cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    if tasks:
        await to_its_end(_all_done(tasks))


async def _all_done(tasks: Collection[asyncio.Future[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
