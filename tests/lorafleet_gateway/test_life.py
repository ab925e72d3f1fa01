"""The command as a process: starts, serves, drains, ends."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from support.upstream_pods import REVISION, streaming

from lorafleet_contract.names import HEADER_REVISION, HEADER_SESSION

from .conftest import World

ROOT = Path(__file__).parents[2]
CANARY = "b" * 12
PATH = ":".join(str(ROOT / part / "src") for part in ("contract", "common", "gateway"))


@asynccontextmanager
async def gateway(
    world: World, tmp_path: Path, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start `lorafleet-gateway serve` on a free port; yields the process and its URL."""
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{world.kube.port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    document = {
        "clusters": [cluster],
        "contexts": [context],
        "users": [{"name": "u", "user": {}}],
        "current-context": "x",
    }
    kubeconfig.write_text(yaml.safe_dump(document))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PATH, "KUBECONFIG": str(kubeconfig)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lorafleet_gateway", "serve", "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", *arguments,
        env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(120):
            line = b""
            while b"listening" not in line:
                line = await process.stderr.readline()
                assert line, "the gateway ended"
        draining = asyncio.create_task(process.stderr.read())
        yield process, f"http://127.0.0.1:{line.split()[-1].decode()}"
        draining.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(status: int, ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Ask until the answer has a status."""
    deadline = time.monotonic() + 60
    while (answer := await ask()).status_code != status:
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.02)
    return answer


async def test_sigterm_drains(world: World, tmp_path: Path) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    go_on = asyncio.Event()
    pod.reply = streaming("data: 1\n\n", "data: [DONE]\n\n", pause=go_on)
    async with gateway(world, tmp_path, "--drain-grace-seconds", "2") as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await until(200, lambda: client.get("/ready"))
            async with client.stream("POST", "/v1/chat/completions", json={"model": "numerals"}) as answer:
                chunks = answer.aiter_raw()
                assert await anext(chunks) == b"data: 1\n\n"
                process.send_signal(signal.SIGTERM)
                await until(503, lambda: client.get("/ready"))
                pod.reply = None
                in_grace = await client.post("/v1/chat/completions", json={"model": "numerals"})
                assert in_grace.status_code == 200
                assert in_grace.headers["connection"] == "close"
                refused = await until(503, lambda: client.post("/v1/completions", json={"model": "numerals"}))
                assert refused.json()["error"]["code"] == "draining"
                assert process.returncode is None
                go_on.set()
                assert b"".join([chunk async for chunk in chunks]) == b"data: [DONE]\n\n"
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_the_drain_ends_in_time_whatever_runs(world: World, tmp_path: Path) -> None:
    pod = await world.pod("one")
    world.endpoints(pod)
    pod.reply = streaming("data: 1\n\n", pause=asyncio.Event())
    arguments = ("--drain-grace-seconds", "0", "--drain-timeout-seconds", "0.2")
    async with (
        gateway(world, tmp_path, *arguments) as (process, url),
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        await until(200, lambda: client.get("/ready"))
        async with client.stream("POST", "/v1/chat/completions", json={"model": "numerals"}) as answer:
            chunks = answer.aiter_raw()
            assert await anext(chunks) == b"data: 1\n\n"
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(chunks)
        await asyncio.wait_for(pod.ended.wait(), 60)
        assert pod.num_cancelled == 1


async def test_a_gateway_that_restarts_and_one_beside_it_send_sessions_where_they_were(
    world: World, tmp_path: Path
) -> None:
    """And one that drains ends a canary's stream where it began."""
    traffic = [{"revision": revision, "weight": 50} for revision in (REVISION, CANARY)]
    world.adapter("french", status={"traffic": traffic})
    pod = await world.pod("one")
    world.endpoints(pod)

    async def met(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await until(200, lambda: client.get("/ready"))
            body = {"model": "french"}
            sessions = [{HEADER_SESSION: f"conversation-{number}"} for number in range(30)]
            answers = [await client.post("/v1/completions", json=body, headers=headers) for headers in sessions]
            return [answer.headers[HEADER_REVISION] for answer in answers]

    async with gateway(world, tmp_path) as (first, one), gateway(world, tmp_path) as (_, other):
        at_one, at_other = await met(one), await met(other)
        pod.reply = streaming(
            "data: 1\n\n", "data: [DONE]\n\n", pause=(go_on := asyncio.Event()), headers={HEADER_REVISION: CANARY}
        )
        async with (
            httpx.AsyncClient(base_url=one, timeout=60) as client,
            client.stream("POST", "/v1/completions", json={"model": "french"}) as answer,
        ):
            first.terminate()
            await asyncio.sleep(0.2)
            go_on.set()
            assert (await answer.aread()).endswith(b"data: [DONE]\n\n")
        pod.reply = None
        assert await asyncio.wait_for(first.wait(), 60) == 0
    async with gateway(world, tmp_path) as (_, again):
        assert at_one == at_other == await met(again)
    assert set(at_one) == {REVISION, CANARY}


async def test_bad_options_end_with_a_line_that_names_them() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PATH, "LORAFLEET_PROT": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lorafleet_gateway", "serve", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 2
    assert stderr.decode() == "lorafleet-gateway: LORAFLEET_PROT: is no option of this program; see --help\n"


async def test_without_a_cluster_it_ends_and_says_so(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": PATH,
        "KUBECONFIG": str(tmp_path / "none"),
        "HOME": "/nowhere",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "lorafleet_gateway",
        "serve",
        "--port",
        "0",
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 1
    assert "neither a service account nor a kubeconfig" in stderr.decode()
