"""The admin app around a manager: before the base is loaded, while the pod drains, with and without a token."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.loads_engine import LoadsEngine

from lorafleet_contract import admin
from lorafleet_contract.sources import AdapterFacts, ResolvedSource, SourceRef
from lorafleet_inference.adapters.manager import AdapterManager
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.errors import PodDraining
from lorafleet_inference.server.admin import admin_app
from lorafleet_inference.server.admission import Admission
from lorafleet_inference.server.answer_room import AnswerRoom
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.public import not_ready_reason
from lorafleet_inference.server.reading import Readers
from lorafleet_inference.server.routes import routes_router
from lorafleet_inference.server.state import Phase, PodState


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pod", timeout=20)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    engine: Any = LoadsEngine()
    config = ServerConfig(
        engine=EngineConfig(model="/models/base"), served_name="base", cache_dir=tmp_path, drain_grace_seconds=0.05
    )
    manager = AdapterManager(engine, config, boot_id="boot")
    state = PodState(manager.changes.bump)
    nothing: Any = None
    with closing(Readers()) as readers:
        yield Pod(config, engine, manager, nothing, state, Admission(8), AnswerRoom(1 << 20), readers)
    await manager.close()
    engine.close()


async def test_before_the_base_is_loaded_everything_is_to_be_asked_again(pod: Pod) -> None:
    engine: Any = pod.engine
    engine.facts = None
    source = {"source": {"name": "volume", "path": "red"}}
    async with client(admin_app(pod, None)) as http:
        for method, path, body in (
            ("GET", "/admin/v1/state?after=1&wait_seconds=20", None),
            ("PUT", "/admin/v1/adapters", {"fence": 1, "generation": 1}),
            ("POST", "/admin/v1/resolve", source),
            ("PUT", "/admin/v1/adapters/red", source),
        ):
            told = await http.request(method, path, json=body)
            assert (told.status_code, told.json()["reason"], told.json()["retryable"]) == (503, "Pending", True), path
    assert not pod.manager.catalogue.was_written


async def test_a_pod_that_loads_says_how_far_it_is(pod: Pod) -> None:
    engine: Any = pod.engine
    ready, engine.facts = engine.facts, None
    async with client(admin_app(pod, None)) as http:
        assert (await http.get("/admin/v1/state")).json()["start"] is None
        engine.read_percent = 41
        assert (await http.get("/admin/v1/state")).json()["start"] == {"step": "Loading", "percent": 41}
        assert not_ready_reason(pod) == "the pod is starting: Loading 41 %"
        engine.facts = ready
        assert (await http.get("/admin/v1/state")).status_code == 200
    assert not_ready_reason(pod) == "the pod is starting"


async def test_draining_is_told_before_requests_are_refused(pod: Pod) -> None:
    await pod.manager.start()
    pod.state.phase = Phase.SERVING
    public = FastAPI()
    public.include_router(routes_router(pod))
    async with client(admin_app(pod, None)) as http, client(public) as gateway:
        generation = (await gateway.get("/v1/routes")).json()["generation"]
        with pod.state.request():
            polled = asyncio.create_task(gateway.get("/v1/routes", params={"after": generation, "wait_seconds": 20}))
            draining = asyncio.create_task(http.post("/admin/v1/drain", json={"timeoutSeconds": 20}))
            routes = (await polled).json()
            assert routes["draining"] or (await gateway.get("/v1/routes")).json()["draining"]
            with pod.state.request():
                pass
            while pod.state.phase is not Phase.DRAINING:
                await pod.manager.changes.wait(pod.manager.changes.number, 20)
            with pytest.raises(PodDraining), pod.state.request():
                pass
            assert not draining.done(), "a request still runs"
        assert (await draining).json() == {"numInFlight": 0}
        state = (await http.get("/admin/v1/state")).json()
        assert (state["draining"], state["ready"]) == (True, False)


async def test_a_drain_ends_with_its_time(pod: Pod) -> None:
    pod.state.phase = Phase.SERVING
    async with client(admin_app(pod, None)) as http:
        with pod.state.request():
            told = await http.post("/admin/v1/drain", json={"timeoutSeconds": 0.05})
            assert told.json() == {"numInFlight": 1}


async def test_a_token_is_asked_for_everywhere(pod: Pod) -> None:
    async with client(admin_app(pod, hashlib.sha256(b"secret").digest())) as http:
        for headers in ({}, {"authorization": "Bearer secre"}, {"authorization": "Bearer sécret".encode("latin-1")}):
            for path in ("/admin/v1/state", "/", "/docs", "/openapi.json"):
                told = await http.get(path, headers=headers)
                assert (told.status_code, told.headers["www-authenticate"]) == (401, "Bearer")
        assert (await http.get("/admin/v1/state", headers={"authorization": "bearer secret"})).status_code == 200


async def test_what_fails_in_us_is_an_admin_error_too(pod: Pod) -> None:
    engine: Any = pod.engine
    engine.facts = "broken"
    app = admin_app(pod, None)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as http:
        told = await http.get("/admin/v1/state")
    assert (told.status_code, told.json()["reason"], told.json()["retryable"]) == (500, "LoadFailed", True)


async def test_whoever_says_what_it_knows_is_told_what_has_changed(pod: Pod) -> None:
    """Of another boot, of a generation that never was, and without asking for it the whole is told."""
    await pod.manager.start()
    known = dict[str, admin.PodState]()

    async def tell(number: int, *names: str, removed: tuple[str, ...] = ()) -> httpx.Response:
        write = admin.CatalogueWrite(
            fence=1,
            generation=number,
            adapters=[catalogue_entry(name) for name in names],
            removed=[admin.RevisionRef(name=name, revision="a" * 12) for name in removed],
        )
        since = {"boot_id": "boot", "since": known["then"].generation} if known else {}
        body = write.model_dump(mode="json", by_alias=True)
        return await http.put("/admin/v1/adapters", json=body, params=since)

    def names(state: admin.PodState) -> list[str]:
        return sorted(one.name for one in state.adapters)

    async with client(admin_app(pod, None)) as http:
        first = (await tell(1, "french", "german")).json()
        assert "since" not in first
        known["then"] = admin.PodState.model_validate(first)
        told = admin.PodDifference.model_validate_json((await tell(2, "dutch", removed=("german",))).content)
        assert "dutch" in names(told)
        while True:
            whole = admin.PodState.model_validate_json((await http.get("/admin/v1/state")).content)
            query = {"boot_id": "boot", "since": known["then"].generation}
            polled = (await http.get("/admin/v1/state", params=query)).content
            now = admin.PodDifference.model_validate_json(polled)
            if now.generation == whole.generation and names(whole) == ["dutch", "french"]:
                break
            await pod.manager.changes.wait(whole.generation, 5)
        assert names(now.applied_to(known["then"])) == names(whole)
        for other in ({"boot_id": "another"}, {"since": 10**6}, {"since": 0}):
            params = {"boot_id": "boot", "since": known["then"].generation, **other}
            assert "since" not in (await http.get("/admin/v1/state", params=params)).json(), other
        after = {"boot_id": "boot", "since": whole.generation, "after": whole.generation - 1, "wait_seconds": 5}
        assert (await http.get("/admin/v1/state", params=after)).json()["adapters"] == []
        refused = await http.get("/admin/v1/state", params={"boot_id": "boot", "since": -1})
        assert (refused.status_code, refused.json()["reason"]) == (400, "BadRequest")


async def test_gateways_are_told_what_has_changed(pod: Pod) -> None:
    await pod.manager.start()
    pod.state.phase = Phase.SERVING
    public = FastAPI()
    public.include_router(routes_router(pod))
    async with client(public) as gateway:
        first = (await gateway.get("/v1/routes")).json()
        assert "since" not in first
        pod.manager.changes.bump()
        query = {"boot_id": "boot", "since": first["generation"], "after": first["generation"], "wait_seconds": 5}
        told = (await gateway.get("/v1/routes", params=query)).json()
        assert (told["since"], told["adapters"], told["removed"]) == (first["generation"], [], [])
        told = (await gateway.get("/v1/routes", params={**query, "boot_id": "another"})).json()
        assert "since" not in told


def catalogue_entry(name: str) -> admin.CatalogueEntry:
    """One that no source of the pod has: it stands in the state all the same."""
    source = ResolvedSource(
        ref=SourceRef(name="nowhere", path=name),
        digest=f"sha256:{'a' * 64}",
        files=[],
        facts=AdapterFacts(rank=8, size_bytes=1, target_modules=["q_proj"]),
    )
    return admin.CatalogueEntry(name=name, source=source)
