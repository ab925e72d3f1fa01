"""The manager over real files, a real cache and the engine's real loads: leases, holds, failures, drains, readiness."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.adapter_files import write_adapter
from support.loads_engine import LoadsEngine
from support.managed_pod import ManagedPod

from lorafleet_common.errors import ConfigError
from lorafleet_contract.admin import (
    AdapterState,
    CatalogueEntry,
    Residency,
    RevisionRef,
    Tier,
)
from lorafleet_contract.names import revision_of
from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import SourceRef
from lorafleet_inference.adapters import bringer as bringer_module
from lorafleet_inference.adapters.catalogue import NotOwned
from lorafleet_inference.adapters.manager import AdapterManager, Lease
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.errors import (
    AdapterError,
    AdapterFailed,
    AdapterLoading,
    ModelNotFound,
    RequestError,
    RevisionNotFound,
)

MakePod = Callable[..., Awaitable[ManagedPod]]


async def refused(work: Awaitable[object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await work
    return caught.value


async def test_the_base_needs_no_adapter(make_pod: MakePod) -> None:
    pod = await make_pod()
    async with await pod.manager.lease("base", None) as lease:
        assert (lease.key, lease.directory) == (None, None)
    assert isinstance(await refused(pod.manager.lease("base", "0" * 12)), RevisionNotFound)
    assert isinstance(await refused(pod.manager.lease("nobody", None)), ModelNotFound)
    assert [model.id for model in pod.manager.models()] == ["base"]


async def test_a_lease_of_a_resident_adapter(make_pod: MakePod) -> None:
    pod = await make_pod()
    entry = await pod.entry("red")
    pod.write(entry)
    seen = await pod.until_state("red", AdapterState.READY)
    assert (seen.tier, seen.memory_pages, seen.num_in_flight) == (Tier.DEVICE, 1, 0)
    async with await pod.manager.lease("red", seen.revision) as lease:
        assert lease.key is not None
        assert lease.key.digest == entry.source.digest
        assert lease.directory is not None
        assert (lease.directory / "adapter_config.json").is_file()
        in_use = pod.seen("red")
        assert in_use is not None
        assert in_use.num_in_flight == 1
    assert isinstance(await refused(pod.manager.lease("red", "0" * 12)), RevisionNotFound)


async def test_a_request_waits_for_an_adapter_that_comes(make_pod: MakePod) -> None:
    pod = await make_pod()
    pod.write(await pod.entry("red", residency=Residency.ON_DEMAND))
    async with await pod.manager.lease("red", None) as lease:
        assert lease.key is not None
        pod.engine.ask(lease.key)
    await pod.until("red on the device", lambda: (seen := pod.seen("red")) and seen.tier is Tier.DEVICE)


async def test_the_hold_ends_with_a_word_when_to_come_back(make_pod: MakePod) -> None:
    pod = await make_pod(max_resident=1, adapter_hold_seconds=0.05)
    red, blue = await pod.entry("red"), await pod.entry("blue")
    pod.write(red)
    await pod.until_state("red", AdapterState.READY)
    (key,) = pod.engine.device.holds
    pod.engine.running = {key}
    pod.write(blue)
    await pod.until_state("blue", AdapterState.LOADING)
    error = await refused(pod.manager.lease("blue", None))
    assert isinstance(error, AdapterLoading)
    assert error.retry_after_seconds is not None


async def test_what_was_refused_says_so_to_requests(make_pod: MakePod) -> None:
    pod = await make_pod()
    pod.adapter("red")
    resolved = await pod.resolved("red")
    other = resolved.model_copy(update={"digest": f"sha256:{'1' * 64}"})
    pod.write(CatalogueEntry(name="red", source=other))
    seen = await pod.until_state("red", AdapterState.FAILED)
    assert seen.reason == Reason.DIGEST_MISMATCH
    error = await refused(pod.manager.lease("red", None))
    assert isinstance(error, AdapterFailed)
    assert "DigestMismatch" in error.message
    assert "red" not in {model.id for model in pod.manager.models()}
    assert not pod.manager.shown.routes()


async def test_what_is_retryable_is_tried_again_by_itself(make_pod: MakePod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringer_module, "FIRST_RETRY_SECONDS", 0.2)
    pod = await make_pod()
    pod.engine.device.broken = Reason.OUT_OF_MEMORY
    pod.write(await pod.entry("red"))
    seen = await pod.until_state("red", AdapterState.FAILED)
    assert seen.reason == Reason.OUT_OF_MEMORY
    error = await refused(pod.manager.lease("red", None))
    assert isinstance(error, AdapterLoading), "what is retryable is not the adapter's fault"
    assert "OutOfMemory" in error.message
    pod.engine.device.broken = None
    await pod.until_state("red", AdapterState.READY)


async def test_a_load_on_demand_that_fails_is_shown_and_passes(
    make_pod: MakePod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringer_module, "FIRST_RETRY_SECONDS", 0.05)
    pod = await make_pod()
    pod.write(await pod.entry("red", residency=Residency.ON_DEMAND))
    await pod.until_state("red", AdapterState.READY)
    pod.engine.device.broken = Reason.OUT_OF_MEMORY
    async with await pod.manager.lease("red", None) as lease:
        assert lease.key is not None
        pod.engine.ask(lease.key)
        await pod.until_state("red", AdapterState.FAILED)
    pod.engine.device.broken = None
    await pod.until_state("red", AdapterState.READY)


async def test_writing_again_tries_a_retryable_failure_at_once(
    make_pod: MakePod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringer_module, "FIRST_RETRY_SECONDS", 1000.0)
    pod = await make_pod()
    pod.engine.device.broken = Reason.LOAD_FAILED
    entry = await pod.entry("red")
    pod.write(entry)
    await pod.until_state("red", AdapterState.FAILED)
    pod.engine.device.broken = None
    pod.write(entry)
    await pod.until_state("red", AdapterState.READY)


async def test_without_loading_on_demand_only_what_is_there_answers(make_pod: MakePod) -> None:
    pod = await make_pod(load_on_demand=False)
    pod.write(await pod.entry("red", residency=Residency.ON_DEMAND))
    await pod.until("red on disk", lambda: (seen := pod.seen("red")) and "on demand" in seen.message)
    seen = pod.seen("red")
    assert seen is not None
    assert (seen.state, seen.tier) == (AdapterState.PENDING, Tier.DISK)
    assert isinstance(await refused(pod.manager.lease("red", None)), AdapterLoading)
    assert not pod.manager.shown.routes()
    pod.write(await pod.entry("red", residency=Residency.RESIDENT))
    await pod.until_state("red", AdapterState.READY)
    assert await pod.manager.lease("red", None)


async def test_unloading_waits_for_the_last_request(make_pod: MakePod) -> None:
    pod = await make_pod()
    pod.write(await pod.entry("red"))
    seen = await pod.until_state("red", AdapterState.READY)
    async with await pod.manager.lease("red", None) as lease:
        pod.write(removed=[RevisionRef(name="red", revision=seen.revision)])
        assert (await pod.until_state("red", AdapterState.DRAINING)).num_in_flight == 1
        assert isinstance(await refused(pod.manager.lease("red", None)), ModelNotFound)
        assert not pod.engine.released
    await pod.until("red is gone", lambda: pod.seen("red") is None)
    assert pod.engine.released == [lease.key]
    assert not pod.engine.device.holds


async def test_requests_that_outlast_the_drain_are_ended_with_a_reason(make_pod: MakePod) -> None:
    pod = await make_pod()
    pod.write(await pod.entry("red"))
    seen = await pod.until_state("red", AdapterState.READY)
    entered = asyncio.Event()

    async def request() -> None:
        async with await pod.manager.lease("red", None):
            entered.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(request())
    await entered.wait()
    pod.write(removed=[RevisionRef(name="red", revision=seen.revision)], drain_timeout_seconds=0.05)
    error = await refused(running)
    assert isinstance(error, AdapterFailed)
    assert "was unloaded" in error.message
    await pod.until("red is gone", lambda: pod.seen("red") is None)


async def test_a_request_that_is_cancelled_stays_cancelled(make_pod: MakePod) -> None:
    pod = await make_pod()
    pod.write(await pod.entry("red"))
    await pod.until_state("red", AdapterState.READY)

    entered = asyncio.Event()

    async def request() -> None:
        async with await pod.manager.lease("red", None):
            entered.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(request())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    seen = pod.seen("red")
    assert seen is not None
    assert seen.num_in_flight == 0


async def test_a_revision_that_comes_back_while_it_drains_stays(make_pod: MakePod) -> None:
    pod = await make_pod()
    entry = await pod.entry("red")
    pod.write(entry)
    seen = await pod.until_state("red", AdapterState.READY)
    async with await pod.manager.lease("red", None):
        pod.write(removed=[RevisionRef(name="red", revision=seen.revision)])
        await pod.until_state("red", AdapterState.DRAINING)
        pod.write(entry)
        await pod.until_state("red", AdapterState.READY)
        assert await pod.manager.lease("red", None)
    assert not pod.engine.released


async def test_what_is_in_memory_is_told_by_the_name_that_requests_use(make_pod: MakePod) -> None:
    """A canary beside its stable revision has its own; what is only on disk is not in memory."""
    pod = await make_pod(max_resident=2)
    stable, other = await pod.entry("red"), await pod.entry("blue")
    pod.adapter("newer", seed=7)
    canary = CatalogueEntry(name="red", source=await pod.resolved("newer"))
    pod.write(
        stable.model_copy(update={"pinned": True}),
        canary.model_copy(update={"stable": False}),
        other.model_copy(update={"residency": Residency.ON_DEMAND}),
    )
    for one in (stable, canary, other):
        await pod.until("ready", lambda one=one: told(pod, one) is AdapterState.READY)
    revision = revision_of(canary.source.digest)
    held = {one.model: (one.is_on_device, one.is_pinned, one.rank) for one in pod.manager.shown.in_memory()}
    assert held == {"red": (True, True, 4), f"red@{revision}": (True, False, 4)}


def told(pod: ManagedPod, entry: CatalogueEntry) -> AdapterState | None:
    seen = pod.seen(entry.name, revision_of(entry.source.digest))
    return seen.state if seen is not None else None


async def test_flags_follow_without_a_gap(make_pod: MakePod) -> None:
    pod = await make_pod()
    entry = await pod.entry("red")
    pod.write(entry)
    await pod.until_state("red", AdapterState.READY)
    for flags in ({"pinned": True}, {"pinned": False}, {"residency": Residency.ON_DEMAND}):
        pod.write(entry.model_copy(update=flags))
        seen = pod.seen("red")
        assert seen is not None
        assert seen.state is AdapterState.READY, "it answers while the engine is told"
        assert {name: getattr(seen, name) for name in flags} == flags
    await pod.until("the engine was told", lambda: pod.engine.registered[-1].resident is False)


async def test_the_first_catalogue_makes_ready_once(make_pod: MakePod) -> None:
    pod = await make_pod(wait_for_catalogue=True)
    assert not pod.manager.ready
    assert "first catalogue" in pod.manager.ready_reason
    red, blue = await pod.entry("red"), await pod.entry("blue")
    bad = blue.model_copy(
        update={"name": "bad", "source": blue.source.model_copy(update={"digest": f"sha256:{'1' * 64}"})}
    )
    pod.write(red, bad)
    await pod.until("ready", lambda: pod.manager.ready)
    assert {one.name: one.state for one in pod.manager.shown.observed()} == {
        "red": AdapterState.READY,
        "bad": AdapterState.FAILED,
    }
    pod.engine.device.broken = Reason.OUT_OF_MEMORY
    pod.write(blue)
    await pod.until_state("blue", AdapterState.FAILED)
    assert pod.manager.ready, "a later assignment never makes it unready"


async def test_an_empty_catalogue_makes_ready(make_pod: MakePod) -> None:
    pod = await make_pod(wait_for_catalogue=True)
    assert not pod.manager.ready
    pod.write()
    await pod.until("ready", lambda: pod.manager.ready)


async def test_time_makes_ready_too(make_pod: MakePod) -> None:
    pod = await make_pod(wait_for_catalogue=True, ready_timeout_seconds=0.05)
    await pod.until("ready", lambda: pod.manager.ready)
    assert pod.manager.ready_reason == "the operator's first catalogue has not come"


async def test_adapters_of_the_command_line(make_pod: MakePod, tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good")
    wide = write_adapter(tmp_path / "wide", rank=32)
    given = (("good", str(good)), ("wide", str(wide)), ("lost", "/nowhere"), ("no@name", str(good)))
    pod = await make_pod(adapters=(*given, ("base", str(good))))
    await pod.until("ready", lambda: pod.manager.ready)
    reasons = {one.name: one.reason for one in pod.manager.local_failures}
    assert reasons == {
        "wide": Reason.RANK_TOO_HIGH,
        "lost": Reason.ARTIFACT_NOT_FOUND,
        "no@name": Reason.BAD_REQUEST,
        "base": Reason.NAME_CONFLICT,
    }
    assert await pod.manager.lease("good", None)
    assert isinstance(await refused(pod.manager.lease("wide", None)), AdapterFailed)


async def test_a_name_that_is_given_twice_stops_the_start(make_pod: MakePod) -> None:
    with pytest.raises(ConfigError, match="red is given twice"):
        await make_pod(adapters=(("red", "/a"), ("red", "/b")))


async def test_more_than_fits_is_resident_in_its_order(make_pod: MakePod, tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(5)]
    given = tuple((name, str(write_adapter(tmp_path / name, seed=index))) for index, name in enumerate(names))
    pod = await make_pod(adapters=given, max_resident=2)
    await pod.until("ready", lambda: pod.manager.ready)
    assert {one.name for one in pod.manager.shown.observed() if one.residency is Residency.RESIDENT} == {"a0", "a1"}
    assert all(one.state is AdapterState.READY for one in pod.manager.shown.observed())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def test_a_disk_for_two_serves_five(make_pod: MakePod) -> None:
    pod = await make_pod()
    sizes = [size_of(pod.adapter(f"a{number}", seed=number)) for number in range(5)]
    await pod.manager.close()
    pod.engine.close()
    small = await make_pod(disk_cache_bytes=2 * max(sizes) + 100)
    entries = [await small.entry(f"a{number}", residency=Residency.ON_DEMAND) for number in range(5)]
    small.write(*entries)
    await small.until("settled", lambda: all(one.state is AdapterState.READY for one in small.manager.shown.observed()))
    assert sum(one.tier is Tier.SOURCE for one in small.manager.shown.observed()) == 3
    for _ in range(2):
        for entry in entries:
            async with await small.manager.lease(entry.name, None) as lease:
                assert lease.key is not None
                small.engine.ask(lease.key)
            assert small.manager.cache.used_bytes <= small.manager.cache.max_bytes
    assert all(one.state is AdapterState.READY for one in small.manager.shown.observed())


async def test_what_is_in_use_never_leaves_the_disk(make_pod: MakePod) -> None:
    pod = await make_pod()
    size = size_of(pod.adapter("one"))
    await pod.manager.close()
    small = await make_pod(disk_cache_bytes=size + 200)
    one, two = await small.entry("one", residency=Residency.ON_DEMAND), None
    small.write(one)
    async with await small.manager.lease("one", None) as lease:
        small.adapter("two", seed=5)
        with pytest.raises(AdapterError) as caught:
            two = await small.entry("two", residency=Residency.ON_DEMAND)
        assert caught.value.reason is Reason.DISK_FULL
        assert lease.directory is not None
        assert (lease.directory / "adapter_model.safetensors").is_file()
    two = await small.entry("two", residency=Residency.ON_DEMAND)
    small.write(two)
    async with await small.manager.lease("two", None):
        pass


async def test_people_put_and_remove(make_pod: MakePod) -> None:
    pod = await make_pod()
    pod.adapter("red")
    ref = SourceRef(name="volume", path="red")
    first = await pod.manager.put_local("red", ref, pinned=False)
    assert (await pod.manager.put_local("red", ref, pinned=True)).revision == first.revision
    async with await pod.manager.lease("red", None) as old:
        pod.adapter("red", seed=9)
        second = await pod.manager.put_local("red", ref, pinned=False)
        async with await pod.manager.lease("red", None) as new:
            assert old.key is not None
            assert new.key is not None
            assert (old.key.revision, new.key.revision) == (first.revision, second.revision)
    await pod.until("the old one is gone", lambda: pod.seen("red", first.revision) is None)
    assert await pod.manager.remove_local("red", drain_seconds=1)
    assert not await pod.manager.remove_local("red", drain_seconds=1)
    assert not pod.manager.shown.observed()
    with pytest.raises(AdapterError):
        await pod.manager.put_local("red", SourceRef(name="elsewhere", path="red"), pinned=False)


async def test_nobody_puts_what_is_the_operators(make_pod: MakePod) -> None:
    pod = await make_pod()
    pod.write(await pod.entry("red"))
    with pytest.raises(NotOwned):
        await pod.manager.put_local("red", SourceRef(name="volume", path="red"), pinned=False)
    with pytest.raises(NotOwned):
        await pod.manager.remove_local("red", drain_seconds=1)


async def test_a_cache_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = ServerConfig(engine=EngineConfig(model="x"), served_name="base", cache_dir=tmp_path / "file")
    engine = LoadsEngine()
    try:
        with pytest.raises(ConfigError, match="--cache-dir"):
            AdapterManager(engine, config, boot_id="boot")
    finally:
        engine.close()


async def test_two_names_of_one_content_and_one_file(make_pod: MakePod) -> None:
    pod = await make_pod()
    entry = await pod.entry("red")
    pod.write(entry, entry.model_copy(update={"name": "crimson"}))
    for name in ("red", "crimson"):
        await pod.until_state(name, AdapterState.READY)
    used = pod.manager.cache.used_bytes
    assert used == entry.source.facts.size_bytes + next(f.size_bytes for f in entry.source.files if "config" in f.path)
    async with await pod.manager.lease("red", None) as lease:
        assert isinstance(lease, Lease)
        pod.write(removed=[RevisionRef(name="crimson", revision=entry.source.digest[7:19])])
        await pod.until("crimson is gone", lambda: pod.seen("crimson") is None)
        assert lease.directory is not None
        assert lease.directory.is_dir()


async def test_what_a_person_puts_is_not_undone_by_the_start(make_pod: MakePod, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)  # a retryable failure
    pod = await make_pod(adapters=(("red", str(loop)),))
    await pod.until("it failed", lambda: pod.manager.local_failures)
    pod.adapter("red", seed=2)
    put = await pod.manager.put_local("red", SourceRef(name="volume", path="red"), pinned=False)
    assert not pod.manager.local_failures
    assert [one.revision for one in pod.manager.shown.observed()] == [put.revision]


async def test_a_burst_of_requests_brings_it_once(make_pod: MakePod) -> None:
    pod = await make_pod()
    entries = [await pod.entry(f"a{number}", residency=Residency.ON_DEMAND) for number in range(12)]
    pod.write(*entries)

    async def ask(name: str) -> None:
        async with await pod.manager.lease(name, None):
            await asyncio.sleep(0)

    await asyncio.gather(*(ask(entry.name) for entry in entries for _ in range(50)))
    assert len(pod.engine.registered) <= 2 * len(entries), "at most once as a guess and once as it was wanted"


async def test_what_is_asked_for_while_it_leaves_the_disk_comes_back(make_pod: MakePod) -> None:
    pod = await make_pod()
    size = size_of(pod.adapter("one"))
    await pod.manager.close()
    small = await make_pod(disk_cache_bytes=size + 200)
    one = await small.entry("one", residency=Residency.ON_DEMAND)
    small.write(one)
    async with await small.manager.lease("one", None) as lease:
        assert lease.key is not None
        key = lease.key
    small.engine.running = {key}  # the engine is not done with it when it is told to forget it
    other = asyncio.create_task(small.entry("two"))
    await small.until("it leaves", lambda: small.engine.released)
    wanted = asyncio.create_task(small.manager.lease("one", None))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not wanted.done()
    registered = len(small.engine.registered)
    small.engine.finish(key)
    async with await wanted as lease:
        assert lease.directory is not None
        assert (lease.directory / "adapter_model.safetensors").is_file()
        assert len(small.engine.registered) == registered + 1, "told anew, after the engine had forgotten it"
        small.engine.ask(key)
    with pytest.raises(AdapterError) as caught:
        await other
    assert caught.value.reason is Reason.DISK_FULL, "what is in use stays"
