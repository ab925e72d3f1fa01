"""Uvicorn servers that leave signals and the event loop to us."""

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from lorafleet_inference.server.connections import ConnectionLimits, LimitedProtocol, OncePerSecond

KEEP_ALIVE_SECONDS = 75
"""Longer than what proxies and clients keep idle connections, so that it is not us who closes one in use."""


class HttpServer(uvicorn.Server):
    """A uvicorn server in an event loop that holds more than it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever runs the loop."""
        yield


def http_server(app: ASGIApp, limits: ConnectionLimits | None = None) -> HttpServer:
    """Return a server for an app; give it its socket with `serve(sockets=[…])`."""
    uvicorn_logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(one, OncePerSecond) for one in uvicorn_logger.filters):
        uvicorn_logger.addFilter(OncePerSecond())
    protocol: Any = partial(LimitedProtocol, limits or ConnectionLimits())
    return HttpServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=2,
        )
    )
