"""A burst of one model takes its share of the requests in flight, and no other model's."""

import asyncio
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st
from support.upstream_pods import streaming

from lorafleet_gateway.cluster.directory import Target, merge_of
from lorafleet_gateway.errors import Overloaded
from lorafleet_gateway.front.state import SHARE, State

from .conftest import World, eventually


def fill(state: State, stack: ExitStack, model: str) -> int:
    """Have requests of a model come until one is refused; return how many were not."""
    number = 0
    while True:
        with ExitStack() as one:
            try:
                one.enter_context(state.request()).count_for(model)
            except Overloaded:
                return number
            stack.enter_context(one.pop_all())
        number += 1


def state_of(max_in_flight: int) -> State:
    return State(max_in_flight=max_in_flight, max_held_bytes=1)


def test_one_model_may_have_four_fifths_and_leaves_the_rest_to_others() -> None:
    state = state_of(100)
    with ExitStack() as stack:
        assert fill(state, stack, "french") == 80
        assert fill(state, stack, "german") == 16
        assert fill(state, stack, "roman") == 4
        assert state.num_in_flight == 100
    assert state.num_in_flight == 0
    with ExitStack() as stack:
        assert fill(state, stack, "german") == 80, "nothing of before counts"


@given(st.integers(1, 40), st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=80))
def test_whoever_has_none_gets_one_while_there_is_room(max_in_flight: int, steps: list[tuple[str, bool]]) -> None:
    state, running = state_of(max_in_flight), dict[str, list[ExitStack]]()
    for model, comes in steps:
        mine = running.setdefault(model, [])
        if not comes:
            if mine:
                mine.pop().close()
            continue
        num_before = sum(map(len, running.values()))
        with ExitStack() as stack:
            try:
                stack.enter_context(state.request()).count_for(model)
            except Overloaded:
                assert num_before == max_in_flight or len(mine) >= SHARE * (max_in_flight - num_before)
                assert mine or num_before == max_in_flight
            else:
                mine.append(stack.pop_all())
        assert state.num_in_flight == sum(map(len, running.values())) <= max_in_flight


def test_merges_and_undeclared_adapters_of_a_base_share() -> None:
    base = ("team", "base")
    parts = [Target(name, base, "base", revision="a" * 12) for name in ("french", "german", "roman")]
    merged = {merge_of(some).counts_as for some in (parts, parts[:2], parts[1:])}
    undeclared = {Target(name, base, "base", is_ad_hoc=True).counts_as for name in ("x", "y")}
    declared = {part.counts_as for part in parts}
    assert len(merged) == len(undeclared) == 1
    assert declared == {"french", "german", "roman"}
    assert not merged & undeclared


async def test_a_request_of_another_model_is_answered_beside_a_burst(world: World) -> None:
    pod, go_on = await world.pod("one"), asyncio.Event()
    world.endpoints(pod)
    await world.open(max_in_flight=5)
    assert world.state is not None
    pod.reply = streaming("data: 1\n\n", pause=go_on)
    burst = [asyncio.create_task(world.ask("french")) for _ in range(4)]
    await eventually("they run", lambda: world.state is not None and world.state.num_in_flight == 4)
    refused = await world.ask("french")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert refused.headers["retry-after"]
    pod.reply = None
    assert (await world.ask("numerals")).status_code == 200
    go_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*burst)} == {200}
    assert (await world.ask("french")).status_code == 200
    assert world.client is not None
    evidence = (await world.client.get(world.metrics_url.replace("/metrics", "/v1/evidence"))).json()
    (of_french,) = evidence["revisions"]
    assert (of_french["numRequests"], of_french["errors"]) == (5, {}), "who was not let in says nothing of a revision"
