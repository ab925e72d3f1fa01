"""Tasks that must not die unseen."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

logger = logging.getLogger(__name__)
PAUSE_SECONDS: Final = 1.0


async def supervise(name: str, run: Callable[[], Awaitable[None]], *, pause_seconds: float = PAUSE_SECONDS) -> None:
    """Run something that never ends. If it ends all the same, or fails, that is logged and it is begun again."""
    while True:
        try:
            await run()
            logger.error("%s ended; it is begun again", name)
        except Exception:
            logger.exception("%s failed; it is begun again", name)
        await asyncio.sleep(pause_seconds)
