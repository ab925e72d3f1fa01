"""A burst of one model's large bodies takes its share of the memory for bodies, and neither another's room nor its turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from support.upstream_pods import PodDouble, well

from lorafleet_gateway import metrics
from lorafleet_gateway.errors import BodyTimeout, Full, Overloaded
from lorafleet_gateway.front import bodies as module
from lorafleet_gateway.front.bodies import LARGE_BYTES, SHARE, Bodies, Turn
from lorafleet_gateway.front.body import _read
from lorafleet_gateway.front.state import State

from .conftest import World, eventually

LARGEST = 2 * LARGE_BYTES


def admitted(bodies: Bodies, model: str, num_bytes: int) -> bool:
    """Have a body arrive and count it as one of a model; return whether it was taken."""
    bodies.take(num_bytes)
    try:
        bodies.count_for(model, num_bytes)
    except Overloaded as error:
        bodies.give_back(num_bytes)
        return error.why is not Full.MODEL_BODIES
    return True


def test_one_model_may_have_four_fifths_of_the_bytes() -> None:
    bodies = Bodies(100)
    assert [admitted(bodies, "french", 20) for _ in range(5)] == [True] * 4 + [False]
    assert bodies.num_bytes == 80
    assert admitted(bodies, "german", 15)
    assert not admitted(bodies, "german", 5), "its share of what is left"
    assert admitted(bodies, "roman", 5), "who has none gets all that there is"
    with pytest.raises(Overloaded) as raised:
        bodies.take(1)
    assert raised.value.why is Full.BODIES
    for model, num_bytes in (("french", 80), ("german", 15), ("roman", 5)):
        bodies.give_back(num_bytes, model)
    assert bodies.num_bytes == 0
    assert [admitted(bodies, "german", 80), admitted(bodies, "german", 1)] == [True, False], "nothing of before counts"


def test_to_the_last_byte() -> None:
    bodies = Bodies(100)
    assert [admitted(bodies, "french", size) for size in (40, 40, 1)] == [True, True, False]
    assert admitted(bodies, "french", 0), "what holds nothing takes nothing"


@given(st.integers(1, 60), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.booleans()), max_size=60))
def test_whoever_has_none_gets_room_while_there_is_some(most: int, steps: list[tuple[str, int, bool]]) -> None:
    bodies, held = Bodies(most), dict[str, list[int]]()
    for model, num_bytes, comes in steps:
        mine = held.setdefault(model, [])
        num_before = sum(map(sum, held.values()))
        if not comes:
            if mine:
                bodies.give_back(mine.pop(), model)
        elif num_before + num_bytes > most:
            with pytest.raises(Overloaded):
                bodies.take(num_bytes)
        elif admitted(bodies, model, num_bytes):
            mine.append(num_bytes)
            assert sum(mine) == num_bytes or sum(mine) <= SHARE * (most - num_before - num_bytes)
        else:
            assert sum(mine) > 0
            assert sum(mine) + num_bytes > SHARE * (most - num_before - num_bytes)
        assert bodies.num_bytes == sum(map(sum, held.values())) <= most


async def begun(*tasks: asyncio.Task[Turn]) -> list[bool]:
    """Which have their turn, once all had the chance."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def coming(bodies: Bodies, *sizes: int) -> list[asyncio.Task[Turn]]:
    return [asyncio.create_task(bodies.turn(size, size)) for size in sizes]


async def test_large_bodies_arrive_in_their_order_and_in_half_of_what_no_model_holds() -> None:
    bodies = Bodies(100)
    tasks = coming(bodies, 30, 20, 10, 10)
    assert await begun(*tasks) == [True, True, False, False]
    assert bodies.num_bytes == 50
    bodies.take(30)  # small ones have the other half
    bodies.count_for("french", 30)
    bodies.end(tasks[1].result(), 20)
    assert await begun(*tasks) == [True, True, False, False], "half of seventy is 35"
    bodies.give_back(30, "french")
    assert await begun(*tasks) == [True, True, True, True]
    for index in (0, 2, 3):
        turn = tasks[index].result()
        bodies.end(turn, turn.num_bytes)
    assert bodies.num_bytes == 0


async def test_one_large_body_may_always_arrive_and_small_ones_do_not_queue() -> None:
    bodies = Bodies(100)
    bodies.take(40)
    bodies.count_for("french", 40)
    first, second, third = coming(bodies, 60, 50, 10)
    assert await begun(first, second, third) == [True, False, False]
    bodies.end(first.result(), 10)  # it is there, and shorter
    bodies.take(10)
    bodies.give_back(10)
    assert await begun(second, third) == [False, False], "nobody knows whose it is, and it may be refused"
    bodies.count_for("german", 50)
    with pytest.raises(Overloaded, match="100 bytes"):
        await second
    assert (await third).num_bytes == 10
    assert bodies.num_bytes == 100


async def test_of_a_body_of_unknown_length_as_much_is_promised_as_there_is() -> None:
    bodies = Bodies(100)
    bodies.take(70)
    bodies.count_for("french", 70)
    turn = await bodies.turn(80, 30)
    assert turn.num_bytes == 30
    bodies.end(turn, 30)
    with pytest.raises(Overloaded):
        await bodies.turn(80, 31)
    assert bodies.num_bytes == 70


@pytest.mark.parametrize("waits", [True, False])
async def test_who_leaves_makes_room(waits: bool) -> None:
    bodies = Bodies(100)
    first, second, third = tasks = coming(bodies, 50, 40, 10)
    assert await begun(*tasks) == [True, False, False]
    if waits:
        second.cancel()
        assert await begun(first, third) == [True, False]
    bodies.end(first.result(), 50)
    if not waits:
        second.cancel()  # it has its turn, and does not know yet
    assert await begun(third) == [True]
    with suppress(asyncio.CancelledError):
        await second
    bodies.end(third.result(), 10)
    assert bodies.num_bytes == 0


class Slow:
    """A body that stops in its middle."""

    def __init__(self, *pieces: int) -> None:
        self.pieces = pieces
        self.begun = asyncio.Event()

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield bytes(piece)
        self.begun.set()
        await asyncio.Event().wait()


async def test_a_slow_body_ends_when_others_have_waited_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(module, "BYTES_PER_SECOND", 1 << 40)
    state = State(max_in_flight=9, max_held_bytes=4 * LARGE_BYTES)
    slow = Slow(10, LARGE_BYTES, 10)

    async def read(content: object, declared: int) -> int:
        with state.request() as room:
            return len(await _read(content, declared, 4 * LARGE_BYTES, room))  # type: ignore[arg-type]

    first = asyncio.create_task(read(slow, 3 * LARGE_BYTES))
    await slow.begun.wait()
    await asyncio.sleep(0)
    assert not first.done(), "nobody waits"

    class Quick(Slow):
        async def iter_any(self) -> AsyncIterator[bytes]:
            yield bytes(3 * LARGE_BYTES)

    assert await read(Quick(), 3 * LARGE_BYTES) == 3 * LARGE_BYTES
    with pytest.raises(BodyTimeout):
        await first
    assert state.num_held_bytes == 0


async def test_others_are_answered_beside_a_burst_of_large_bodies(world: World) -> None:
    """Twenty clients of one model with bodies of half a MiB, again and again, while its pod takes its time."""
    pod, go_on = await world.pod("one"), asyncio.Event()
    world.endpoints(pod)
    client = await world.open(max_body_bytes=LARGEST, max_held_bytes=6 * LARGEST)
    state = world.state
    assert state is not None
    most, num_thinking, statuses, is_over = 0, 0, list[int](), False

    async def reply(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        nonlocal num_thinking
        if b'"french"' in body[-100:]:
            num_thinking += 1
            await go_on.wait()
        return await well(request, pod, body)

    async def ask(model: str, num_bytes: int) -> int:
        nonlocal most
        content = b'{"prompt": "%s", "model": "%s"}' % (b"x" * num_bytes, model.encode())
        answer = await client.post("/v1/chat/completions", content=content)
        most = max(most, state.num_held_bytes)
        return answer.status_code

    async def insist() -> None:
        while not is_over:
            with suppress(httpx.HTTPError):
                statuses.append(await ask("french", LARGEST - 1000))

    pod.reply = reply
    burst = [asyncio.create_task(insist()) for _ in range(20)]
    await eventually("it has its share", lambda: statuses.count(429) > 20)
    others = [await ask("numerals", size) for size in (100, LARGE_BYTES // 2, 2 * LARGE_BYTES - 1000, LARGE_BYTES)]
    at_once = await asyncio.gather(*(ask("numerals", LARGE_BYTES) for _ in range(2)))
    assert {*others, *at_once} == {200}
    assert num_thinking == 4, "four fifths of six are not five"
    assert most <= 6 * LARGEST
    is_over = True
    go_on.set()
    await asyncio.gather(*burst)
    assert state.num_held_bytes == 0
    value = metrics.REGISTRY.get_sample_value(
        "lorafleet_gateway_overloaded_total", {"base": "numerals", "adapter": "french", "reason": "model_bodies"}
    )
    assert value == statuses.count(429) > 0
