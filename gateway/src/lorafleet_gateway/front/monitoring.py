"""The monitoring port: metrics and evidence name adapters of all namespaces, so applications do not get them on theirs."""

from typing import Final, TypeVar

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from lorafleet_gateway import metrics
from lorafleet_gateway.errors import InvalidRequest, MethodNotAllowed, NotFound, RequestError
from lorafleet_gateway.front.answers import SERVER, error_response, json_bytes
from lorafleet_gateway.front.headers import request_id_of
from lorafleet_gateway.front.keys import Handler
from lorafleet_gateway.front.server import FrontDoor

METRICS_PATH: Final = "/metrics"
EVIDENCE_PATH: Final = "/v1/evidence"
MAX_WAIT_SECONDS: Final = 60.0
NumberT = TypeVar("NumberT", int, float)


class Monitoring:
    """Answers every request of the port: `/metrics` and `/v1/evidence`."""

    def __init__(self, door: FrontDoor) -> None:
        self._door = door
        self._reads: dict[str, Handler] = {METRICS_PATH: self._metrics, EVIDENCE_PATH: self._evidence}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            read = self._reads.get(request.path)
            if read is None:
                raise NotFound(f"there is nothing at {request.path}")
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(f"{request.path} does not take {request.method}", allowed="GET, HEAD")
            return await read(request)
        except RequestError as error:
            return error_response(error, request_id=request_id_of(request.headers))

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        metrics.READY.set(self._door.not_ready_reason() is None)
        headers = {"content-type": CONTENT_TYPE_LATEST, "server": SERVER}
        return web.Response(body=generate_latest(metrics.REGISTRY), headers=headers)

    async def _evidence(self, request: web.BaseRequest) -> web.Response:
        after = _number(request, "after", int, maximum=1 << 62)
        wait_seconds = _number(request, "wait_seconds", float, maximum=MAX_WAIT_SECONDS)
        boot_id = request.query.get("boot_id", "")
        ledger = self._door.evidence
        await ledger.wait(after, boot_id, wait_seconds)
        document = ledger.read(after, boot_id).model_dump_json(by_alias=True)
        return json_bytes(document.encode(), status=200, headers={"cache-control": "no-store"})


def _number(request: web.BaseRequest, name: str, kind: type[NumberT], *, maximum: NumberT) -> NumberT:
    """Return a number of the query; 0 where it is not given.

    Raises:
        InvalidRequest: it is none, or not between 0 and `maximum`.
    """
    text = request.query.get(name, "0")
    try:
        value = kind(text)
    except ValueError:
        raise InvalidRequest(f"{name}: {text[:40]!r} is no number", param=name) from None
    if not 0 <= value <= maximum:
        raise InvalidRequest(f"{name}: {text[:40]} is not between 0 and {maximum:g}", param=name)
    return value
