"""The port: which path is answered by what, errors in OpenAI's shape."""

import logging
import socket
from collections.abc import Mapping
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from multidict import CIMultiDict, CIMultiDictProxy

from lorafleet_common.keys.guard import Caller, Guard
from lorafleet_common.sockets import BACKLOG
from lorafleet_common.tracing import OFF, Tracing
from lorafleet_common.web_ports import LimitedProtocol, LimitedServer, Limits
from lorafleet_contract.lorax import ADAPTER_PATHS, COMPATIBLE, INFO
from lorafleet_contract.openai import OPENAPI
from lorafleet_gateway import metrics
from lorafleet_gateway.cluster.cluster import Cluster
from lorafleet_gateway.config import GatewayConfig
from lorafleet_gateway.errors import (
    HeadTimeout,
    HeadTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    RequestError,
    TooManyConnections,
)
from lorafleet_gateway.front.accounts import TOKEN_PATHS
from lorafleet_gateway.front.answers import error_body, error_response, json_bytes, json_response
from lorafleet_gateway.front.evidence import Ledger
from lorafleet_gateway.front.headers import REQUEST_ID, request_id_of
from lorafleet_gateway.front.holding import Holding
from lorafleet_gateway.front.keys import Handler, KeyedHandler, KeyGate
from lorafleet_gateway.front.models import described
from lorafleet_gateway.front.openapi import openapi_json
from lorafleet_gateway.front.proxy import Proxy
from lorafleet_gateway.front.state import Phase, State
from lorafleet_gateway.front.upstream import Upstream

logger = logging.getLogger(__name__)
MAX_LINE_BYTES: Final = 32 << 10
"""Of the request line and of each header: proxies add large tokens and cookies."""
MAX_MESSAGE: Final = 300
KEEP_ALIVE_SECONDS: Final = 75.0
"""Longer than what proxies and clients keep idle connections, so that it is not us who closes one in use."""
PROXIED_PATHS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", *TOKEN_PATHS, *ADAPTER_PATHS}
)
MODELS_PATH: Final = "/v1/models"
MODEL_PATH: Final = f"{MODELS_PATH}/{{name}}"

_REFUSALS: Final[Mapping[HTTPStatus, type[RequestError]]] = {
    HTTPStatus.REQUEST_TIMEOUT: HeadTimeout,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: HeadTooLarge,
    HTTPStatus.SERVICE_UNAVAILABLE: TooManyConnections,
}


class FrontDoor:
    """Answers every request of the port."""

    def __init__(
        self,
        config: GatewayConfig,
        cluster: Cluster,
        upstream: Upstream,
        state: State,
        guard: Guard | None = None,
        *,
        tracing: Tracing = OFF,
    ) -> None:
        """`guard`: who asks for keys; None: nobody does. `tracing`: where spans go."""
        self._cluster = cluster
        self._state = state
        self.evidence = Ledger()
        self.holding = Holding(cluster.fleet, self.evidence.advance)
        self.evidence.held = self.holding.rows
        self._proxy = Proxy(config, cluster, upstream, state, self.evidence, holding=self.holding, tracing=tracing)
        self._routes: dict[str, dict[str, KeyedHandler]] = {
            "/health": _reads(self._health),
            "/ready": _reads(self._ready),
            MODELS_PATH: _reads(self._models),
            "/ping": _reads(self._ping),
            "/version": _reads(self._version),
            OPENAPI: _reads(self._openapi),
            **{path: {"POST": self._proxy.handle} for path in PROXIED_PATHS},
            COMPATIBLE: {"POST": self._proxy.handle, **_reads(self._health)},
            INFO: {"GET": self._proxy.handle},
        }
        """Path -> method -> who answers; beside them there is `/v1/models/{name}`."""
        guard = guard or Guard(None, metrics.KEYS)
        self._gate = KeyGate(guard, self._answer)
        self._document = openapi_json(asks_for_keys=guard.asks)

    @property
    def routes(self) -> frozenset[tuple[str, str]]:
        """Methods and paths that are answered."""
        model = ((method, MODEL_PATH) for method in ("GET", "HEAD"))
        return frozenset([*model, *((method, path) for path, methods in self._routes.items() for method in methods)])

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        return await self._gate.handle(request)

    async def _answer(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        try:
            response = await self._handler(request)(request, caller)
            if not response.prepared:
                response.headers.setdefault(REQUEST_ID, request_id_of(request.headers))
            return response
        except RequestError as error:
            return error_response(error, request_id=request_id_of(request.headers))
        except ConnectionError:
            raise  # the client left
        except Exception:
            logger.exception("a request failed unexpectedly")
            if request.writer.output_size and request.transport is not None:
                request.transport.abort()  # a half answer must not look whole
            failure = RequestError("the gateway failed on this request")
            return error_response(failure, request_id=request_id_of(request.headers))

    def not_ready_reason(self) -> str | None:
        """Return why /ready answers 503; None where it answers 200."""
        if self._state.phase is not Phase.SERVING:
            return f"the gateway is {self._state.phase}"
        return self._cluster.unready_reason()

    def _handler(self, request: web.BaseRequest) -> KeyedHandler:
        path = request.path
        is_model = path.startswith(f"{MODELS_PATH}/")
        methods = _reads(self._model) if is_model else self._routes.get(path)
        if methods is None:
            raise NotFound(f"there is nothing at {path}")
        if request.method not in methods:
            raise MethodNotAllowed(f"{path} does not take {request.method}", allowed=", ".join(methods))
        return methods[request.method]

    async def _health(self, _: web.BaseRequest, __: Caller) -> web.Response:
        return json_response({"status": "ok", "reason": ""})

    async def _ping(self, _: web.BaseRequest, __: Caller) -> web.Response:
        return web.Response()

    async def _version(self, _: web.BaseRequest, __: Caller) -> web.Response:
        return json_response({"version": metadata.version("lorafleet-gateway")})

    async def _openapi(self, _: web.BaseRequest, __: Caller) -> web.Response:
        return json_bytes(self._document, status=200, headers={})

    async def _ready(self, _: web.BaseRequest, __: Caller) -> web.Response:
        reason = self.not_ready_reason()
        metrics.READY.set(reason is None)
        if reason is None:
            return json_response({"status": "ready", "reason": ""})
        return json_response({"status": "not ready", "reason": reason}, status=503, headers={"retry-after": "1"})

    async def _models(self, _: web.BaseRequest, caller: Caller) -> web.Response:
        models = [one for one in self._cluster.directory.models() if one.name and caller.may_use(one.name)]
        return json_response({"object": "list", "data": described(models, self._cluster)})

    async def _model(self, request: web.BaseRequest, caller: Caller) -> web.Response:
        name = request.path.removeprefix(f"{MODELS_PATH}/")
        if not caller.may_use(name):
            raise ModelNotFound(f"the model {name!r} does not exist", param="model")
        model = self._cluster.directory.model(name)
        if model is None:
            await self._cluster.target(name)  # says why not, having looked it up
            model = self._cluster.directory.model(name)
        if model is None:
            raise ModelNotFound(f"the model {name!r} does not exist", param="model")
        return json_response(described([model], self._cluster)[0])


def _reads(handler: KeyedHandler) -> dict[str, KeyedHandler]:
    return {"GET": handler, "HEAD": handler}


class _Protocol(LimitedProtocol):
    """One connection, whose requests that cannot be parsed are answered like all others."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return the answer for what the parser refused."""
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer was sent")
        error: RequestError
        if isinstance(exc, LineTooLong):
            error = HeadTooLarge(f"the request line or a header has more than {MAX_LINE_BYTES} bytes")
        elif status < 500:
            error = InvalidRequest(f"this is no HTTP request: {message or exc or 'it cannot be read'}"[:MAX_MESSAGE])
        else:
            logger.error("a connection failed unexpectedly", exc_info=exc)
            error = RequestError("the gateway failed on this request")
        response = error_response(error, request_id=request_id_of(CIMultiDictProxy(CIMultiDict())))
        response.force_close()
        return response


class _Server(LimitedServer):
    """Makes our protocol for each connection."""

    protocol = _Protocol

    def refusal(self, status: HTTPStatus, message: str) -> tuple[str, bytes]:
        """Return type and body of the answer to a client that is refused before it has sent a request."""
        error = _REFUSALS[status](message)
        return "application/json", error_body(error)


async def open_port(handler: Handler, listener: socket.socket, limits: Limits) -> web.ServerRunner:
    """Begin to answer; `cleanup` of what is returned cuts what still runs."""
    options: dict[str, Any] = {
        "access_log": None,
        "keepalive_timeout": KEEP_ALIVE_SECONDS,
        "auto_decompress": False,
        "max_line_size": MAX_LINE_BYTES,
        "max_field_size": MAX_LINE_BYTES,
    }
    server = _Server(handler, limits, lambda reason: metrics.CONNECTIONS_ENDED.of(reason).inc(), **options)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    return runner
