"""The admin API of pods over HTTP: what a pod answers becomes a typed document or a typed error, nothing else."""

import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ValidationError

from lorafleet_contract import admin
from lorafleet_contract.base import Wire
from lorafleet_contract.names import ADMIN_PORT, PUBLIC_PORT
from lorafleet_operator import metrics
from lorafleet_operator.act.pod_states import PodStates
from lorafleet_operator.errors import AdminError, PodRefused, PodUnreachable

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)
CONNECT_SECONDS: Final = 3.0
STATE_SECONDS: Final = 3.0
WRITE_SECONDS: Final = 5.0
LOAD_SECONDS: Final = 2.0
HOST_SECONDS: Final = 1.0
MAX_HOST_BYTES: Final = 64 << 10
RESOLVE_SECONDS: Final = 1800.0
"""A pod may have to download an adapter to know its digest."""
POLL_SECONDS: Final = 5.0
"""A pod that hangs without a trace is noticed after this and two answers that do not come."""
MAX_ERROR_TEXT: Final = 300
MAX_ANSWER_BYTES: Final = 16 * 2**20
"""Pods run images of their owners: what one answers must not fill the memory that all bases share."""
DEAD_PEER_MILLISECONDS: Final = 10_000
"""What was sent and not confirmed for this long is lost: a node that is gone sends no reset."""


class AdminClient:
    """Requests to the admin API of pods; owns its connections. All methods raise AdminError and nothing else."""

    def __init__(self, *, port: int = ADMIN_PORT, hosts_port: int = PUBLIC_PORT) -> None:
        """`hosts_port`: of pods that are one of several of a replica and not the first."""
        connector = aiohttp.TCPConnector(limit=0, socket_factory=_socket_that_notices_death)
        # pods set no cookies; with a jar each request would look through it twice. And they send what it is: what unpacks to
        # more than it weighs is nothing that a pod of ours sends, and would be all of the memory before its length is seen
        self._session = aiohttp.ClientSession(
            connector=connector, trust_env=False, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._port = port
        self._hosts_port = hosts_port
        self._states = PodStates()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def state(self, ip: str, token: str) -> admin.PodState:
        """Return what a pod has."""
        return self._state(await self._request("GET", ip, "/admin/v1/state", token, STATE_SECONDS))

    async def changed_state(
        self, ip: str, token: str, known: admin.PodState, *, with_counters: bool = False
    ) -> admin.PodState | None:
        """Return what a pod has once its generation exceeds that of `known`, or after a while.

        Without `with_counters` they may be as old as those of `known`, and None is returned where only they can have changed.
        """
        query = {"after": str(known.generation), "wait_seconds": f"{POLL_SECONDS:.0f}"}
        if not with_counters:
            query |= _since(known)
        limit = STATE_SECONDS + POLL_SECONDS
        raw = await self._request("GET", ip, "/admin/v1/state", token, limit, query=query)
        if not raw:
            return None
        return self._state(raw) if with_counters else self._news(raw, known)

    async def load(self, ip: str, token: str) -> admin.PodLoad:
        """Return what a pod has to do now; pods of earlier versions do not say."""
        return _parsed(admin.PodLoad, await self._request("GET", ip, "/admin/v1/load", token, LOAD_SECONDS))

    async def write(
        self, ip: str, token: str, write: admin.CatalogueWrite, known: admin.PodState | None = None
    ) -> admin.PodState:
        """Tell a pod what to know; return what it has then. What it had, if that is known, needs not be told again."""
        query = _since(known) if known is not None else None
        raw = await self._request("PUT", ip, "/admin/v1/adapters", token, WRITE_SECONDS, query=query, body=write)
        return self._state(raw) if known is None else self._news(raw, known)

    async def adapter(self, ip: str, token: str, name: str) -> admin.AdapterAnswer:
        """Return what a pod has of a served name, and what it is made of."""
        path = f"/admin/v1/adapters/{quote(name, safe='')}"
        return _parsed(admin.AdapterAnswer, await self._request("GET", ip, path, token, STATE_SECONDS))

    async def host_start(self, ip: str) -> admin.StartProgress | None:
        """Return how far a further pod of a replica is with its download, as it tells anybody; None: it does not say.

        It has no admin API, and no token goes there.
        """
        host = f"[{ip}]" if ":" in ip else ip
        try:
            async with self._session.get(
                f"http://{host}:{self._hosts_port}/ready",
                headers={"accept-encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=HOST_SECONDS),
                allow_redirects=False,
            ) as response:
                return _parsed(admin.HostReady, await _bounded(response, MAX_HOST_BYTES)).start
        except (aiohttp.ClientError, TimeoutError, OSError, PodUnreachable) as error:
            logger.debug("further pod %s does not say how far it is: %s", ip, str(error) or type(error).__name__)
            return None

    async def resolve(self, ip: str, token: str, request: admin.ResolveRequest) -> admin.ResolveAnswer:
        """Let a pod pin a reference to content."""
        raw = await self._request("POST", ip, "/admin/v1/resolve", token, RESOLVE_SECONDS, body=request)
        return _parsed(admin.ResolveAnswer, raw)

    async def ask(self, ip: str, token: str, request: admin.AskRequest, *, limit_seconds: float) -> admin.AskAnswer:
        """Return what a revision answers."""
        raw = await self._request("POST", ip, "/admin/v1/ask", token, limit_seconds, body=request)
        return _parsed(admin.AskAnswer, raw)

    def _state(self, raw: bytes) -> admin.PodState:
        return _understood(admin.PodState, self._states.read, raw)

    def _news(self, raw: bytes, known: admin.PodState) -> admin.PodState:
        """Pods of earlier versions answer whole, and so do those that do not know any more what they said then."""
        return _understood(admin.PodState, lambda given: self._states.read_news(given, known), raw)

    async def _request(
        self,
        method: str,
        ip: str,
        path: str,
        token: str,
        limit_seconds: float,
        *,
        query: dict[str, str] | None = None,
        body: Wire | None = None,
    ) -> bytes:
        host = f"[{ip}]" if ":" in ip else ip
        began = time.monotonic()
        code = "none"
        try:
            async with self._session.request(
                method,
                f"http://{host}:{self._port}{path}",
                params=query,
                data=body.model_dump_json(by_alias=True, exclude_none=True) if body is not None else None,
                headers={
                    "authorization": f"Bearer {token}",
                    "content-type": "application/json",
                    "accept-encoding": "identity",
                },
                timeout=aiohttp.ClientTimeout(total=limit_seconds, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                code = str(response.status)
                raw = await _bounded(response)
                if response.status == 304 and query is not None and "boot_id" in query:
                    return b""
                if not 200 <= response.status < 300:
                    raise _refusal(response.status, raw)
                return raw
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PodUnreachable(f"{method} {path}: {type(error).__name__} {error}".strip()) from error
        finally:
            verb = f"{'poll' if query and method == 'GET' else method.lower()} {path.split('/')[3]}"
            metrics.ADMIN_SECONDS.labels(verb=verb, code=code).observe(time.monotonic() - began)


async def _bounded(response: aiohttp.ClientResponse, max_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > max_bytes:
            raise PodUnreachable(f"its answer is longer than {max_bytes} bytes")
    return bytes(raw)


def _socket_that_notices_death(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MILLISECONDS)
    return made


def _parsed(model: type[M], raw: bytes) -> M:
    return _understood(model, model.model_validate_json, raw)


def _understood(model: type[M], read: Callable[[bytes], M], raw: bytes) -> M:
    try:
        return read(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise PodUnreachable(f"its answer is no {model.__name__}: {where}: {first['msg']}") from error
    except ValueError as error:
        raise PodUnreachable(f"its answer is no {model.__name__}: {error}") from error


def _since(known: admin.PodState) -> dict[str, str]:
    return {"boot_id": known.boot_id, "since": str(known.generation)}


def _refusal(status: int, raw: bytes) -> AdminError:
    try:
        error = admin.AdminError.model_validate_json(raw)
    except ValidationError:
        return PodUnreachable(f"{status}: {raw[:MAX_ERROR_TEXT].decode(errors='replace')}")
    return PodRefused(status, error.reason, error.message, retryable=error.retryable, start=error.start)
