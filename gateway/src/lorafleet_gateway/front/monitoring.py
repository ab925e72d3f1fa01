"""The port of whoever watches the gateway: applications that send requests do not see who else does."""

from typing import Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from lorafleet_gateway import metrics
from lorafleet_gateway.errors import MethodNotAllowed, NotFound, RequestError
from lorafleet_gateway.front.answers import SERVER, error_response
from lorafleet_gateway.front.headers import request_id_of
from lorafleet_gateway.front.server import FrontDoor

METRICS_PATH: Final = "/metrics"


class Monitoring:
    """Answers every request of the port: `/metrics`."""

    def __init__(self, door: FrontDoor) -> None:
        self._door = door

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            if request.path != METRICS_PATH:
                raise NotFound(f"there is nothing at {request.path}")
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(f"{METRICS_PATH} does not take {request.method}", allowed="GET, HEAD")
        except RequestError as error:
            return error_response(error, request_id=request_id_of(request.headers))
        metrics.READY.set(self._door.not_ready_reason() is None)
        headers = {"content-type": CONTENT_TYPE_LATEST, "server": SERVER}
        return web.Response(body=generate_latest(metrics.REGISTRY), headers=headers)
