"""Requests while a canary has a share of an adapter's traffic: who answers them, what becomes of trouble, what is counted."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from support.upstream_pods import REVISION, PodDouble, Reply, breaking, refusing, streaming, well

from lorafleet_common.keys.guard import Guard, hash_of, new_key
from lorafleet_contract.evidence import Evidence, RevisionEvidence
from lorafleet_contract.keys import read_keys
from lorafleet_gateway import metrics
from lorafleet_gateway.fleet.routing import EJECT_AFTER
from lorafleet_gateway.front import rollout_metrics
from lorafleet_gateway.traffic import Share, choose

from .conftest import World, eventually

CANARY, NEWER = "b" * 12, "c" * 12
ASKED = "x-lorafleet-revision"
SESSION = "x-lorafleet-session"


def share(world: World, canary: int, revision: str = CANARY, **status: Any) -> None:
    """Give a canary so many percent of the traffic of `french`."""
    traffic = [{"revision": REVISION, "weight": 100 - canary}, {"revision": revision, "weight": canary}]
    world.adapter("french", status={"traffic": traffic, **status})


async def shared(world: World, canary: int = 50, num_pods: int = 1, **options: Any) -> list[PodDouble]:
    """Open a gateway while a canary has a share, and pods hold both revisions."""
    share(world, canary)
    pods = [await world.pod(f"pod-{number}") for number in range(num_pods)]
    for pod in pods:
        pod.hold("french")
        pod.hold("french", revision=CANARY)
    world.endpoints(*pods)
    await world.open(**options)
    await eventually("pods are known", lambda: world.num_reachable() == num_pods)
    return pods


def session_of(revision: str, canary: int = 50) -> dict[str, str]:
    """Return the header of a session that meets a revision."""
    traffic = (Share(REVISION, 100 - canary), Share(CANARY, canary))
    numbers = (n for n in range(10_000) if choose(traffic, f"session {n}") == revision)
    return {SESSION: str(next(numbers))}


def only(revision: str, otherwise: Reply, then: Reply = well) -> Reply:
    """Treat requests for one revision otherwise."""

    async def reply(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        return await (otherwise if request.headers.get(ASKED) == revision else then)(request, pod, body)

    return reply


async def rows(world: World) -> dict[str, RevisionEvidence]:
    assert world.client is not None
    answer = await world.client.get(world.metrics_url.replace("/metrics", "/v1/evidence"))
    return {row.revision: row for row in Evidence.model_validate_json(answer.content).revisions}


async def test_each_revision_is_asked_for_by_name_in_its_share(world: World) -> None:
    """The binomial bounds of 300 draws at 25 % are 40 and 112 at 4.8 sigmas; request ids here are fixed."""
    (pod,) = await shared(world, 25)
    for number in range(300):
        answer = await world.ask(headers={"x-request-id": f"request-{number}"})
        assert answer.headers[ASKED] == pod.received[-1].headers[ASKED]
    counts = Counter(request.headers[ASKED] for request in pod.received)
    assert set(counts) == {REVISION, CANARY}
    assert 40 <= counts[CANARY] <= 112
    again = await world.ask(headers={"x-request-id": "request-0"})
    assert again.headers[ASKED] == pod.received[0].headers[ASKED], "a client's own retry meets the same revision"


async def test_a_session_stays_and_moves_once_at_most_as_the_canary_grows(world: World) -> None:
    await shared(world, 0)
    met: dict[int, list[str]] = {number: [] for number in range(16)}
    for canary in (0, 10, 50, 90, 100):
        share(world, canary)
        weights = (100 - canary, canary)
        await eventually("told", lambda: tuple(s.weight for s in traffic(world)) == weights)  # noqa: B023
        for number, revisions in met.items():
            for path in ("/v1/completions", "/v1/chat/completions"):
                answer = await world.client.post(path, json={"model": "french"}, headers={SESSION: str(number)})  # type: ignore[union-attr]
                revisions.append(answer.headers[ASKED])
    for revisions in met.values():
        assert revisions == sorted(revisions), "first the stable one, then the canary"
        assert all(one == other for one, other in zip(revisions[::2], revisions[1::2], strict=True))
        assert (revisions[0], revisions[-1]) == (REVISION, CANARY)
    assert len({tuple(revisions) for revisions in met.values()}) > 2, "not all at once"


def traffic(world: World) -> tuple[Share, ...]:
    assert world.cluster is not None
    return world.cluster.directory.target("french").traffic


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/v1/responses", "/tokenize"])
async def test_every_route_takes_part(world: World, path: str) -> None:
    (pod,) = await shared(world)
    body = {"inputs": "one", "parameters": {"adapter_id": "french"}} if path[1:2] in ("", "g") else {"model": "french"}
    for revision in (REVISION, CANARY):
        await world.client.post(path, json=body, headers=session_of(revision))  # type: ignore[union-attr]
        assert (pod.received[-1].path, pod.received[-1].headers[ASKED]) == (path, revision)


async def test_who_insists_on_a_revision_has_it(world: World) -> None:
    (pod,) = await shared(world)
    for revision in (REVISION, CANARY):
        for session in (REVISION, CANARY):
            headers = session_of(session)
            assert (await world.ask(f"french@{revision}", headers=headers)).headers[ASKED] == revision
            assert (await world.ask(headers={**headers, ASKED: revision})).headers[ASKED] == revision
    pod.reply = only(CANARY, refusing(404, "revision_not_found"))
    answer = await world.ask(f"french@{CANARY}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "revision_not_found")


async def test_only_revisions_that_were_stable_or_have_a_share_can_be_insisted_on(world: World) -> None:
    await shared(world)
    results = {NEWER: "RolledBack", "d" * 12: "Superseded", "e" * 12: "Promoted", "f" * 12: None}
    history = [{"revision": revision, "result": result} for revision, result in results.items()]
    share(world, 50, history=history)
    for revision, result in {**results, CANARY: None, REVISION: None}.items():
        answer = await world.ask(f"french@{revision}")
        assert (answer.status_code == 200) is (result in (None, "Promoted")), revision


@pytest.mark.parametrize(
    "status",
    [
        {"traffic": [{"revision": REVISION, "weight": 100}]},
        {"traffic": [{"revision": REVISION, "weight": 50}, {"revision": CANARY, "weight": 60}]},
        {"traffic": [{"revision": REVISION, "weight": 50}, {"revision": CANARY, "weight": {"percent": 50}}]},
        {"traffic": [{"revision": NEWER, "weight": 50}, {"revision": CANARY, "weight": 50}]},
        {"traffic": "half"},
    ],
)
async def test_traffic_that_says_nothing_of_use_leaves_all_to_the_stable_revision(
    world: World, status: dict[str, Any]
) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    world.adapter("french", status=status)
    await world.open()
    for number in range(20):
        await world.ask(headers={SESSION: str(number)})
    assert {request.headers[ASKED] for request in pod.received} == {REVISION}


@pytest.mark.parametrize("sticks", [True, False])
async def test_requests_of_a_key_stay_together_unless_that_is_switched_off(world: World, *, sticks: bool) -> None:
    """A session counts for more than the key."""
    secrets = [new_key() for _ in range(6)]
    keys = [{"name": f"team-{number}", "hashes": [hash_of(key)]} for number, key in enumerate(secrets)]
    guard = Guard(read_keys(json.dumps({"keys": keys}).encode()), metrics.KEYS)
    await shared(world, guard=guard, spread_keys=not sticks)

    async def met(key: str, **headers: str) -> str:
        return (await world.ask(headers={"authorization": f"Bearer {key}", **headers})).headers[ASKED]

    of_each = [{await met(key) for _ in range(20)} for key in secrets]
    assert ({len(one) for one in of_each} == {1}) is sticks
    assert set.union(*of_each) == {REVISION, CANARY}
    for revision in (REVISION, CANARY):
        assert {await met(key, **session_of(revision)) for key in secrets} == {revision}


@pytest.mark.parametrize("reply", [breaking, refusing(503, "draining"), refusing(429, "overloaded")])
async def test_what_is_offered_again_stays_with_its_revision(world: World, reply: Reply) -> None:
    """Also where the pod that drains or dies was the only one that has it."""
    first, second = await shared(world, num_pods=2)
    for pod in (first, second):
        pod.tiers.clear()
        pod.hold("french")
    first.hold("french", revision=CANARY)
    await eventually("told", lambda: [tier_of(world, pod) for pod in (first, second)] == ["Device", None])
    first.reply = only(CANARY, reply)
    answer = await world.ask(headers=session_of(CANARY))
    assert (answer.status_code, answer.json(), answer.headers[ASKED]) == (200, {"pod": second.name}, CANARY)
    assert [request.headers[ASKED] for request in (*first.received, *second.received)] == [CANARY, CANARY]


def tier_of(world: World, pod: PodDouble) -> str | None:
    assert world.cluster is not None
    known = {one.endpoint.uid: one for one in world.cluster.fleet.all()}
    return known[pod.uid].tiers.get(("french", CANARY))


@pytest.mark.parametrize(
    ("status", "code", "is_fault"),
    [
        (404, "revision_not_found", False),
        (404, "model_not_found", False),
        (503, "adapter_loading", False),
        (424, "adapter_failed", True),
    ],
)
async def test_a_canary_that_no_pod_answers_with_leaves_its_requests_to_the_stable_revision(
    world: World, status: int, code: str, *, is_fault: bool
) -> None:
    """Each pod was asked first, and where the stable one is asked at last no attempt is missing.

    What pods lack is no evidence of the canary, neither good nor bad; what was refused speaks against it.
    """
    pods = await shared(world, num_pods=3, max_attempts=3)
    refused: set[str] = set()

    async def once(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        if pod.name not in refused and len(refused) < 2:
            refused.add(pod.name)
            return await refusing(503, "draining")(request, pod, body)
        return await well(request, pod, body)

    before = metrics.FALLBACKS.of("numerals", "french", code)._value.get()
    for pod in pods:
        pod.reply = only(CANARY, refusing(status, code), then=once)
    answer = await world.ask(headers=session_of(CANARY))
    assert (answer.status_code, answer.headers[ASKED]) == (200, REVISION)
    asked = Counter(request.headers[ASKED] for pod in pods for request in pod.received)
    assert asked == {CANARY: 3, REVISION: 3}
    assert metrics.FALLBACKS.of("numerals", "french", code)._value.get() == before + 1
    found = await rows(world)
    assert (found[REVISION].num_requests, found[REVISION].errors, found[REVISION].num_fallbacks) == (1, {}, 0)
    canary = found[CANARY]
    assert (canary.num_fallbacks, canary.num_requests, canary.num_faults) == (1, int(is_fault), int(is_fault))


async def test_a_canary_that_took_too_long_to_load_leaves_time_for_the_stable_revision(world: World) -> None:
    (pod,) = await shared(world, retry_seconds=0.05)

    async def slow(request: web.Request, pod: PodDouble, body: bytes) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return await refusing(503, "adapter_loading")(request, pod, body)

    pod.reply = only(CANARY, slow)
    answer = await world.ask(headers=session_of(CANARY))
    assert (answer.status_code, answer.headers[ASKED]) == (200, REVISION)


async def test_the_stable_revision_never_falls_back_to_the_canary(world: World) -> None:
    """Not all of the traffic may meet what five percent were to try."""
    (pod,) = await shared(world, 90)
    pod.reply = only(REVISION, refusing(424, "adapter_failed"))
    answer = await world.ask(headers=session_of(REVISION, 90))
    assert answer.status_code == 424
    pod.reply = refusing(404, "revision_not_found")
    answer = await world.ask(headers=session_of(CANARY, 90))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_loading")
    assert {request.headers.get(ASKED) for request in pod.received} == {REVISION, CANARY}


async def test_an_end_of_the_rollout_that_the_watch_has_not_told_yet_is_looked_up(world: World) -> None:
    (pod,) = await shared(world)
    world.kube.holds_events = True
    world.adapter("french", status={"stableRevision": CANARY, "traffic": [{"revision": CANARY, "weight": 100}]})
    pod.reply = only(REVISION, refusing(404, "revision_not_found"))
    for revision in (REVISION, CANARY):
        assert (await world.ask(headers=session_of(revision))).headers[ASKED] == CANARY
    assert [request.headers[ASKED] for request in pod.received] == [REVISION, CANARY, CANARY]


async def test_cut_off_from_the_api_server_a_canary_that_is_gone_is_the_stable_ones(world: World) -> None:
    (pod,) = await shared(world)
    world.kube.is_down = True
    pod.reply = only(CANARY, refusing(404, "revision_not_found"))
    answer = await world.ask(headers=session_of(CANARY))
    assert (answer.status_code, answer.headers[ASKED]) == (200, REVISION)


async def test_a_stream_ends_where_it_began(world: World) -> None:
    """The canary is taken back while it answers; the next request of the session meets the stable one."""
    (pod,) = await shared(world)
    go_on, headers = asyncio.Event(), session_of(CANARY)
    pod.reply = streaming("data: 1\n\n", "data: [DONE]\n\n", pause=go_on, headers={ASKED: CANARY})
    async with world.client.stream(  # type: ignore[union-attr]
        "POST", "/v1/completions", json={"model": "french"}, headers=headers
    ) as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"data: 1\n\n"
        world.adapter("french")
        await eventually("told", lambda: not traffic(world))
        pod.reply = None
        assert (await world.ask(headers=headers)).headers[ASKED] == REVISION
        go_on.set()
        assert answer.headers[ASKED] == CANARY
        assert b"".join([chunk async for chunk in chunks]) == b"data: [DONE]\n\n"
    await eventually("counted", lambda: world.state is not None and world.state.num_in_flight == 0)
    found = await rows(world)
    assert {revision: (row.num_requests, row.num_faults) for revision, row in found.items()} == {
        REVISION: (1, 0),
        CANARY: (1, 0),
    }


async def test_a_stream_whose_pod_is_lost_is_not_begun_again_with_another_revision(world: World) -> None:
    (pod,) = await shared(world)
    pod.reply = streaming("data: 1\n\n", breaks=True, headers={ASKED: CANARY})
    answer = await world.ask(headers=session_of(CANARY))
    assert "event: error" in answer.text
    assert len(pod.received) == 1
    assert (await rows(world))[CANARY].errors == {"stream_broken": 1}


async def test_a_lost_pod_and_a_failing_revision_are_told_apart(world: World) -> None:
    (pod,) = await shared(world)
    for reply in (breaking, refusing(500, "internal_error")):
        pod.reply = reply
        await world.ask(headers=session_of(CANARY))
    assert (await rows(world))[CANARY].errors == {"pod_lost": 1, "server_error": 1}


async def test_a_canary_that_fails_does_not_take_its_pods_from_the_others(world: World) -> None:
    pods = await shared(world, num_pods=2)
    for pod in pods:
        pod.reply = only(CANARY, refusing(500, "internal_error"))
    for _ in range(4 * EJECT_AFTER):
        assert (await world.ask(headers=session_of(CANARY))).status_code == 500
    assert world.cluster is not None
    assert not any(pod.is_ejected for pod in world.cluster.fleet.all())
    for pod in pods:
        pod.reply = only(REVISION, refusing(500, "internal_error"))
    for _ in range(4 * EJECT_AFTER):
        await world.ask(headers=session_of(REVISION))
    assert any(pod.is_ejected for pod in world.cluster.fleet.all())


async def test_metrics_by_revision_are_there_while_a_rollout_runs(world: World) -> None:
    (pod,) = await shared(world)
    assert world.cluster is not None
    assert world.door is not None
    registry = CollectorRegistry()
    registry.register(rollout_metrics.RolloutCollector(world.cluster.directory, world.door.evidence))

    def series() -> dict[str, float]:
        lines = generate_latest(registry).decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    assert series() == {}
    for revision, number in ((REVISION, 3), (CANARY, 2)):
        for _ in range(number):
            await world.ask(headers=session_of(revision))
    pod.reply = refusing(500, "internal_error")
    await world.ask(headers=session_of(CANARY))
    labels = 'adapter="french",base="numerals",revision='
    name, latency = "lorafleet_gateway_revision_requests_total", "lorafleet_gateway_revision_time_to_first_byte_seconds"
    told = series()
    assert told == {
        **{key: value for key, value in told.items() if key.startswith(f"{latency}_")},
        f'{name}{{adapter="french",base="numerals",outcome="ok",revision="{REVISION}"}}': 3,
        f'{name}{{adapter="french",base="numerals",outcome="ok",revision="{CANARY}"}}': 2,
        f'{name}{{adapter="french",base="numerals",outcome="server_error",revision="{CANARY}"}}': 1,
    }
    for revision, number in ((REVISION, 3), (CANARY, 2)):
        buckets = [value for key, value in told.items() if key.startswith(f"{latency}_bucket") and revision in key]
        assert buckets == sorted(buckets)
        assert buckets[-1] == told[f'{latency}_count{{{labels}"{revision}"}}'] == number
        assert told[f'{latency}_sum{{{labels}"{revision}"}}'] == pytest.approx(
            (await rows(world))[revision].first_byte.sum_seconds
        )
    share(world, 50, NEWER)
    await eventually("told", lambda: traffic(world)[1].revision == NEWER)
    assert CANARY not in str(series())
    assert REVISION in str(series())
    world.adapter("french")
    await eventually("told", lambda: not traffic(world))
    assert series() == {}


async def test_metrics_by_revision_are_of_a_bounded_number_of_adapters(world: World) -> None:
    traffic = [{"revision": REVISION, "weight": 50}, {"revision": CANARY, "weight": 50}]
    names = [f"adapter-{number:02d}" for number in range(rollout_metrics.MAX_ROLLOUTS + 3)]
    for name in names:
        world.adapter(name, status={"traffic": traffic})
    pod = await world.pod("one")
    world.endpoints(pod)
    await world.open()
    await asyncio.gather(*(world.ask(name) for name in names))
    assert world.cluster is not None
    assert world.door is not None
    registry = CollectorRegistry()
    registry.register(rollout_metrics.RolloutCollector(world.cluster.directory, world.door.evidence))
    text = generate_latest(registry).decode()
    assert [name for name in names if f'"{name}"' in text] == names[: rollout_metrics.MAX_ROLLOUTS]
