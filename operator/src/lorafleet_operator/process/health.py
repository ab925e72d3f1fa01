"""/healthz, /readyz and /metrics of the operator, also while it waits to lead."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lorafleet_common.clock import monotonic
from lorafleet_common.errors import ConfigError
from lorafleet_common.web_ports import LimitedServer, Limits
from lorafleet_operator import metrics
from lorafleet_operator.cluster.freshness import Freshness
from lorafleet_operator.process.resync import Resync

LIMITS: Final = Limits(max_connections=64, client_timeout_seconds=15.0)
"""Of the port, which the kubelet and who collects metrics ask."""
KEEP_ALIVE_SECONDS: Final = 75.0
MAX_RESYNC_AGE_SECONDS: Final = 300.0
MAX_WATCH_AGE_SECONDS: Final = 300.0


@dataclass(slots=True)
class Health:
    """What probes are told."""

    resync: Resync | None = None
    """None while another operator leads."""
    freshness: Freshness | None = None
    """None while nothing is watched."""

    def problem(self) -> str | None:
        """Return why the process should be started again, or None."""
        if self.resync is None:
            return None
        age = monotonic() - self.resync.last
        if age > MAX_RESYNC_AGE_SECONDS:
            return f"nothing was listed for {age:.0f} s"
        if self.freshness is not None:
            path, age = self.freshness.oldest()
            if age > MAX_WATCH_AGE_SECONDS:
                return f"the watch of {path} was not heard of for {age:.0f} s"
        return None

    @property
    def is_ready(self) -> bool:
        """Whether it does its work, or waits as it should."""
        return self.resync is None or self.resync.is_synced


async def serve_health(health: Health, port: int) -> Callable[[], "asyncio.Future[None]"]:
    """Open the port and return what closes it.

    Raises:
        ConfigError: it cannot be opened.
    """

    def healthz() -> web.Response:
        problem = health.problem()
        return web.Response(text=problem or "ok", status=503 if problem else 200)

    def readyz() -> web.Response:
        return web.Response(text="ok" if health.is_ready else "listing", status=200 if health.is_ready else 503)

    def metrics_page() -> web.Response:
        return web.Response(body=generate_latest(metrics.REGISTRY), headers={"content-type": CONTENT_TYPE_LATEST})

    pages = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics_page}

    async def handle(request: web.BaseRequest) -> web.Response:
        page = pages.get(request.path)
        if page is None:
            return web.Response(text="there is nothing here", status=404)
        if request.method not in ("GET", "HEAD"):
            return web.Response(text="this is only read", status=405, headers={"allow": "GET, HEAD"})
        return page()

    def count(reason: str) -> None:
        metrics.CONNECTIONS_ENDED.labels(reason).inc()

    server = LimitedServer(handle, LIMITS, count, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS)
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError("--http-port", f"port {port} cannot be opened: {error.strerror or error}") from error
    return lambda: asyncio.ensure_future(runner.cleanup())
