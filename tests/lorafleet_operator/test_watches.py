"""kopf's watches on an API server in memory: they are known to run, and are begun again where one does not."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from kubernetes.aio.client import Configuration
from support.fake_kube import FakeKube
from support.leftovers import left_over
from support.simulated_fleet import until

from lorafleet_contract.names import LABEL_BASE
from lorafleet_operator.cluster.freshness import START_SECONDS, WATCH_SECONDS, Freshness
from lorafleet_operator.cluster.handlers import ERROR_BACKOFFS, EventSink, settings_of, watch
from lorafleet_operator.cluster.scope import Scope
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.process.health import MAX_WATCH_AGE_SECONDS


@pytest_asyncio.fixture
async def kube() -> AsyncIterator[FakeKube]:
    server = FakeKube()
    await server.start()
    yield server
    await server.stop()


def watching(kube: FakeKube, store: Store, freshness: Freshness, scope: Scope) -> asyncio.Task[None]:
    configuration = Configuration()
    configuration.host = kube.url
    sink = EventSink(store, lambda _: None)
    return asyncio.create_task(
        watch(scope, sink, configuration, "me", freshness=freshness, retake_signals=lambda: None)
    )


@contextlib.asynccontextmanager
async def watched(kube: FakeKube, freshness: Freshness, scope: Scope | None = None) -> AsyncIterator[Store]:
    """A store that is filled by watches, of everything if no scope is given."""
    store = Store()
    task = watching(kube, store, freshness, scope or Scope(()))
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def put(kube: FakeKube, kind: Kind, name: str, namespace: str = "team") -> None:
    labels = {"labels": {LABEL_BASE: "base"}} if kind is Kind.POD else {}
    version = "v1" if kind is Kind.POD else "lorafleet.io/v1alpha1"
    names = {Kind.POD: "Pod", Kind.ADAPTER: "LoraAdapter", Kind.BASE: "BaseModelDeployment"}
    metadata = {"name": name, "namespace": namespace, **labels}
    kube.put(kind, {"apiVersion": version, "kind": names[kind], "metadata": metadata, "spec": {}})


def run_all(freshness: Freshness) -> bool:
    """Whether all that is watched has begun, however short the time for that."""
    freshness._began -= 100
    try:
        return freshness.problem() is None
    finally:
        freshness._began += 100


async def test_watches_are_known_to_run_and_bring_events(kube: FakeKube) -> None:
    freshness = Freshness()
    put(kube, Kind.ADAPTER, "a")
    async with watched(kube, freshness) as store:
        await until("listed", lambda: len(store.all(Kind.ADAPTER)) == 1)
        await until("all run", lambda: run_all(freshness))
        assert 0 < freshness.oldest()[1] < WATCH_SECONDS
        for kind in Kind:
            put(kube, kind, "b")
        await until("told", lambda: all("b" in {b["metadata"]["name"] for b in store.all(kind)} for kind in Kind))


async def test_kind_that_was_not_there_yet_is_watched_later(kube: FakeKube, caplog: pytest.LogCaptureFixture) -> None:
    """kopf looks once which kinds there are, and another data path of the API server may know them sooner."""
    kube.has_group = False
    freshness = Freshness(start_seconds=3)
    with caplog.at_level(logging.ERROR):
        async with watched(kube, freshness) as store:
            await until("noticed", lambda: "has not begun" in caplog.text)
            kube.has_group = True
            put(kube, Kind.ADAPTER, "a")
            await until("told", lambda: len(store.all(Kind.ADAPTER)) == 1)
            await until("all run", lambda: run_all(freshness))


def test_a_watch_that_cannot_be_had_is_tried_again_soon() -> None:
    settings = settings_of()
    assert settings.networking.error_backoffs == ERROR_BACKOFFS
    assert sum(ERROR_BACKOFFS[:3]) < 2
    assert max(ERROR_BACKOFFS) <= 2
    assert settings.watching.server_timeout == WATCH_SECONDS
    assert WATCH_SECONDS + START_SECONDS < MAX_WATCH_AGE_SECONDS


async def test_watches_leave_out_a_namespace_that_is_refused(kube: FakeKube) -> None:
    scope = Scope(("team", "other"), watch_retry_seconds=0.1)
    freshness = Freshness(scope.watch_refused)
    kube.forbid("other", Kind.POD)
    async with watched(kube, freshness, scope) as store:
        await until("left out", lambda: scope.watchable == ("team",))
        put(kube, Kind.ADAPTER, "a")
        await until("told", lambda: len(store.all(Kind.ADAPTER)) == 1)
        await until("all run", lambda: run_all(freshness))
        assert freshness.oldest()[1] < WATCH_SECONDS
        kube.permit("other")
        await asyncio.sleep(0.2)
        scope.listed("other", None)
        put(kube, Kind.ADAPTER, "far", "other")
        await until("watched", lambda: len(store.all(Kind.ADAPTER)) == 2)
        await until("all run", lambda: run_all(freshness))
        kube.forbid("other", *Kind)
        kube.end_watches()
        await until("left out again", lambda: scope.watchable == ("team",))
        put(kube, Kind.ADAPTER, "b")
        await until("told", lambda: len(store.all(Kind.ADAPTER)) == 3)


@pytest.mark.parametrize("num_turns", range(12))
@pytest.mark.parametrize("during", ["their begin", "their end"])
async def test_nothing_is_left_of_watches_whenever_they_are_cancelled(
    kube: FakeKube, during: str, num_turns: int
) -> None:
    """Neither tasks nor connections, also where they are about to be begun again with other namespaces."""
    put(kube, Kind.ADAPTER, "a")
    freshness, scope, store, before = Freshness(), Scope(("team", "other")), Store(), left_over()
    task = watching(kube, store, freshness, scope)
    if during == "their end":
        await until("listed", lambda: store.all(Kind.ADAPTER))
        await until("all run", lambda: run_all(freshness))
        scope.watch_refused("other", "it is gone")
    for _ in range(num_turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert left_over() <= before
