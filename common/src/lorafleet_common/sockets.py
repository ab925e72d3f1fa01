"""Listening sockets, and the files that their connections need."""

import logging
import resource
import socket
from typing import Final

from lorafleet_common.errors import ConfigError

logger = logging.getLogger(__name__)
BACKLOG: Final = 2048
WHY_ENDED: Final = (
    "full (all were being answered), displaced (by a new one), slow (request), large (head), unread (answer)"
)
"""Why a server ends a connection of a client, as metrics count it."""
OTHER_FILES: Final = 256
"""Files that a process needs beside its connections: sockets of its own, downloads, logs."""


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


def connections_with_files(max_connections: int, *, files_each: int = 1) -> int:
    """Let the process have files for each connection of a client; return how many it may have where the system allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_each * max_connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    most = max(1, (soft - OTHER_FILES) // files_each)
    logger.warning(
        "the process may open %d files, so that it takes %d connections and not --max-connections %d",
        soft,
        most,
        max_connections,
    )
    return most


def url_of(listener: socket.socket) -> str:
    """Return where a person reaches a socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"
