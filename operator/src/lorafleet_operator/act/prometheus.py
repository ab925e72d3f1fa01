"""The Prometheus that the operator was installed with, asked for what judges a rollout.

Where it is says the installation and nobody else: who may declare adapters may ask it, and have nothing else asked.
"""

import asyncio
import json
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import aiohttp

from lorafleet_common.clock import monotonic
from lorafleet_common.supervise import end
from lorafleet_operator.decide.measured import MAX_PROBLEM, Reading, reading_of

PATH: Final = "/api/v1/query"
QUERY_SECONDS: Final = 10.0
FRESH_SECONDS: Final = 15.0
"""Answers of a window that goes on are asked for anew after this."""
MAX_ANSWER_BYTES: Final = 64 * 2**10
MAX_PARALLEL: Final = 8


@dataclass(slots=True)
class _Asked:
    since: datetime
    queries: Mapping[str, str]
    task: asyncio.Task[None] | None = None
    answered_at: float | None = None
    readings: Mapping[str, Reading] | None = None


class Prometheus:
    """Asks in the background; owns its connections."""

    def __init__(
        self,
        url: str,
        *,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        query_seconds: float = QUERY_SECONDS,
    ) -> None:
        """Ask nothing yet.

        Args:
            url: base URL; empty: there is none, and every query says so.
            token_file: with a bearer token, read anew for each query.
            ca_file: certificates of authorities to be trusted; None: those of the system.
            query_seconds: how long an answer may take; Prometheus is told to give up by then.
        """
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._ca_file = ca_file
        self._query_seconds = query_seconds
        self._asked: dict[str, _Asked] = {}
        self._places = asyncio.Semaphore(MAX_PARALLEL)
        self._session: aiohttp.ClientSession | None = None

    def readings(self, uid: str, since: datetime, queries: Mapping[str, str]) -> Mapping[str, Reading] | None:
        """Return what the queries of an adapter's window say; None while they are asked. `since` tells windows apart."""
        asked = self._asked.get(uid)
        if asked is None or asked.since != since or asked.queries.keys() != queries.keys():
            self._stop(asked)
            asked = self._asked[uid] = _Asked(since, queries)
        is_fresh = asked.answered_at is not None and monotonic() - asked.answered_at < FRESH_SECONDS
        if is_fresh:
            return asked.readings
        if asked.task is None:
            asked.queries = queries
            asked.task = asyncio.create_task(self._ask(asked))
        return None

    def keep(self, uids: Collection[str], of: Collection[str]) -> None:
        """Forget the queries of adapters `of` a base that are not judged any more."""
        for uid in set(of) - set(uids):
            self._stop(self._asked.pop(uid, None))

    async def close(self) -> None:
        """End what is asked, and close the connections."""
        await end([asked.task for asked in self._asked.values() if asked.task is not None])
        self._asked.clear()
        if self._session is not None:
            await self._session.close()

    def _stop(self, asked: _Asked | None) -> None:
        if asked is not None and asked.task is not None:
            asked.task.cancel()

    async def _ask(self, asked: _Asked) -> None:
        try:
            # side by side: one that hangs does not keep back what the others say
            answers = await asyncio.gather(*map(self._reading, asked.queries.values()))
            asked.readings = dict(zip(asked.queries, answers, strict=True))
            asked.answered_at = monotonic()
        finally:
            asked.task = None

    async def _reading(self, query: str) -> Reading:
        if not self._url:
            return _unknown("the operator was installed without a Prometheus (operator.prometheus.url of the chart)")
        try:
            token = self._token_file.read_text("ascii").strip() if self._token_file is not None else ""
        except (OSError, ValueError) as error:
            return _unknown(f"the token for Prometheus cannot be read: {type(error).__name__}")
        try:
            async with self._places:
                raw = await self._answer(query, token)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return _unknown(f"Prometheus does not answer: {type(error).__name__} {error}")
        try:
            return reading_of(json.loads(raw))
        except (ValueError, RecursionError):
            return _unknown("its answer is no Prometheus's")

    async def _answer(self, query: str, token: str) -> bytes:
        async with self._connected().post(
            f"{self._url}{PATH}",
            data={"query": query, "timeout": f"{self._query_seconds:g}s"},
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {token}"} if token else {}),
            timeout=aiohttp.ClientTimeout(total=self._query_seconds),
            allow_redirects=False,
        ) as response:
            # Prometheus says what is wrong with a query in the same form, as 400 or 422
            if response.status not in (200, 400, 422, 503):
                raise aiohttp.ClientError(f"it answers {response.status}")
            raw = bytearray()
            async for chunk in response.content.iter_chunked(MAX_ANSWER_BYTES):
                raw += chunk
                if len(raw) > MAX_ANSWER_BYTES:
                    raise aiohttp.ClientError(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
            return bytes(raw)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls = ssl.create_default_context(cafile=self._ca_file)
            connector = aiohttp.TCPConnector(ssl=tls, limit=MAX_PARALLEL)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False)
        return self._session


def _unknown(problem: str) -> Reading:
    return Reading(None, problem.strip()[:MAX_PROBLEM])
