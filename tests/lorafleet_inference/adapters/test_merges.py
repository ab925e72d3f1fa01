"""Merges beside the adapters that they are made of: made once, bounded, never longer on the disk than their parts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType

import pytest
from support.managed_pod import ManagedPod

from lorafleet_contract.admin import RevisionRef
from lorafleet_contract.lorax import MERGED
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.adapters.merges import Recipe
from lorafleet_inference.engine.merging import MergeMethod
from lorafleet_inference.errors import AdapterFailed, InvalidValue, Overloaded, UnsupportedParameter

MakePod = Callable[..., Awaitable[ManagedPod]]
NAMES = ("red", "blue", "green")


class Request:
    """A request that holds a merge and its parts."""

    def __init__(self, pod: ManagedPod, names: Sequence[str], *weights: float, method: MergeMethod) -> None:
        self._pod = pod
        self._names = names
        self._recipe = Recipe(weights or [1.0] * len(names), method, 0.5)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Lease:
        try:
            parts = [
                await self._stack.enter_async_context(await self._pod.manager.lease(name, None)) for name in self._names
            ]
            lease = await self._pod.manager.merges.lease(self._recipe, parts, hold_seconds=60)
            return await self._stack.enter_async_context(lease)
        except BaseException as error:
            await self._stack.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)


def request(
    pod: ManagedPod, *names: str, weights: Sequence[float] = (), method: MergeMethod = MergeMethod.LINEAR
) -> Request:
    return Request(pod, names, *weights, method=method)


def known(pod: ManagedPod) -> int:
    """Merges that the engine knows, as far as it was told."""
    made = [one.key for one in pod.engine.registered if one.merge is not None]
    return len(made) - sum(key.name == MERGED for key in pod.engine.released)


async def with_adapters(make_pod: MakePod, **fields: int) -> ManagedPod:
    pod = await make_pod(**fields)
    pod.write(*[await pod.entry(name) for name in NAMES])
    return pod


async def test_a_merge_is_made_once_and_told_apart_by_what_it_is(make_pod: MakePod) -> None:
    pod = await with_adapters(make_pod)
    async with request(pod, "red", "blue") as one, request(pod, "red", "blue") as other:
        assert one.key == other.key
        assert one.key is not None
        assert (one.key.name, one.name, one.directory) == (MERGED, "red,blue", None)
        red = pod.seen("red")
        assert red is not None
        assert red.num_in_flight == 2
        pod.engine.ask(one.key)
    async with request(pod, "red", "blue", weights=(1, 0.5)) as another:
        assert another.key != one.key
    assert known(pod) == 2
    assert {one.name for one in pod.manager.shown.observed()} == set(NAMES)
    assert {one.name for one in pod.manager.shown.routes()} == set(NAMES)


async def test_many_who_want_the_same_wait_for_one(make_pod: MakePod) -> None:
    pod = await with_adapters(make_pod)

    async def ask() -> None:
        async with request(pod, "red", "blue"):
            pass

    tasks = [asyncio.create_task(ask()) for _ in range(5)]
    leaving = asyncio.create_task(ask())
    await pod.until("asked for", lambda: any(one.merge is not None for one in pod.engine.registered))
    leaving.cancel()
    await asyncio.gather(*tasks)
    assert known(pod) == 1


async def test_the_least_used_one_leaves(make_pod: MakePod) -> None:
    pod = await with_adapters(make_pod, max_merged_adapters=2)
    first, second, third = ("red", "blue"), ("red", "green"), ("blue", "green")
    keys = []
    for names in (first, second, first, third):
        async with request(pod, *names) as lease:
            keys.append(lease.key)
    assert pod.engine.released == [keys[1]]
    async with request(pod, *first), request(pod, *third):
        with pytest.raises(Overloaded, match="2 merges of adapters are in use"):
            async with request(pod, *second):
                pass
    async with request(pod, *second) as again:
        assert again.key == keys[1]
    assert known(pod) == 2


async def test_what_cannot_be_merged_is_refused_again_without_being_asked_for(make_pod: MakePod) -> None:
    pod = await with_adapters(make_pod)
    pod.adapter("wide", rank=8)
    pod.write(await pod.entry("wide"))
    for _ in range(2):
        with pytest.raises(InvalidValue, match=r"red,wide cannot be merged: ties needs equal ranks.*red 4, wide 8"):
            async with request(pod, "red", "wide", method=MergeMethod.TIES):
                pass
    with pytest.raises(InvalidValue, match=r"add up to 20 at .*; this base serves up to 16"):
        async with request(pod, "red", "wide", "wide"):
            pass
    assert known(pod) == 2  # refused ones are not known to the engine
    red = pod.seen("red")
    assert red is not None
    assert red.num_in_flight == 0
    async with request(pod, "red", "wide"):
        pass


async def test_a_merge_that_cannot_be_loaded_is_made_anew(make_pod: MakePod) -> None:
    pod = await with_adapters(make_pod)
    async with request(pod, "red", "blue") as lease:
        assert lease.key is not None
        pod.engine.device.broken = Reason.LOAD_FAILED
        pod.engine.ask(lease.key)
        await pod.until("forgotten", lambda: pod.engine.released)
        pod.engine.device.broken = None
    async with request(pod, "red", "blue") as again:
        assert again.key == lease.key
        pod.engine.ask(lease.key)
    assert [one.key for one in pod.engine.registered if one.merge is not None] == [lease.key, lease.key]


async def test_content_that_leaves_takes_its_merges_along(make_pod: MakePod) -> None:
    """A part is unloaded when the requests for the merge have ended, and then nothing of it stays on the disk."""
    pod = await with_adapters(make_pod)
    red = (await pod.entry("red")).source.digest
    async with request(pod, "red", "blue") as lease:
        pod.write(removed=[RevisionRef(name="red", revision=red.removeprefix("sha256:")[:12])])
        seen = pod.seen("red")
        assert seen is not None
        assert (seen.state, seen.num_in_flight) == ("Draining", 1)
        assert not pod.engine.released
    await pod.until("unloaded", lambda: pod.seen("red") is None)
    await pod.manager.merges.settled()
    assert lease.key in pod.engine.released
    with pytest.raises(AssertionError, match="let go more often than held"):
        pod.manager.cache.let_go(red)


async def test_a_part_that_has_to_leave_ends_the_request(make_pod: MakePod) -> None:
    pod = await with_adapters(make_pod)
    red = (await pod.entry("red")).source.digest

    async def ask() -> None:
        async with request(pod, "red", "blue"):
            await asyncio.Event().wait()

    asking = asyncio.create_task(ask())
    await pod.until("asked", lambda: known(pod))
    pod.write(removed=[RevisionRef(name="red", revision=red.removeprefix("sha256:")[:12])], drain_timeout_seconds=0.001)
    with pytest.raises(AdapterFailed, match="red was unloaded"):
        await asking


async def test_pods_say_that_they_merge_nothing(make_pod: MakePod) -> None:
    without = await make_pod(max_merged_adapters=0)
    with pytest.raises(UnsupportedParameter, match="--max-merged-adapters 0"):
        without.manager.merges.check_possible()
    fixed = await make_pod(load_on_demand=False)
    with pytest.raises(UnsupportedParameter, match="loads nothing on demand"):
        fixed.manager.merges.check_possible()
