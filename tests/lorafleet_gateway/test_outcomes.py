"""What came of requests, as metrics and whoever judges a revision see it."""

import asyncio

import pytest
from support.upstream_pods import refusing, streaming

from lorafleet_gateway import metrics
from lorafleet_gateway.front.outcomes import ErrorEvents

from .conftest import World, eventually

FAILED = 'event: error\ndata: {"error": {"message": "x"}}\n\n'


def counted() -> dict[tuple[str, str], float]:
    """Requests by (code, outcome)."""
    return {
        (sample.labels["code"], sample.labels["outcome"]): sample.value
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name == "lorafleet_gateway_requests_total" and sample.labels["adapter"] == "french"
    }


async def grown(world: World, code: str, outcome: str) -> None:
    before = dict(counted())
    try:
        async with world.client.stream("POST", "/v1/completions", json={"model": "french"}) as answer:  # type: ignore[union-attr]
            async for _ in answer.aiter_raw():
                pass
    except Exception:  # noqa: BLE001  a client sees a cut stream as it will
        pass
    await eventually("counted", lambda: counted() != before)
    after = counted()
    assert {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)} == {
        (code, outcome): 1
    }


async def test_each_request_has_one_outcome(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    await grown(world, "200", "ok")
    pod.reply = streaming("data: 1\n\n", "data: [DONE]\n\n")
    await grown(world, "200", "ok")
    pod.reply = streaming("data: 1\n\n", FAILED)
    await grown(world, "200", "error")
    pod.reply = streaming("data: 1\n\n", FAILED[:9], FAILED[9:])
    await grown(world, "200", "error")
    pod.reply = streaming("data: 1\n\n", breaks=True)
    await grown(world, "200", "cut")
    pod.reply = streaming("data: half", breaks=True)
    await grown(world, "200", "cut")
    pod.reply = refusing(400, "invalid_value")
    await grown(world, "400", "client_error")
    pod.reply = refusing(500, "internal_error")
    await grown(world, "500", "error")


async def test_a_client_that_leaves_is_an_outcome_of_its_own(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    client = await world.open()
    pod.reply = streaming("data: 1\n\n", pause=asyncio.Event())
    before = counted().get(("499", "client_left"), 0)
    async with client.stream("POST", "/v1/completions", json={"model": "french"}) as answer:
        assert await anext(answer.aiter_raw()) == b"data: 1\n\n"
    await eventually("counted", lambda: counted().get(("499", "client_left"), 0) == before + 1)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FAILED, True),
        ("data: 1\n\n" + FAILED, True),
        ('data: {"text": "\\nevent: error\\n"}\n\n', False),
        ("data: event: error\n\n", False),
    ],
)
def test_an_error_event_is_found_however_it_is_cut(text: str, found: bool, size: int) -> None:
    raw, events = text.encode(), ErrorEvents()
    for begin in range(0, len(raw), size):
        events.feed(raw[begin : begin + size])
    assert events.found is found
