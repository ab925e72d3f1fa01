"""What is left of something that has ended."""

import asyncio
import gc

import aiohttp


def left_over() -> set[str]:
    """What this loop has now that may be left behind: tasks, beside those of aiohttp's servers, and open sessions."""
    tasks = {made for task in asyncio.all_tasks() if "RequestHandler" not in (made := repr(task.get_coro()))}
    # by type: asking the lazy modules of others for their class loads them
    return tasks | {repr(one) for one in gc.get_objects() if type(one) is aiohttp.ClientSession and not one.closed}
