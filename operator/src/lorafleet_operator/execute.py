"""The admin API of pods: bounded, idempotent, and what goes wrong with one pod stays with it."""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import aiohttp
from pydantic import ValidationError

from lorafleet_contract import admin
from lorafleet_contract.names import ADMIN_PORT
from lorafleet_operator import metrics
from lorafleet_operator.diff import PodChange
from lorafleet_operator.errors import AdminError, PodRefused, PodUnreachable
from lorafleet_operator.views import ObservedPod, Pod

logger = logging.getLogger(__name__)
CONNECT_SECONDS: Final = 3.0
STATE_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 20.0
RESOLVE_SECONDS: Final = 1800.0
"""A pod may have to download an adapter to know its digest."""
POLL_SECONDS: Final = 25.0
MAX_PARALLEL: Final = 16
MAX_ERROR_TEXT: Final = 300


class AdminClient:
    """Requests to the admin API of pods; owns its connections."""

    def __init__(self, *, port: int = ADMIN_PORT) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            connector=aiohttp.TCPConnector(limit=0),
            trust_env=False,
        )
        self._port = port

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def state(self, ip: str, token: str, *, after: int | None = None) -> admin.PodState:
        """Return what a pod has; with `after`, when its generation exceeds that or some time has passed.

        Raises:
            AdminError: the pod did not answer as it should.
        """
        query = {} if after is None else {"after": str(after), "wait_seconds": f"{POLL_SECONDS:.0f}"}
        limit = STATE_SECONDS + (0 if after is None else POLL_SECONDS)
        return admin.PodState.model_validate(
            await self._request("GET", ip, "/admin/v1/state", token, limit, query=query)
        )

    async def write(self, ip: str, token: str, write: admin.CatalogueWrite) -> None:
        """Tell a pod what to know.

        Raises:
            AdminError: the pod did not take it.
        """
        await self._request("PUT", ip, "/admin/v1/adapters", token, WRITE_SECONDS, body=write)

    async def resolve(self, ip: str, token: str, request: admin.ResolveRequest) -> admin.ResolveAnswer:
        """Let a pod pin a reference to content.

        Raises:
            AdminError: the pod did not answer, or the source cannot be taken.
        """
        answer = await self._request("POST", ip, "/admin/v1/resolve", token, RESOLVE_SECONDS, body=request)
        return admin.ResolveAnswer.model_validate(answer)

    async def _request(
        self,
        method: str,
        ip: str,
        path: str,
        token: str,
        limit_seconds: float,
        *,
        query: dict[str, str] | None = None,
        body: admin.Wire | None = None,
    ) -> Any:
        host = f"[{ip}]" if ":" in ip else ip
        data = body.model_dump_json(by_alias=True, exclude_none=True) if body is not None else None
        began = time.monotonic()
        code = "none"
        try:
            async with self._session.request(
                method,
                f"http://{host}:{self._port}{path}",
                params=query,
                data=data,
                headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=limit_seconds, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                code = str(response.status)
                raw = await response.read()
                if not 200 <= response.status < 300:
                    raise _refusal(response.status, raw)
                return await response.json(content_type=None) if raw else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, ValidationError) as error:
            raise PodUnreachable(f"{method} {path}: {type(error).__name__} {error}".strip()) from error
        finally:
            kind = "poll" if query else method.lower()
            metrics.ADMIN_SECONDS.labels(verb=f"{kind} {path.rpartition('/')[2]}", code=code).observe(
                time.monotonic() - began
            )


def _refusal(status: int, raw: bytes) -> AdminError:
    try:
        error = admin.AdminError.model_validate_json(raw)
    except ValidationError:
        return PodUnreachable(f"{status}: {raw[:MAX_ERROR_TEXT].decode(errors='replace')}")
    return PodRefused(status, error.reason, error.message, retryable=error.retryable)


class Executor:
    """Asks pods what they have and tells them what to know."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._generations = itertools.count(1)
        self._slots = asyncio.Semaphore(MAX_PARALLEL)

    async def observe(self, pods: Sequence[Pod], token: str) -> tuple[ObservedPod, ...]:
        """Return every pod with what it says of itself; one that does not answer has no state."""
        return tuple(await asyncio.gather(*(self._observe(pod, token) for pod in pods)))

    async def _observe(self, pod: Pod, token: str) -> ObservedPod:
        if pod.ip is None or pod.is_leaving:
            return ObservedPod(pod, None)
        async with self._slots:
            try:
                return ObservedPod(pod, await self._client.state(pod.ip, token))
            except (AdminError, ValidationError) as error:
                level = logging.WARNING if pod.is_ready else logging.DEBUG
                logger.log(level, "pod %s does not say what it has: %s", pod.name, error)
                return ObservedPod(pod, None)

    async def execute(self, changes: Sequence[PodChange], token: str, *, fence: int) -> bool:
        """Tell each pod its change; return whether all took it."""
        return all(await asyncio.gather(*(self._tell(change, token, fence) for change in changes)))

    async def _tell(self, change: PodChange, token: str, fence: int) -> bool:
        pod = change.pod.pod
        assert pod.ip is not None
        logger.info("pod %s: %s", pod.name, change.why)
        removals = change.removals or (None,)
        async with self._slots:
            for index, removal in enumerate(removals):
                write = admin.CatalogueWrite(
                    fence=fence,
                    generation=next(self._generations),
                    adapters=list(change.entries) if index == 0 else [],
                    removed=list(removal.revisions) if removal is not None else [],
                    drain_timeout_seconds=removal.drain_timeout_seconds if removal is not None else 60.0,
                )
                try:
                    await self._client.write(pod.ip, token, write)
                except AdminError as error:
                    logger.warning("pod %s did not take its catalogue: %s", pod.name, error)
                    return False
        return True
