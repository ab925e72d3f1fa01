"""The public port: OpenAI's and LoRAX's routes, health, metrics, and the routes document for gateways."""

import asyncio
import json
from functools import cache
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from lorafleet_common.keys.guard import Caller
from lorafleet_contract.lorax import INFO
from lorafleet_contract.openai import OPENAPI, ErrorCode
from lorafleet_inference import metrics
from lorafleet_inference.errors import InvalidValue, ModelNotFound, RequestError
from lorafleet_inference.server.answering import Answering
from lorafleet_inference.server.bodies import BodyRoom
from lorafleet_inference.server.chat import Chat
from lorafleet_inference.server.completions import Completions
from lorafleet_inference.server.embeddings import Embeddings, LoraxForm, OpenAIForm
from lorafleet_inference.server.fields import FieldPolicy
from lorafleet_inference.server.http import Endpoint, error_body, error_response, json_response
from lorafleet_inference.server.keys import KeyGate, caller_of, check_model
from lorafleet_inference.server.lorax import Compatible, Generate, GenerateStream, lorax_error
from lorafleet_inference.server.lorax_reads import TokenizeForms, info_of
from lorafleet_inference.server.methods import allow
from lorafleet_inference.server.middleware import AnswerHeaders
from lorafleet_inference.server.openapi.build import document
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.responses import Responses
from lorafleet_inference.server.routes import routes_router
from lorafleet_inference.server.state import Phase
from lorafleet_inference.server.surface import Surface
from lorafleet_inference.server.tokens import Tokens
from lorafleet_inference.server.wire import Health, Model, ModelList, Version

SURFACES: tuple[type[Surface[Any]], ...] = (Chat, Completions, Responses)
"""Routes that generate, for the reference page."""

NUM_LARGEST_BODIES = 4
"""So many bodies of --max-body may be in memory at the same time."""


def public_app(pod: Pod) -> FastAPI:
    """Return the app of the public port."""
    app = FastAPI(title="lorafleet", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    policy = FieldPolicy(ignore_unknown=pod.config.unknown_fields == "ignore")
    chat, completions = Chat(pod.config, policy), Completions(policy)
    tokens = Tokens(pod, chat, completions, policy)
    handlers = {
        Chat.path: Answering(pod, chat).handle,
        Completions.path: Answering(pod, completions).handle,
        Responses.path: Answering(pod, Responses(chat, policy)).handle,
        OpenAIForm.path: Embeddings(pod, OpenAIForm(policy)).handle,
        "/tokenize": TokenizeForms(pod, tokens, policy).handle,
        "/detokenize": tokens.detokenize,
    }
    limit = pod.config.max_body_bytes
    room = BodyRoom(NUM_LARGEST_BODIES * limit)
    app.router.routes.extend(
        Route(path, Endpoint(handler, max_body_bytes=limit, room=room), methods=["POST"])
        for path, handler in handlers.items()
    )
    base, ad_hoc = pod.config.served_name, pod.config.ad_hoc_adapters == "sources"
    lorax_handlers = {
        **{
            one.path: Answering(pod, one(base, policy, ad_hoc=ad_hoc)).handle
            for one in (Compatible, Generate, GenerateStream)
        },
        LoraxForm.path: Embeddings(pod, LoraxForm(base, policy, ad_hoc=ad_hoc)).handle,
    }
    for path, handler in lorax_handlers.items():
        endpoint = Endpoint(handler, max_body_bytes=limit, room=room, error_shape=lorax_error)
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))
    _add_reads(app, pod)
    app.include_router(routes_router(pod))
    _add_error_shapes(app)
    app.add_middleware(KeyGate, guard=pod.guard, lorax_shape=lorax_error)
    app.add_middleware(AnswerHeaders, pod_name=pod.config.pod_name, tracing=pod.tracing)
    return app


def not_ready_reason(pod: Pod) -> str | None:
    """Return why /ready answers 503, None where it answers 200."""
    if pod.state.phase is not Phase.SERVING:
        so_far = f": {start.words}" if (start := pod.start_progress) is not None else ""
        return pod.state.failure or f"the pod is {pod.state.phase}{so_far}"
    return None if pod.manager.ready else pod.manager.ready_reason


def _add_reads(app: FastAPI, pod: Pod) -> None:
    @app.get("/")
    @app.get("/health")
    async def health() -> Response:
        if pod.state.phase is Phase.FAILED:
            return json_response(Health("failed", pod.state.failure), status=503)
        return json_response(Health("ok"))

    @app.api_route("/ping", methods=["GET", "POST"])
    async def ping() -> Response:
        failed = pod.state.phase is Phase.FAILED
        return Response(status_code=503 if failed else 200)

    @app.get(OPENAPI)
    async def described() -> Response:
        return Response(await asyncio.to_thread(_openapi_json, pod.guard.asks), media_type="application/json")

    @app.get("/version")
    async def version() -> Response:
        return json_response(Version(metadata.version("lorafleet-inference")))

    @app.get(INFO)
    async def info(request: Request) -> Response:
        try:
            check_model(request.scope, pod.config.served_name)
            return json_response(info_of(pod))
        except RequestError as error:
            return error_response(error, shape=lorax_error)

    @app.get("/ready")
    async def ready() -> Response:
        reason = not_ready_reason(pod)
        metrics.READY.of().set(reason is None)
        if reason is None:
            return json_response(Health("ready"))
        return json_response(Health("not ready", reason), status=503, headers={"retry-after": "2"})

    @app.get("/metrics")
    async def metrics_text() -> Response:
        metrics.READY.of().set(not_ready_reason(pod) is None)
        metrics.DISK_USED.of().set(pod.manager.cache.used_bytes)
        metrics.DISK_BYTES.of().set(pod.manager.cache.max_bytes)
        return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return json_response(ModelList(_models(pod, caller_of(request.scope))))

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        for entry in _models(pod, caller_of(request.scope)):
            if entry.id == name:
                return json_response(entry)
        raise ModelNotFound(f"no model {name!r}", param="model")


@cache
def _openapi_json(asks_for_keys: bool) -> bytes:
    return json.dumps(document(asks_for_keys=asks_for_keys)).encode()


def _models(pod: Pod, caller: Caller) -> list[Model]:
    """Return what answers here and this caller may name."""
    max_model_len = pod.facts.max_model_len
    return [
        Model(
            entry.id,
            int(entry.created),
            entry.root,
            entry.parent,
            entry.revision,
            max_model_len,
            entry.invocation_tokens,
        )
        for entry in pod.manager.models()
        if caller.may_use(entry.id)
    ]


def _add_error_shapes(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return error_response(InvalidValue(f"{field}: {first['msg']}", param=field))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            message = f"there is nothing at {request.url.path}"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}"
        else:
            message = str(error.detail)
        body = error_body(message, status=error.status_code, code=None)
        headers = allow(request) if error.status_code == 405 else error.headers
        return Response(body, error.status_code, headers, media_type="application/json")

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        body = error_body("the server failed on this request", status=500, code=ErrorCode.INTERNAL_ERROR.value)
        return Response(body, 500, media_type="application/json")
