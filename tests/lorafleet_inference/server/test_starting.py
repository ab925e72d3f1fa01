"""The ports of a pod before its base model is here, and a start that ends there, with `serve` in this process."""

import asyncio
import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response
from support.waiting import wait_for

from lorafleet_common.errors import ConfigError
from lorafleet_common.sockets import bind
from lorafleet_common.tracing import OFF
from lorafleet_contract.admin import AdminError, HostReady, StartProgress, StartStep
from lorafleet_inference.base_folder import NamedBase
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.metrics import REGISTRY
from lorafleet_inference.ranks_command import RanksConfig
from lorafleet_inference.server.app import serve
from lorafleet_inference.server.connections import ConnectionLimits
from lorafleet_inference.server.ports import Port
from lorafleet_inference.server.ranks import serve_ranks
from lorafleet_inference.server.starting import Download, brought, early_admin, early_host, early_public


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pod", timeout=20)


@pytest.mark.parametrize(
    ("percent", "reason"), [(None, "the pod is starting"), (12, "the pod is starting: Downloading 12 %")]
)
async def test_the_public_port(percent: int | None, reason: str) -> None:
    download = Download()
    if percent is not None:
        download.tell(percent)
    async with client(early_public(download, pod_name="pod-1", tracing=OFF)) as http:
        for path in ("/health", "/", "/ping", "/version"):
            assert (await http.get(path)).status_code == 200
        ready = await http.get("/ready")
        assert (ready.status_code, ready.json()["reason"], ready.headers["retry-after"]) == (503, reason, "2")
        scraped = list(text_string_to_metric_families((await http.get("/metrics")).text))
        assert [one.samples[0].value for one in scraped if one.name == "lorafleet_ready"] == [0]
        for method, path in (("GET", "/v1/routes"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            refused = await http.request(method, path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert refused.headers["retry-after"]
            assert refused.headers["x-lorafleet-pod"] == "pod-1"
        assert (await http.post("/generate")).json()["error"] == "the base model is not here yet"


async def test_the_admin_port_says_how_far_it_is_to_who_has_the_token() -> None:
    download = Download()
    app = early_admin(download, hashlib.sha256(b"token").digest())
    async with client(app) as http:
        assert (await http.get("/admin/v1/state")).status_code == 401
        http.headers["authorization"] = "Bearer token"
        for percent in (None, 0, 99):
            if percent is not None:
                download.tell(percent)
            for method, path in (("GET", "/admin/v1/state?after=1&wait_seconds=20"), ("PUT", "/admin/v1/adapters")):
                told = await http.request(method, path)
                error = AdminError.model_validate_json(told.content)
                assert (told.status_code, error.reason, error.retryable) == (503, "Pending", True)
                wanted = None if percent is None else StartProgress(step=StartStep.DOWNLOADING, percent=percent)
                assert error.start == wanted


@dataclass
class Cache:
    """In place of the cache of models: does what it is given."""

    get_folder: Callable[[Callable[[int], None]], Path]
    ended: threading.Event = field(default_factory=threading.Event)

    def get(self, _: object, *, tell: Callable[[int], None]) -> Path:
        try:
            return self.get_folder(tell)
        finally:
            self.ended.set()


def named(cache: Cache) -> NamedBase:
    anything: Any = cache
    return NamedBase(EngineConfig(model="acme/base"), anything, None, anything)


def config(base: NamedBase, folder: Path) -> ServerConfig:
    return ServerConfig(
        engine=base.engine, served_name="base", cache_dir=folder, host="127.0.0.1", port=0, admin_port=0
    )


async def test_what_is_brought_is_the_engines_folder_and_how_long_it_took_is_measured(tmp_path: Path) -> None:
    def get_folder(tell: Callable[[int], None]) -> Path:
        tell(7)
        return tmp_path

    download = Download()
    engine = await brought(named(Cache(get_folder)), download, asyncio.get_running_loop().create_future())
    assert engine is not None
    assert (engine.model, download.progress) == (str(tmp_path), StartProgress(step=StartStep.DOWNLOADING, percent=7))
    taken = [one.samples[0].value for one in REGISTRY.collect() if one.name == "lorafleet_base_download_seconds"]
    assert len(taken) == 1
    assert 0 < taken[0] < 60


async def test_a_download_that_fails_ends_the_pod_with_its_reason(tmp_path: Path) -> None:
    def get_folder(_: Callable[[int], None]) -> Path:
        raise ConfigError("--model", "acme/base is no folder, and the hub did not give it: 404")

    base = named(Cache(get_folder))
    with pytest.raises(ConfigError, match="the hub did not give it"):
        await serve(config(base, tmp_path), base)


def told_to_end(tell: Callable[[int], None]) -> Path:
    """A download without an end, whose process is told to end when it begins."""
    tell(3)
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        tell(3)


async def test_a_pod_that_is_told_to_end_does_not_wait_for_its_download(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = named(cache := Cache(told_to_end))
    caplog.set_level("INFO", "lorafleet_inference")
    assert await serve(config(base, tmp_path), base) == 0
    assert cache.ended.is_set(), "the lease is given back"
    assert "not waited for any longer" in caplog.text


def ranks(base: NamedBase) -> RanksConfig:
    return RanksConfig(base=base, leader="127.0.0.1", leader_port=1, index=1, name="base-0-1", host="127.0.0.1", port=0)


async def test_a_further_host_has_its_port_before_its_base_and_ends_when_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    may_go_on = threading.Event()

    def get_folder(tell: Callable[[int], None]) -> Path:
        tell(12)
        assert may_go_on.wait(60)
        return tmp_path

    base = named(Cache(get_folder))
    caplog.set_level("INFO", "lorafleet_inference")
    serving = asyncio.ensure_future(serve_ranks(ranks(base)))

    def says(expected: str) -> bool:
        found = re.search(r"health at (http://\S+),", caplog.text)
        if found is None:
            return False
        answers = [httpx.get(f"{found[1]}{path}", trust_env=False, timeout=20) for path in ("/health", "/ready")]
        return [(one.status_code, one.json()["status"]) for one in answers] == [(200, expected), (503, expected)]

    for expected in ("Downloading 12 %", "waiting for the engine"):
        await asyncio.to_thread(wait_for, expected, partial(says, expected))
        may_go_on.set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving == 0


@pytest.mark.parametrize("percent", [None, 0, 12])
async def test_a_further_host_says_how_far_it_is_as_operators_read_it(percent: int | None) -> None:
    download = Download()
    if percent is not None:
        download.tell(percent)
    async with client(early_host(download)) as http:
        answer = await http.get("/ready")
    said = HostReady.model_validate_json(answer.content)
    assert answer.status_code == 503
    assert (said.start is None) is (percent is None)
    if said.start is not None:
        assert said.status == said.start.words == f"Downloading {percent} %"


async def test_a_further_host_that_is_told_to_end_does_not_wait_for_its_download() -> None:
    base = named(cache := Cache(told_to_end))
    assert await serve_ranks(ranks(base)) == 0
    assert cache.ended.is_set(), "the lease is given back"


async def test_a_port_answers_by_what_was_set_last() -> None:
    async def says(body: bytes, scope: Any, receive: Any, send: Any) -> None:
        await Response(body)(scope, receive, send)

    with bind("127.0.0.1", 0, option="--port") as listener:
        port = Port(listener, partial(says, b"early"), ConnectionLimits())
        async with httpx.AsyncClient(base_url=port.url, trust_env=False, timeout=20) as http:
            assert (await http.get("/")).text == "early"
            port.app = partial(says, b"late")
            assert (await http.get("/")).text == "late"
        assert not port.lost.done()
        port.close()
        await port.lost
