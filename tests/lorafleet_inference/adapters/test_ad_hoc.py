"""Adapters that requests name: only in declared sources, by content, and to nobody who could not have it himself."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.adapter_files import write_adapter
from support.managed_pod import VOLUME, ManagedPod
from support.servers import ServedHub, serve_hub

from lorafleet_common.clock import monotonic
from lorafleet_contract.lorax import AD_HOC
from lorafleet_contract.sources import AdapterSource, SourceRef
from lorafleet_inference.adapters import ad_hoc as module
from lorafleet_inference.adapters.ad_hoc import Wish
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.adapters.sources.base import Kind
from lorafleet_inference.errors import (
    AdapterError,
    AdapterFailed,
    AdapterLoading,
    InvalidValue,
    Overloaded,
    UnsupportedParameter,
)

MakePod = Callable[..., Awaitable[ManagedPod]]
ALICE, BOB = "token-of-alice", "token-of-bob"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ServedHub]:
    for seed, name in enumerate(("red", "blue", "gated", "hidden")):
        write_adapter(tmp_path / "hub" / name, seed=seed)
    write_adapter(tmp_path / "hub" / "wide", rank=17)
    with serve_hub(tmp_path / "hub") as served:
        served.trouble.gates["acme/gated"] = {ALICE}
        yield served


@pytest.fixture
def pod_of(make_pod: MakePod, hub: ServedHub) -> Callable[..., Awaitable[ManagedPod]]:
    async def made(*repos: str, **fields: Any) -> ManagedPod:
        place = {"endpoint": hub.url, "repos": list(repos)}
        source = AdapterSource.model_validate({"name": "hub", "huggingFace": place})
        return await make_pod(adapter_sources=(VOLUME, source), **fields)

    return made


@asynccontextmanager
async def asking(pod: ManagedPod, name: str, kind: Kind = Kind.HUB, token: str | None = None) -> AsyncIterator[Lease]:
    async with await pod.manager.ad_hoc.lease(Wish(name, kind, token), hold_seconds=60) as lease:
        yield lease


async def refused(pod: ManagedPod, name: str, kind: Kind = Kind.HUB, token: str | None = None) -> str:
    with pytest.raises(AdapterFailed) as caught:
        async with asking(pod, name, kind, token):
            pass
    assert name in str(caught.value)
    for hidden in (ALICE, BOB):
        assert hidden not in str(caught.value)
    return str(caught.value)


def downloads(hub: ServedHub, repo: str) -> int:
    return sum(f"/{repo}/" in one and one.endswith(".safetensors") for one in hub.trouble.requests)


async def test_an_adapter_is_brought_by_what_it_is(pod_of: MakePod, hub: ServedHub) -> None:
    """Once for all who name it, by whatever name, and nobody is told that it is there."""
    pod = await pod_of()
    async with asking(pod, "acme/red") as one, asking(pod, "hf:acme/red@main") as other:
        assert one.key == other.key
        assert one.key is not None
        assert (one.key.name, one.name, one.kinds) == (AD_HOC, "acme/red", {Kind.HUB})
        assert one.directory is not None
        pod.engine.ask(one.key)
    shutil.copytree(hub.root / "red", pod.config.volumes_dir / "volume" / "copy")
    for name in ("copy", str(pod.config.volumes_dir / "volume" / "copy")):
        async with asking(pod, name, Kind.LOCAL) as copy:
            assert (copy.key, copy.kinds) == (one.key, {Kind.LOCAL})
    async with asking(pod, "acme/blue") as blue:
        assert blue.key != one.key
    assert downloads(hub, "acme/red") == 1
    assert len(pod.engine.registered) == 2
    assert not pod.manager.shown.observed()
    assert not pod.manager.shown.routes()
    assert [model.id for model in pod.manager.models()] == ["base"]
    assert not pod.manager.knows("acme/red")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("acme/blue", Kind.HUB),
        ("evil/red", Kind.HUB),
        ("acme/red/../blue", Kind.HUB),
        ("acme/red@main\nx-header: 1", Kind.HUB),
        ("red", Kind.S3),
        ("s3://models/red", Kind.S3),
        ("acme/red", Kind.S3),
        ("../other", Kind.LOCAL),
        ("/etc", Kind.LOCAL),
        ("red@blue", Kind.LOCAL),
        ("s3://models/red", Kind.LOCAL),
    ],
)
async def test_what_lies_in_no_declared_source_is_not_asked_for(
    pod_of: MakePod, hub: ServedHub, name: str, kind: Kind
) -> None:
    pod = await pod_of("acme/red")
    (pod.config.volumes_dir / "volume" / "red@blue").mkdir()
    with pytest.raises(AdapterFailed, match=r"SourceNotAllowed|ArtifactNotFound"):
        async with asking(pod, name, kind):
            pass
    assert not hub.trouble.requests
    assert not pod.engine.registered


async def test_a_token_opens_what_it_opens_and_to_nobody_else(
    pod_of: MakePod, hub: ServedHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the content lies there, and everybody may see that there is such a repository."""
    monkeypatch.setattr(module, "REFUSAL_SECONDS", 0.0)
    caplog.set_level(logging.DEBUG)
    pod = await pod_of()
    assert "403" in await refused(pod, "acme/gated")
    async with asking(pod, "acme/gated", token=ALICE) as lease:
        key = lease.key
        for other in (None, BOB):
            assert "Unauthorized" in await refused(pod, "acme/gated", token=other)
        async with asking(pod, "acme/gated", token=ALICE) as again:
            assert again.key == key
    assert "Unauthorized" in await refused(pod, "acme/gated", token=BOB)
    hub.trouble.gates["acme/gated"].add(BOB)
    async with asking(pod, "acme/gated", token=BOB) as his:
        assert his.key == key
    assert len(pod.engine.registered) == 1

    monkeypatch.setattr(module, "PROOF_SECONDS", 0.0)  # from here on each request has to show it
    hub.trouble.gates["acme/gated"].remove(ALICE)
    pod.manager.ad_hoc._proofs.clear()
    assert "Unauthorized" in await refused(pod, "acme/gated", token=ALICE)
    async with asking(pod, "acme/gated", token=BOB):
        pass
    assert f"Bearer {ALICE}" in hub.trouble.authorizations
    assert ALICE not in caplog.text
    assert BOB not in caplog.text


async def test_a_declared_source_learns_nothing_from_a_token(pod_of: MakePod, hub: ServedHub) -> None:
    """What a caller could have is no answer to the operator, whose source cannot."""
    pod = await pod_of()
    async with asking(pod, "acme/gated", token=ALICE):
        pass
    hub.trouble.authorizations.clear()
    with pytest.raises(AdapterError, match="403"):
        await pod.manager.resolve(SourceRef(name="hub", repo="acme/gated"), None)
    assert hub.trouble.authorizations == {""}
    with pytest.raises(InvalidValue, match="api_token: it opens a hub"):
        async with asking(pod, "red", Kind.LOCAL, ALICE):
            pass


async def test_the_least_used_one_leaves(pod_of: MakePod) -> None:
    pod = await pod_of(max_ad_hoc_adapters=2)
    async with asking(pod, "acme/red") as red:
        pass
    async with asking(pod, "acme/blue"), asking(pod, "acme/hidden") as hidden:
        assert pod.engine.released == [red.key]
        with pytest.raises(Overloaded, match="2 adapters that requests have named are in use"):
            async with asking(pod, "acme/red"):
                pass
    async with asking(pod, "acme/red"):
        assert pod.engine.released == [red.key, hidden.key]


async def test_one_that_cannot_be_had_is_tried_anew(
    pod_of: MakePod, hub: ServedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSAL_SECONDS", 0.0)
    pod = await pod_of()
    for _ in range(2):
        assert "RankTooHigh" in await refused(pod, "acme/wide")
    assert "ArtifactNotFound" in await refused(pod, "acme/nothing")
    write_adapter(hub.root / "wide", rank=4)
    async with asking(pod, "acme/wide"):
        pass
    hub.trouble.status, hub.trouble.times = 500, 100
    with pytest.raises(AdapterLoading):
        async with await pod.manager.ad_hoc.lease(Wish("acme/red", Kind.HUB), hold_seconds=0.2):
            pass


async def test_a_source_is_not_asked_again_at_once_for_what_it_did_not_give(
    pod_of: MakePod, hub: ServedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same caller; what another one's token opens is another question."""
    pod = await pod_of()
    first = await refused(pod, "acme/nothing")
    asked = len(hub.trouble.requests)
    assert [await refused(pod, "acme/nothing") for _ in range(3)] == [first] * 3
    assert len(hub.trouble.requests) == asked
    await refused(pod, "acme/gated", token=BOB)
    async with asking(pod, "acme/gated", token=ALICE):
        pass
    monkeypatch.setattr(module, "monotonic", lambda: monotonic() + module.REFUSAL_SECONDS)
    write_adapter(hub.root / "nothing", seed=7)
    async with asking(pod, "acme/nothing"):
        pass
    assert len(hub.trouble.requests) > asked


async def test_what_is_remembered_is_bounded(pod_of: MakePod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROOFS", 2)
    pod = await pod_of()
    for number in range(4):
        await refused(pod, f"acme/nothing-{number}")
    assert len(pod.manager.ad_hoc._refusals) == 2


async def test_new_content_is_a_new_revision(pod_of: MakePod, hub: ServedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROOF_SECONDS", 0.0)
    pod = await pod_of()
    async with asking(pod, "acme/red") as before:
        write_adapter(hub.root / "red", seed=99)
        async with asking(pod, "acme/red") as after:
            assert after.key != before.key


async def test_a_pod_that_loads_nothing_on_demand_says_so(make_pod: MakePod) -> None:
    pod = await make_pod(load_on_demand=False)
    with pytest.raises(UnsupportedParameter, match="loads nothing on demand"):
        async with asking(pod, "red", Kind.LOCAL):
            pass


async def test_who_leaves_while_it_comes_keeps_nobody_waiting(pod_of: MakePod) -> None:
    pod = await pod_of(max_ad_hoc_adapters=1)

    async def ask(name: str) -> None:
        async with asking(pod, name):
            pass

    leaving = asyncio.create_task(ask("acme/red"))
    await pod.until("on its way", lambda: pod.engine.registered)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await ask("acme/blue")
