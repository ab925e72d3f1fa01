"""What gateways counted, over HTTP: an answer becomes a typed document or a typed error, nothing else."""

import math
from typing import Final

import aiohttp
from pydantic import ValidationError

from lorafleet_contract.evidence import Evidence
from lorafleet_operator.errors import GatewaySilent

PATH: Final = "/v1/evidence"
CONNECT_SECONDS: Final = 2.0
WAIT_SECONDS: Final = 4.0
"""How long a gateway that has counted nothing may keep its answer back."""
ANSWER_SECONDS: Final = 3.0
"""How long an answer may take beyond that."""
MAX_ANSWER_BYTES: Final = 8 * 2**20
"""Twice what the rows of a gateway can come to: one that says more fills the memory that all bases share."""
MAX_ROWS: Final = 4_000
"""Twice as many as a gateway counts apart."""
MAX_BOUNDS: Final = 100
MAX_SUM_SECONDS: Final = 1e12
"""Of all answers of a revision: ten thousand at a time for three years."""
NUM_CHUNK_BYTES: Final = 64 * 2**10


class GatewayClient:
    """Requests to the metrics port of gateways; owns its connections."""

    def __init__(self, *, port: int) -> None:
        # a body stays as it was sent: what unpacks to more than it weighs is nothing that a gateway sends
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False)
        self._port = port

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def evidence(self, ip: str, known: tuple[str, int] | None = None) -> Evidence:
        """Return what a gateway has counted.

        Args:
            ip: of its pod.
            known: boot id and sequence of an answer that is known. Rows that have not changed since are left out then, and
                the answer may be waited for until something has.

        Raises:
            GatewaySilent: no answer, or none that makes sense.
        """
        host = f"[{ip}]" if ":" in ip else ip
        query = {}
        if known is not None:
            query = {"boot_id": known[0], "after": str(known[1]), "wait_seconds": f"{WAIT_SECONDS:.0f}"}
        try:
            async with self._session.get(
                f"http://{host}:{self._port}{PATH}",
                params=query,
                headers={"accept-encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS + ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise GatewaySilent(f"it answers {response.status}")
                return _document(await _bounded(response))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise GatewaySilent(f"{type(error).__name__} {error}".strip()) from error


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in response.content.iter_chunked(NUM_CHUNK_BYTES):
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise GatewaySilent(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(raw)


def _document(raw: bytes) -> Evidence:
    """Read an answer.

    Raises:
        GatewaySilent: it is no Evidence, or one that no gateway sends.
    """
    try:
        document = Evidence.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise GatewaySilent(f"its answer is no evidence: {where}: {first['msg']}") from error
    if (num_held := len(document.held or ())) > MAX_ROWS:
        raise GatewaySilent(f"its answer is no evidence: {num_held} bases, and at most {MAX_ROWS} make sense")
    bounds = document.bounds_seconds
    if len(document.revisions) > MAX_ROWS:
        raise GatewaySilent(
            f"its answer is no evidence: {len(document.revisions)} rows, and at most {MAX_ROWS} make sense"
        )
    if len(bounds) > MAX_BOUNDS or not all(map(math.isfinite, bounds)) or bounds != sorted(set(bounds)):
        raise GatewaySilent("its answer is no evidence: boundsSeconds: not a rising row of numbers")
    for index, row in enumerate(document.revisions):
        if len(row.first_byte.buckets) != len(bounds) + 1:
            raise GatewaySilent(
                f"its answer is no evidence: revisions.{index}.firstByte.buckets: not one a bound and one more"
            )
        counters = (row.num_requests, row.num_fallbacks, *row.errors.values(), *row.first_byte.buckets)
        has_sum = 0 <= row.first_byte.sum_seconds <= MAX_SUM_SECONDS
        if min(counters) < 0 or sum(row.errors.values()) > row.num_requests or not has_sum:
            raise GatewaySilent(f"its answer is no evidence: revisions.{index}: counters that do not fit together")
    return document
