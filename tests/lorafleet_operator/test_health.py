"""Probes and metrics, on a real port."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from lorafleet_common.errors import ConfigError
from lorafleet_operator.process.health import (
    LIMITS,
    MAX_RESYNC_AGE_SECONDS,
    MAX_WATCH_AGE_SECONDS,
    Health,
    serve_health,
)


class Listed:
    """What health wants to know of a resync."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.is_synced = False


class Watched:
    """What health wants to know of the watches."""

    age = 0.0

    def oldest(self) -> tuple[str, float]:
        return "/api/v1/pods", self.age


async def served(health: Health) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Serve it on a port that was free a moment ago, and on another where somebody has been faster."""
    for _ in range(20):
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            port = int(probe.getsockname()[1])
        with contextlib.suppress(ConfigError):
            return port, await serve_health(health, port)
    raise AssertionError("no free port")


async def test_probes() -> None:
    health = Health()
    port, close = await served(health)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def status(path: str) -> int:
            async with session.get(path) as answer:
                return answer.status

        assert [await status(path) for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
        listed = Listed()
        health.resync = listed
        assert [await status(path) for path in ("/healthz", "/readyz")] == [200, 503]
        listed.is_synced = True
        assert await status("/readyz") == 200
        listed.last = time.monotonic() - MAX_RESYNC_AGE_SECONDS - 1
        assert await status("/healthz") == 503
        listed.last = time.monotonic()
        health.freshness = Watched()
        assert await status("/healthz") == 200
        Watched.age = MAX_WATCH_AGE_SECONDS + 1
        assert await status("/healthz") == 503
        async with session.get("/metrics") as answer:
            assert "lorafleet_operator_reconciles_total" in await answer.text()
    await close()


async def test_taken_port_is_named() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--http-port: port {port} cannot be opened"):
            await serve_health(Health(), port)


async def test_half_open_connections_do_not_keep_the_kubelet_out() -> None:
    port, close = await served(Health())
    many = [await asyncio.open_connection("127.0.0.1", port) for _ in range(LIMITS.max_connections + 10)]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session, session.get("/healthz") as answer:
        assert answer.status == 200
        async with session.get("/metrics") as metrics_page:
            page = await metrics_page.text()
    assert await asyncio.wait_for(many[0][0].read(), 60) == b""  # the oldest one made way
    assert 'lorafleet_operator_connections_ended_total{reason="displaced"}' in page
    for _, writer in many:
        writer.close()
    await close()
