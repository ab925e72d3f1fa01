"""What pods publish decides where requests go."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from support.upstream_pods import PodDouble, refusing, streaming

from lorafleet_gateway.fleet import pods as fleet_pods
from lorafleet_gateway.fleet.pods import PAUSE_SECONDS, Fleet, Pod
from lorafleet_gateway.fleet.routing import EJECT_AFTER
from lorafleet_gateway.views import Endpoint

from .conftest import World, eventually


async def three_pods(world: World) -> list[PodDouble]:
    pods = [await world.pod(f"pod-{number}") for number in range(3)]
    world.endpoints(*pods)
    await world.open()
    return pods


def tier_of(world: World, pod: PodDouble, name: str = "french") -> str | None:
    assert world.cluster is not None
    found = next(p for p in world.cluster.fleet.all() if p.endpoint.uid == pod.uid)
    return next((tier for (adapter, _), tier in found.tiers.items() if adapter == name), None)


def said_ready(world: World, pod: PodDouble) -> bool:
    assert world.cluster is not None
    return next(p for p in world.cluster.fleet.all() if p.endpoint.uid == pod.uid).is_ready


async def test_requests_follow_the_adapter(world: World) -> None:
    for pod in await three_pods(world):
        for other in world.pods:
            other.tiers.clear()
            other.hold("french", "Disk")
        pod.hold("french", "Device")
        await eventually(
            "told", lambda pod=pod: all(tier_of(world, p) == ("Device" if p is pod else "Disk") for p in world.pods)
        )
        assert (await world.ask()).json() == {"pod": pod.name}


async def test_host_memory_comes_before_disk(world: World) -> None:
    pods = await three_pods(world)
    for pod, tier in zip(pods, ("Disk", "Host", "Disk"), strict=True):
        pod.hold("french", tier)
    await eventually("told", lambda: all(tier_of(world, pod) is not None for pod in pods))
    assert (await world.ask()).json() == {"pod": "pod-1"}


async def test_an_adapter_that_is_nowhere_goes_to_one_pod_always(world: World) -> None:
    await three_pods(world)
    answers = {(await world.ask()).json()["pod"] for _ in range(6)}
    assert len(answers) == 1


async def test_a_pod_that_says_it_is_not_ready_gets_nothing(world: World) -> None:
    pods = await three_pods(world)
    for pod in pods[:2]:
        pod.hold("french")
    pods[0].draining = True
    pods[0].changed()
    pods[1].ready = False
    pods[1].changed()
    await eventually("told", lambda: not said_ready(world, pods[0]) and not said_ready(world, pods[1]))
    assert (await world.ask()).json() == {"pod": "pod-2"}
    pods[1].ready = True
    pods[1].changed()
    await eventually("told", lambda: said_ready(world, pods[1]))
    assert (await world.ask()).json() == {"pod": "pod-1"}


async def test_a_pod_that_does_not_say_what_it_holds_is_the_last_resort(world: World) -> None:
    first, second = await world.pod("first"), await world.pod("second")
    first.publishes = second.publishes = False
    first.hold("french")
    world.endpoints(first, second)
    await world.open()
    assert (await world.ask()).status_code == 200
    second.publishes = True
    await eventually("the second speaks", lambda: world.num_reachable() == 1)
    assert (await world.ask()).json() == {"pod": "second"}
    first.publishes = True
    await eventually("the first speaks", lambda: world.num_reachable() == 2)
    assert (await world.ask()).json() == {"pod": "first"}


async def test_requests_of_others_count(world: World) -> None:
    first, second = await world.pod("first"), await world.pod("second")
    for pod in (first, second):
        pod.hold("french")
    first.num_running, first.num_waiting = 3, 2
    world.endpoints(first, second)
    await world.open()
    assert {(await world.ask()).json()["pod"] for _ in range(4)} == {"second"}


@pytest.mark.parametrize("num_pods", [2, 3])
async def test_requests_of_this_gateway_count_while_they_run(world: World, num_pods: int) -> None:
    """The busiest pod of all gets none: two of more are drawn, which makes two pods exact and three only even."""
    pods = [await world.pod(f"pod-{number}") for number in range(num_pods)]
    world.endpoints(*pods)
    await world.open()
    for pod in pods:
        pod.hold("french")
    await eventually("told", lambda: all(tier_of(world, pod) for pod in pods))
    go_on = asyncio.Event()
    for pod in pods:
        pod.reply = streaming("data: 1\n\n", pause=go_on)
    running = []
    counts = [0] * num_pods
    for number in range(3 * num_pods):
        busiest = [pod for pod, count in zip(pods, counts, strict=True) if count == max(counts)]
        running.append(asyncio.create_task(world.ask()))
        await eventually("it runs", lambda number=number: sum(len(pod.received) for pod in pods) == number + 1)
        before, counts = counts, [len(pod.received) for pod in pods]
        if len(busiest) == 1:
            assert counts[pods.index(busiest[0])] == max(before)
    assert num_pods > 2 or counts == [3, 3]
    go_on.set()
    await asyncio.gather(*running)


async def test_a_restarted_container_is_heard_anew(world: World) -> None:
    """Same pod, new boot, the same generation: what was known of the old boot is void."""
    first, second = await world.pod("first"), await world.pod("second")
    first.hold("french")
    world.endpoints(first, second)
    await world.open()
    assert (await world.ask()).json() == {"pod": "first"}
    first.boot = "boot-2"
    first.tiers.clear()
    second.hold("french")
    await eventually("heard", lambda: tier_of(world, first) is None and tier_of(world, second) == "Device")
    assert (await world.ask()).json() == {"pod": "second"}


async def test_pods_come_and_go(world: World) -> None:
    pods = await three_pods(world)
    for pod in pods[1:]:
        world.kube.delete("endpointslices", "team", f"numerals-pods-{pod.name}")
    assert world.cluster is not None
    await eventually("two are gone", lambda: len(world.cluster.fleet.all()) == 1)  # type: ignore[union-attr]
    assert (await world.ask("numerals")).json() == {"pod": "pod-0"}
    asked, polls = pods[1].num_polls, pods[0].num_polls
    pods[0].changed()
    pods[1].changed()
    await eventually("the one that is left is asked again", lambda: pods[0].num_polls > polls)
    assert pods[1].num_polls == asked


async def test_polls_are_long(world: World) -> None:
    pods = await three_pods(world)
    before = pods[0].num_polls
    pods[1].changed()
    await eventually("two rounds", lambda polls=pods[1].num_polls: pods[1].num_polls >= polls + 2)
    assert pods[0].num_polls - before <= 2
    assert PAUSE_SECONDS < 1


async def test_what_a_gateway_has_is_not_sent_to_it_again(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    await eventually("told", lambda: tier_of(world, pod) == "Device")
    polls, whole = pod.num_polls, pod.num_whole
    pod.num_running = 3
    assert world.cluster is not None
    await eventually("polled", lambda: pod.num_polls > polls + 1)
    await eventually("counted", lambda: world.cluster.fleet.all()[0].num_others == 3)  # type: ignore[union-attr]
    assert pod.num_whole == whole
    assert tier_of(world, pod) == "Device"
    pod.hold("french", "Disk")
    await eventually("told of the change", lambda: tier_of(world, pod) == "Disk")


@pytest.mark.parametrize("leaves_out", [True, False])
async def test_a_gateway_is_told_what_has_changed(world: World, *, leaves_out: bool) -> None:
    """Pods of earlier versions tell everything each time."""
    pod = await world.pod("one")
    pod.leaves_out = leaves_out
    pod.hold("french")
    pod.hold("german")
    world.endpoints(pod)
    await world.open()
    await eventually("told", lambda: tier_of(world, pod) == "Device")
    whole = pod.num_whole
    pod.tiers.clear()
    pod.hold("german")
    await eventually("gone", lambda: tier_of(world, pod) is None)
    pod.hold("dutch", "Disk")
    await eventually("new", lambda: tier_of(world, pod, "dutch") == "Disk")
    pod.hold("dutch", "Host")
    await eventually("moved", lambda: tier_of(world, pod, "dutch") == "Host")
    assert tier_of(world, pod, "german") == "Device"
    assert pod.num_whole == whole if leaves_out else pod.num_whole > whole


async def test_a_difference_to_what_is_not_known_is_not_taken(world: World) -> None:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    await eventually("told", lambda: tier_of(world, pod) == "Device")
    pod.extra = {"since": 10**6, "adapters": []}
    pod.tiers.clear()
    pod.changed()
    polls = pod.num_polls
    await eventually("asked again", lambda: pod.num_polls > polls + 2)
    assert tier_of(world, pod) == "Device"
    pod.extra = {}
    await eventually("told", lambda: tier_of(world, pod) is None)


async def test_a_pod_that_was_started_again_is_asked_for_everything(world: World) -> None:
    """Even when its new count happens to be the one that the gateway knows."""
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    await eventually("told", lambda: tier_of(world, pod) == "Device")
    pod.boot = "boot-2"
    pod.tiers.clear()
    await eventually("told of the new boot", lambda: tier_of(world, pod) is None and world.num_reachable() == 1)


async def test_an_answer_without_end_is_not_gathered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_pods, "MAX_ANSWER_BYTES", 1 << 12)
    good, bad = await world.pod("good"), await world.pod("bad")
    bad.extra["filler"] = "x" * (1 << 13)
    world.endpoints(good, bad)
    await world.open()
    assert world.num_reachable() == 1
    assert (await world.ask()).json() == {"pod": "good"}


async def test_differences_do_not_add_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's image is its owner's, and each answer is short."""
    monkeypatch.setattr(fleet_pods, "MAX_ENTRIES", 4)
    monkeypatch.setattr(fleet_pods, "PAUSE_SECONDS", 0.001)
    asked: list[bool] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append("since" in request.query)
        made_up = {"name": f"made-up-{len(asked)}", "revision": "0" * 12, "stable": True, "tier": "Disk"}
        head = {"bootId": "b", "base": "base", "ready": True, "draining": False, "maxModelLen": 8}
        since = {"since": int(request.query["since"])} if asked[-1] else {}
        return web.json_response({**head, **since, "generation": len(asked), "adapters": [made_up]})

    async with asked_by_a_fleet(answer) as pod, asyncio.timeout(30):
        seen = set()
        while asked.count(False) < 2:
            seen.add(len(pod.tiers))
            await asyncio.sleep(0.001)
    assert asked.count(True) > 3, "it was believed as long as it was short"
    assert max(seen) <= 4


ROUTES = {
    "bootId": "b",
    "base": "base",
    "generation": 1,
    "ready": True,
    "draining": False,
    "maxModelLen": 8,
    "adapters": [],
}


async def test_a_pod_does_not_send_gateways_elsewhere() -> None:
    """Its image is its owner's: what a gateway can reach is not the owner's to ask."""
    asked: list[tuple[str, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers.get("accept-encoding")))
        if request.path == "/secret":
            return web.json_response(ROUTES)
        raise web.HTTPFound("/secret", headers={"set-cookie": "a=b"})

    await answered_by(answer)
    assert set(asked) == {("/v1/routes", "identity")}


async def test_what_a_pod_packs_is_not_unpacked() -> None:
    async def answer(_: web.Request) -> web.Response:
        packed = gzip.compress(json.dumps(ROUTES).encode())
        return web.Response(body=packed, headers={"content-encoding": "gzip"})

    await answered_by(answer)


async def test_the_same_is_believed_of_a_pod_that_says_it_plainly() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(ROUTES)

    async with asked_by_a_fleet(answer) as pod:
        await eventually("reachable", lambda: pod.is_reachable)


async def answered_by(answer: Callable[[web.Request], Awaitable[web.Response]]) -> None:
    """Have a fleet ask a pod that answers so, and again, so that it has seen what the first answer said."""
    num_asked = 0

    async def counted(request: web.Request) -> web.Response:
        nonlocal num_asked
        num_asked += 1
        return await answer(request)

    async with asked_by_a_fleet(counted) as pod:
        await eventually("asked again", lambda: num_asked > 2)
        assert not pod.is_reachable
        assert pod.head is None


@contextlib.asynccontextmanager
async def asked_by_a_fleet(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[Pod]:
    """Yield a pod that answers so, as a fleet sees it."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with Fleet() as fleet:
        fleet.sync(("team", "base"), [Endpoint("uid", "pod", url, is_ready=True)])
        yield fleet.all()[0]
    await runner.cleanup()


async def test_a_pod_that_fails_one_request_after_the_other_gets_nothing_for_a_while(world: World) -> None:
    """It is the fastest and the least busy, and would get everything."""
    bad, good = [await world.pod(name) for name in ("bad", "good")]
    bad.hold("french")
    good.hold("french", "Disk")
    world.endpoints(bad, good)
    await world.open()
    await eventually("told", lambda: tier_of(world, good) == "Disk")
    bad.reply = refusing(500, "internal_error")
    assert [(await world.ask()).status_code for _ in range(EJECT_AFTER + 3)] == [500] * EJECT_AFTER + [200] * 3
    assert world.cluster is not None
    ejected = next(pod for pod in world.cluster.fleet.all() if pod.endpoint.uid == bad.uid)
    ejected.ejected_until = 0.0  # the 30 s are over
    bad.reply = None
    assert (await world.ask()).json() == {"pod": "bad"}


async def test_half_of_a_base_stays_whatever_it_answers(world: World) -> None:
    pods = [await world.pod(name) for name in ("one", "two")]
    for pod in pods:
        pod.reply = refusing(500, "internal_error")
    world.endpoints(*pods)
    await world.open()
    for _ in range(4 * EJECT_AFTER):
        assert (await world.ask("numerals")).status_code == 500
    assert world.cluster is not None
    assert sum(pod.is_ejected for pod in world.cluster.fleet.all()) == 1


async def test_a_pod_that_fails_now_and_then_is_not_ejected(world: World) -> None:
    pods = [await world.pod(name) for name in ("one", "two")]
    pods[0].hold("french")
    world.endpoints(*pods)
    await world.open()
    for _ in range(3):
        pods[0].reply = refusing(500, "internal_error")
        for _ in range(EJECT_AFTER - 1):
            await world.ask()
        pods[0].reply = None
        assert (await world.ask()).json() == {"pod": "one"}
