"""What came of requests by adapter and revision, as whoever judges a revision reads it."""

import asyncio
from typing import Any

import pytest
from support.upstream_pods import REVISION, PodDouble, breaking, refusing, streaming

from lorafleet_contract.evidence import ErrorClass, Evidence, RevisionEvidence
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.front.evidence import Ledger, RevisionKey

from .conftest import BASE, NAMESPACE, World, eventually

OTHER = "bbbbbbbbbbbb"
FRENCH = RevisionKey((NAMESPACE, BASE), "french", REVISION)


async def read(world: World, **query: Any) -> Evidence:
    assert world.client is not None
    answer = await world.client.get(world.metrics_url.replace("/metrics", "/v1/evidence"), params=query)
    assert answer.status_code == 200, answer.text
    return Evidence.model_validate_json(answer.content)


async def row(world: World, revision: str = REVISION) -> RevisionEvidence | None:
    return next((row for row in (await read(world)).revisions if row.revision == revision), None)


async def opened(world: World) -> PodDouble:
    pod = await world.pod("one")
    pod.hold("french")
    world.endpoints(pod)
    await world.open()
    return pod


async def ask_and_read(world: World) -> None:
    """Ask and read the answer, whatever becomes of it; returns when it is counted."""
    before = sum(row.num_requests for row in (await read(world)).revisions)
    try:
        async with world.client.stream("POST", "/v1/completions", json={"model": "french"}) as answer:  # type: ignore[union-attr]
            async for _ in answer.aiter_raw():
                pass
    except Exception:  # noqa: BLE001  a client sees a cut stream as it will
        pass
    async with asyncio.timeout(60):
        while sum(row.num_requests for row in (await read(world)).revisions) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_each_way_to_fail_is_counted_under_its_class(world: World) -> None:
    """A broken stream is an error although the client got 200; what the client did wrong is told apart."""
    pod = await opened(world)
    failed = 'event: error\ndata: {"error": {"message": "x"}}\n\n'
    for reply in (
        None,
        streaming("data: 1\n\n", "data: [DONE]\n\n"),
        streaming("data: 1\n\n", failed),
        streaming("data: 1\n\n", breaks=True),
        refusing(400, "invalid_value"),
        refusing(500, "internal_error"),
        refusing(424, "adapter_failed"),
        refusing(429, "overloaded"),
        refusing(503, "adapter_loading"),
    ):
        pod.reply = reply
        await ask_and_read(world)
    found = await row(world)
    assert found is not None
    assert (found.namespace, found.base, found.adapter) == (NAMESPACE, BASE, "french")
    assert found.num_requests == 9
    one_each = ("stream_error", "stream_broken", "client_error", "server_error", "adapter_failed", "overloaded")
    assert found.errors == {**dict.fromkeys(one_each, 1), "unavailable": 1}
    assert found.num_faults == 5
    assert found.whole.count == found.first_byte.count == 2
    assert 0 < found.first_byte.sum_seconds <= found.whole.sum_seconds


async def test_what_no_pod_answers_is_counted_for_the_revision_that_should_have(world: World) -> None:
    pod = await opened(world)
    pod.reply = breaking
    assert (await world.ask()).status_code == 502
    world.endpoints(pod, ready=False)
    await eventually("no pod", lambda: not any(p.is_ready for p in world.cluster.fleet.all()))  # type: ignore[union-attr]
    assert (await world.ask()).status_code == 503
    found = await row(world)
    assert found is not None
    assert found.errors == {"pod_lost": 1, "unavailable": 1}
    assert found.whole.count == 0


async def test_requests_count_for_the_revision_that_answered(world: World) -> None:
    """Also for one that a client pins; requests for the base are no evidence of an adapter."""
    pod = await opened(world)
    pod.hold("french", revision=OTHER)
    history = [
        {"revision": r, "digest": f"sha256:{r * 5}0000", "since": "2026-01-01T00:00:00Z"} for r in (REVISION, OTHER)
    ]
    world.adapter("french", status={"history": history})
    assert (await world.ask("numerals")).status_code == 200
    assert (await world.ask(headers={"x-lorafleet-revision": OTHER})).status_code == 200
    assert (await world.ask()).status_code == 200
    assert (await world.ask("nobody")).status_code == 404
    counts = {row.revision: row.num_requests for row in (await read(world)).revisions}
    assert counts == {REVISION: 1, OTHER: 1}


async def test_a_pod_that_answers_nonsense_as_its_revision_spoils_nothing(world: World) -> None:
    """The header comes from an image that may be anybody's."""
    pod = await opened(world)
    pod.reply = streaming("data: [DONE]\n\n", headers={"x-lorafleet-revision": "<script>" * 100})
    await ask_and_read(world)
    assert (await row(world)).num_requests == 1  # type: ignore[union-attr]


async def test_a_poll_waits_for_what_is_new_and_brings_that_alone(world: World) -> None:
    await opened(world)
    world.adapter("german")
    await eventually("german", lambda: world.knows("german"))
    await world.ask("french")
    first = await read(world)
    known = {"after": first.sequence, "boot_id": first.boot_id}
    unchanged = await read(world, **known)
    assert (unchanged.sequence, unchanged.revisions) == (first.sequence, [])
    polling = asyncio.create_task(read(world, **known, wait_seconds=60))
    await asyncio.sleep(0.05)
    assert not polling.done()
    await world.ask("german")
    then = await asyncio.wait_for(polling, 30)
    assert [(row.adapter, row.num_requests) for row in then.revisions] == [("german", 1)]
    assert then.sequence > first.sequence
    whole = await read(world, after=then.sequence, boot_id="of the process before", wait_seconds=10)
    assert {row.adapter for row in whole.revisions} == {"french", "german"}


@pytest.mark.parametrize("query", [{"after": "x"}, {"after": -1}, {"wait_seconds": 61}, {"wait_seconds": "nan"}])
async def test_a_query_that_means_nothing_is_refused(world: World, query: dict[str, Any]) -> None:
    client = await world.open()
    url = world.metrics_url.replace("/metrics", "/v1/evidence")
    answer = await client.get(url, params=query)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(query))
    assert (await client.post(url)).status_code == 405
    assert (await client.get("/v1/evidence")).status_code == 404, "applications do not see it on their port"


def test_nothing_that_was_told_changes_under_its_number() -> None:
    ledger = Ledger()
    told: set[int] = set()
    for _ in range(3):
        ledger.add(FRENCH, None, first_byte_seconds=0.1, seconds=0.2)
        ledger.add(FRENCH, ErrorClass.SERVER_ERROR, first_byte_seconds=None, seconds=0.2)
        document = ledger.read()
        assert document.sequence not in told
        assert ledger.read(document.sequence, document.boot_id).revisions == []
        told.add(document.sequence)
    assert ledger.read().revisions[0].num_requests == 6


def test_rows_are_bounded_and_one_that_comes_back_says_that_it_began_anew() -> None:
    """Revisions that only clients name take nobody's place; what a status names takes that of what is idle longest."""
    now = 0.0
    ledger = Ledger(max_revisions=2, clock=lambda: now)

    def add(revision: str, *, is_named: bool = True) -> None:
        key = RevisionKey((NAMESPACE, BASE), "french", revision)
        ledger.add(key, None, first_byte_seconds=0.1, seconds=0.2, is_named=is_named)

    def rows() -> dict[str, RevisionEvidence]:
        return {row.revision[0]: row for row in ledger.read().revisions}

    one, two, three = ("1" * 12, "2" * 12, "3" * 12)
    add(one)
    add(two)
    began = rows()["1"].began
    add(three, is_named=False)
    assert set(rows()) == {"1", "2"}
    assert ledger.read().num_untracked == 1
    add(three)
    assert set(rows()) == {"2", "3"}
    now += 3600
    add(one, is_named=False)
    assert set(rows()) == {"1", "3"}
    assert rows()["1"].began > began
    assert rows()["1"].num_requests == 1


def test_latencies_fall_into_their_buckets() -> None:
    ledger = Ledger()
    bounds = ledger.read().bounds_seconds
    assert bounds[-1] > GatewayConfig().idle_timeout_seconds
    for seconds in (0.0, bounds[0], bounds[0] + 0.0001, bounds[-1] + 1):
        ledger.add(FRENCH, None, first_byte_seconds=seconds, seconds=seconds)
    latency = ledger.read().revisions[0].whole
    assert latency.buckets == [2, 1, *[0] * (len(bounds) - 2), 1]
    assert latency.count == 4


async def test_what_generates_nothing_is_no_evidence(world: World) -> None:
    pod = await opened(world)
    for path in ("/tokenize", "/detokenize"):
        answer = await world.client.post(path, json={"model": "french"})  # type: ignore[union-attr]
        assert (answer.status_code, pod.received[-1].path) == (200, path)
    await ask_and_read(world)
    assert sum(row.num_requests for row in (await read(world)).revisions) == 1
