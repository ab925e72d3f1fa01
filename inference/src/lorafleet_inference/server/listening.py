"""Sockets and uvicorn servers that leave signals and the event loop to us."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from lorafleet_inference.errors import ConfigError

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Longer than what proxies and clients keep idle connections, so that it is not us who closes one in use."""


class HttpServer(uvicorn.Server):
    """A uvicorn server in an event loop that holds more than it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever runs the loop."""
        yield


def bind(host: str, port: int, *, option: str) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had; names the option.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(option, f"cannot listen on {host} port {port}: {error.strerror or error}") from error


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


def url_of(listener: socket.socket) -> str:
    """Return where a person reaches a socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"
