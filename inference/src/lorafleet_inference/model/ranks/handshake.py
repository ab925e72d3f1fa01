"""Both ends of a connection between hosts show that they know the secret, before anything else is read of it."""

import hmac
import secrets
import socket
from typing import Final

_MAGIC: Final = b"lorafleet ranks\x01"
_NONCE_BYTES: Final = 32
_MAC_BYTES: Final = 32
HANDSHAKE_SECONDS: Final = 10.0


class Stranger(OSError):
    """The other end does not know the secret, or is something else."""


class _Closed(ConnectionError):
    """The other end was closed where it had to say something."""


def admit(connection: socket.socket, secret: str) -> None:
    """Wait for a host that knows the secret, and show that this side does.

    Raises:
        OSError: it does not (Stranger), or is gone.
    """
    ours = secrets.token_bytes(_NONCE_BYTES)
    connection.settimeout(HANDSHAKE_SECONDS)
    connection.sendall(_MAGIC + ours)
    said = _receive(connection, len(_MAGIC) + _NONCE_BYTES + _MAC_BYTES)
    theirs, mac = said[len(_MAGIC) : -_MAC_BYTES], said[-_MAC_BYTES:]
    if not said.startswith(_MAGIC):
        raise Stranger("it is no host of a model")
    if not hmac.compare_digest(mac, _mac(secret, b"host", ours, theirs)):
        raise Stranger("it does not know the secret")
    connection.sendall(_mac(secret, b"engine", ours, theirs))


def introduce(connection: socket.socket, secret: str) -> None:
    """Show the engine process that this host knows the secret, and see that it does.

    Raises:
        OSError: it does not (Stranger), or is gone.
    """
    connection.settimeout(HANDSHAKE_SECONDS)
    said = _receive(connection, len(_MAGIC) + _NONCE_BYTES)
    if not said.startswith(_MAGIC):
        raise Stranger("it is no engine that awaits hosts")
    theirs, ours = said[len(_MAGIC) :], secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(_MAGIC + ours + _mac(secret, b"host", theirs, ours))
    try:
        answer = _receive(connection, _MAC_BYTES)
    except _Closed as error:
        raise Stranger("it has another secret") from error
    if not hmac.compare_digest(answer, _mac(secret, b"engine", theirs, ours)):
        raise Stranger("it does not know the secret")


def _mac(secret: str, whose: bytes, engine: bytes, host: bytes) -> bytes:
    return hmac.digest(secret.encode(), whose + engine + host, "sha256")


def _receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            raise _Closed("the other end was closed")
        content += piece
    return content
