"""From a source to the disk: pinned, judged, again when it is retryable, once for all who want it."""

import asyncio
import dataclasses
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from support.adapter_files import base_facts, write_adapter
from support.servers import ServedHub, serve_hub

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.cache import NodeCache
from lorafleet_inference.adapters.catalogue import Artifact
from lorafleet_inference.adapters.digest import digest_of
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.sources.base import Listing, Place
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.folder import FolderSource
from lorafleet_inference.adapters.sources.hub import HubSource
from lorafleet_inference.adapters.store import AdapterStore
from lorafleet_inference.errors import AdapterError

BUDGET = 1 << 20
MakeStore = Callable[..., AdapterStore]


def inspect(folder: Path) -> AdapterFacts:
    return inspect_adapter(folder, base_facts(), 16).facts


async def nothing_to_free() -> bool:
    return False


@pytest.fixture
async def make_store(tmp_path: Path) -> AsyncIterator[MakeStore]:
    made: list[AdapterStore] = []

    def make(budget: int = BUDGET, free_one: Callable[[], Awaitable[bool]] = nothing_to_free) -> AdapterStore:
        cache = NodeCache.open(tmp_path / "cache", budget)
        made.append(AdapterStore(cache, inspect, free_one, first_pause_seconds=0.01))
        return made[-1]

    yield make
    for store in made:
        await store.close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ServedHub]:
    write_adapter(tmp_path / "hub" / "red")
    with serve_hub(tmp_path / "hub") as served:
        yield served


def hub_source(hub: ServedHub) -> HubSource:
    return HubSource("hub", endpoint=hub.url, secret=MountedSecret(hub.root / "none"))


def volume(tmp_path: Path) -> FolderSource:
    return FolderSource("volume", tmp_path / "volume")


async def refused(work: Awaitable[object]) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        await work
    return caught.value


async def test_a_place_is_pinned_to_content(make_store: MakeStore, hub: ServedHub) -> None:
    store = make_store()
    artifact = await store.resolve(hub_source(hub), Place("acme/red"))
    assert artifact.digest == digest_of(hub.root / "red")
    assert artifact.place.revision is not None
    assert artifact.facts.rank == 4
    folder = await store.ensure(artifact, may_evict=False)
    assert digest_of(folder) == artifact.digest
    before = len(hub.trouble.requests)
    other = hub_source(hub)
    assert await store.resolve(other, artifact.place) == dataclasses.replace(artifact, source=other)
    assert len(hub.trouble.requests) == before + 1, "the listing is asked for, the content is remembered"


async def test_a_restart_needs_no_download(make_store: MakeStore, hub: ServedHub) -> None:
    first = make_store()
    artifact = await first.resolve(hub_source(hub), Place("acme/red"))
    await first.close()
    second = make_store()
    before = len(hub.trouble.requests)
    assert await second.ensure(artifact, may_evict=False)
    assert len(hub.trouble.requests) == before


async def test_a_pin_that_does_not_fit(make_store: MakeStore, tmp_path: Path) -> None:
    write_adapter(tmp_path / "volume" / "red")
    error = await refused(make_store().resolve(volume(tmp_path), Place("red"), f"sha256:{'0' * 64}"))
    assert error.reason is Reason.DIGEST_MISMATCH


async def test_content_that_has_changed_since_it_was_resolved(make_store: MakeStore, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "volume" / "red")
    store = make_store()
    artifact = await store.resolve(volume(tmp_path), Place("red"))
    write_adapter(folder, seed=1)
    (store.cache.root / artifact.digest.removeprefix("sha256:")).rename(tmp_path / "gone")
    await store.close()
    error = await refused(make_store().ensure(artifact, may_evict=False))
    assert error.reason is Reason.DIGEST_MISMATCH
    assert "has changed" in error.message


async def test_files_that_no_adapter_has_are_never_written(make_store: MakeStore, tmp_path: Path) -> None:
    write_adapter(tmp_path / "volume" / "red")
    store = make_store()
    artifact = await store.resolve(volume(tmp_path), Place("red"))
    evil = artifact.files[0].model_copy(update={"path": "x/../../../evil"})
    strange = dataclasses.replace(artifact, digest=f"sha256:{'1' * 64}", files=(*artifact.files, evil))
    assert (await refused(store.ensure(strange, may_evict=False))).reason is Reason.ARTIFACT_INVALID
    renamed = dataclasses.replace(artifact, digest=f"sha256:{'1' * 64}")
    assert (await refused(store.ensure(renamed, may_evict=False))).reason is Reason.DIGEST_MISMATCH


async def test_everyone_who_wants_it_shares_one_download(make_store: MakeStore, hub: ServedHub) -> None:
    store, source = make_store(), hub_source(hub)
    await asyncio.gather(*(store.resolve(source, Place("acme/red")) for _ in range(8)))
    assert sum("adapter_model.safetensors" in request for request in hub.trouble.requests) == 1


async def test_a_download_goes_on_when_who_asked_goes_away(make_store: MakeStore, hub: ServedHub) -> None:
    store, source = make_store(), hub_source(hub)
    asking = asyncio.create_task(store.resolve(source, Place("acme/red")))
    while not any("adapter_config.json" in request for request in hub.trouble.requests):  # noqa: ASYNC110  a thread's
        await asyncio.sleep(0.001)
    asking.cancel()
    artifact = await store.resolve(source, Place("acme/red"))
    assert sum("adapter_model.safetensors" in request for request in hub.trouble.requests) == 1
    assert store.has(artifact.digest)


async def test_what_is_retryable_is_tried_again(make_store: MakeStore, hub: ServedHub) -> None:
    hub.trouble.status, hub.trouble.times = 503, 3
    assert await make_store().resolve(hub_source(hub), Place("acme/red"))
    hub.trouble.times = 10**6
    error = await refused(make_store().resolve(hub_source(hub), Place("acme/red")))
    assert (error.reason, error.retryable) == (Reason.SOURCE_UNAVAILABLE, True)


async def test_what_will_not_pass_is_not(make_store: MakeStore, hub: ServedHub) -> None:
    hub.trouble.status, hub.trouble.times = 401, 10**6
    error = await refused(make_store().resolve(hub_source(hub), Place("acme/red")))
    assert (error.reason, error.retryable) == (Reason.UNAUTHORIZED, False)
    assert len(hub.trouble.requests) == 1


async def test_a_truncated_download_goes_on_in_the_same_call(make_store: MakeStore, hub: ServedHub) -> None:
    hub.trouble.cut_after_bytes, hub.trouble.times = 150, 2
    artifact = await make_store().resolve(hub_source(hub), Place("acme/red"))
    assert artifact.digest == digest_of(hub.root / "red")
    assert any(request.endswith("bytes=150-") for request in hub.trouble.requests)


async def test_a_config_that_is_refused_spares_the_weights(make_store: MakeStore, hub: ServedHub) -> None:
    write_adapter(hub.root / "vera", peft_type="VERA")
    error = await refused(make_store().resolve(hub_source(hub), Place("acme/vera")))
    assert error.reason is Reason.UNSUPPORTED_ADAPTER
    assert not any("safetensors" in request for request in hub.trouble.requests)


async def test_refused_content_leaves_nothing_behind(make_store: MakeStore, tmp_path: Path) -> None:
    write_adapter(tmp_path / "volume" / "wide", rank=32)
    store = make_store()
    assert (await refused(store.resolve(volume(tmp_path), Place("wide")))).reason is Reason.RANK_TOO_HIGH
    assert store.cache.used_bytes == 0
    assert not list((store.cache.root / ".partial").iterdir())


async def test_a_cache_that_is_full_of_what_is_in_use(make_store: MakeStore, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "volume" / "first")
    write_adapter(tmp_path / "volume" / "second", seed=1)
    num_bytes = sum(file.stat().st_size for file in first.iterdir())
    store = make_store(budget=num_bytes + 100)
    artifact = await store.resolve(volume(tmp_path), Place("first"))
    await store.ensure(artifact, may_evict=False)
    error = await refused(store.resolve(volume(tmp_path), Place("second")))
    assert (error.reason, error.retryable) == (Reason.DISK_FULL, True)
    store.cache.let_go(artifact.digest)
    assert await store.resolve(volume(tmp_path), Place("second"))
    assert not store.has(artifact.digest)


async def test_idle_adapters_go_for_one_that_is_wanted_and_not_for_a_guess(
    make_store: MakeStore, tmp_path: Path
) -> None:
    first = write_adapter(tmp_path / "volume" / "first")
    write_adapter(tmp_path / "volume" / "second", seed=1)
    asked: list[str] = []

    async def free_one() -> bool:
        asked.append("")
        store.cache.let_go(one.digest)
        return True

    store = make_store(budget=sum(file.stat().st_size for file in first.iterdir()) + 100, free_one=free_one)
    two = await store.resolve(volume(tmp_path), Place("second"))
    one = await store.resolve(volume(tmp_path), Place("first"))
    await store.ensure(one, may_evict=False)
    assert (await refused(store.ensure(two, may_evict=False))).reason is Reason.DISK_FULL
    assert not asked
    assert await store.ensure(two, may_evict=True)
    assert asked == [""]


class FullDisk:
    """A source whose bytes find no room on the disk."""

    name = "full"

    def show(self, place: Place) -> str:
        return place.path

    def check(self, place: Place) -> None:
        pass

    def list_files(self, place: Place) -> Listing:
        return Listing(place, (FoundFile("adapter_config.json", 10), FoundFile("adapter_model.safetensors", 10)))

    def close(self) -> None:
        pass

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_disk_is_told_as_such(make_store: MakeStore) -> None:
    store = make_store()
    error = await refused(store.resolve(FullDisk(), Place("red")))
    assert (error.reason, error.retryable) == (Reason.DISK_FULL, True)
    assert store.cache.used_bytes == 0


class ManyFiles(FullDisk):
    """A source that leaves a folder that takes a while to remove."""

    def fetch(self, place: Place, file: FoundFile, folder: Path) -> None:
        for number in range(500):
            (folder / f"{number}").touch()
        raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_the_event_loop_goes_on_while_a_failed_download_is_removed(make_store: MakeStore) -> None:
    store, num_turns = make_store(), 0
    for number in range(20):  # a busy machine may let the other thread remove it at one go
        resolving = asyncio.ensure_future(store.resolve(ManyFiles(), Place(f"red-{number}")))
        while not resolving.done():
            num_turns += any(store.cache.root.glob(".trash-*"))
            await asyncio.sleep(0)
        assert (await refused(resolving)).reason is Reason.LOAD_FAILED
        if num_turns:
            break
    assert num_turns
    assert not list((store.cache.root / ".partial").iterdir())


async def test_a_place_that_is_not_allowed_is_refused_though_it_is_on_the_disk(
    make_store: MakeStore, hub: ServedHub
) -> None:
    store = make_store()
    artifact = await store.resolve(hub_source(hub), Place("acme/red"))
    closed = HubSource("hub", endpoint=hub.url, repos=("acme/blue",), secret=None)
    moved = Artifact(artifact.digest, artifact.files, artifact.facts, closed, artifact.place)
    assert (await refused(store.ensure(moved, may_evict=False))).reason is Reason.SOURCE_NOT_ALLOWED
