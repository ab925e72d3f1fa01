"""Uvicorn servers that leave signals and the event loop to us."""

import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_SECONDS = 75
"""Longer than what proxies and clients keep idle connections, so that it is not us who closes one in use."""


class HttpServer(uvicorn.Server):
    """A uvicorn server in an event loop that holds more than it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever runs the loop."""
        yield


def http_server(app: ASGIApp) -> HttpServer:
    """Return a server for an app; give it its socket with `serve(sockets=[…])`."""
    return HttpServer(
        uvicorn.Config(
            app,
            http="httptools",
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
