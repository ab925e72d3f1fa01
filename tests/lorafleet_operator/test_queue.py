"""The work queue: each key once, one at a time, later when it failed."""

import asyncio
import itertools

from lorafleet_operator.process.queue import MAX_BACKOFF_SECONDS, WorkQueue


async def test_waiting_key_is_one_piece_of_work() -> None:
    queue = WorkQueue[str]()
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_key_in_work_comes_again_after_it() -> None:
    queue = WorkQueue[str]()
    queue.add("a")
    key = await queue.get()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done(key)
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_earliest_wish_counts() -> None:
    queue = WorkQueue[str]()
    loop = asyncio.get_running_loop()
    began = loop.time()
    queue.add_after("a", 30)
    queue.add_after("a", 0.02)
    queue.add_after("a", 60)
    assert await queue.get() == "a"
    assert 0.01 < loop.time() - began < 5
    queue.done("a")
    queue.add_after("b", 30)
    queue.close()


async def test_backoff_grows_to_a_limit_and_is_forgotten_after_success() -> None:
    queue = WorkQueue[str](seed=1)
    delays = [queue.retry("a") for _ in range(20)]
    assert 0.1 <= delays[0] <= 0.2
    assert MAX_BACKOFF_SECONDS / 2 <= delays[-1] <= MAX_BACKOFF_SECONDS
    assert all(later > earlier / 2 for earlier, later in itertools.pairwise(delays))
    queue.forget("a")
    assert queue.retry("a") <= 0.2
    queue.close()


async def test_age_is_that_of_the_head() -> None:
    queue = WorkQueue[str]()
    now = asyncio.get_running_loop().time
    assert queue.oldest_age_seconds(now()) == 0
    queue.add("a")
    assert queue.oldest_age_seconds(now() + 5) > 4.9
    await queue.get()
    assert queue.oldest_age_seconds(now() + 5) == 0
