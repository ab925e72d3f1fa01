"""The admin port: what the pod has, what it should have, for the operator and for people. Every error is an AdminError."""

import hashlib
import hmac
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lorafleet_contract import admin
from lorafleet_contract.base import Wire
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.catalogue import Contradiction, NotOwned, StaleWrite
from lorafleet_inference.adapters.journal import Difference
from lorafleet_inference.errors import AdapterError, EngineNotReady
from lorafleet_inference.server.ask import PATH as ASK_PATH
from lorafleet_inference.server.ask import ask_endpoint
from lorafleet_inference.server.methods import allow
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.routes import After, Since, WaitSeconds
from lorafleet_inference.server.state import Phase
from lorafleet_inference.server.vllm_lora import vllm_lora_router

_STATUS = {Reason.SOURCE_NOT_ALLOWED: 403, Reason.NOT_FOUND: 404, Reason.BAD_REQUEST: 400, Reason.NAME_CONFLICT: 409}
"""HTTP status of a reason; retryable ones are 503, others 422."""
DrainSeconds = Annotated[float, Query(gt=0, le=3600)]


def admin_app(pod: Pod, token_hash: bytes | None) -> FastAPI:
    """Return the app of the admin port; `token_hash` is the SHA-256 of its bearer token; None: nobody is asked for one."""
    app = FastAPI(title="lorafleet admin", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_state(app, pod)
    _add_names(app, pod)
    app.router.routes.append(Route(ASK_PATH, ask_endpoint(pod), methods=["POST"]))
    if pod.config.vllm_lora_routes:
        app.include_router(vllm_lora_router(pod))
    _add_error_shapes(app, pod)
    if token_hash is not None:
        app.add_middleware(TokenGate, token_hash=token_hash)
    return app


def state_of(pod: Pod, since: int | None = None) -> admin.PodState:
    """Return the state document as it is now; where it can be told as a difference to generation `since`, as that.

    Raises:
        EngineNotReady: the base model is not loaded yet.
    """
    difference = pod.manager.shown.states_since(since)
    state = _state_of(pod, difference)
    if difference is None:
        return state
    gone = [admin.RevisionRef(name=key.name, revision=key.revision) for key in difference.gone]
    return admin.PodDifference(**dict(state), since=difference.since, removed=gone)


def _state_of(pod: Pod, difference: Difference | None) -> admin.PodState:
    manager, ready, stats = pod.manager, pod.manager.engine_ready, pod.engine.stats
    facts, budgets, layout = ready.facts, ready.budgets, manager.row_layout
    used = stats.used_rank_pages if stats is not None else 0
    return admin.PodState(
        boot_id=manager.boot_id,
        generation=manager.changes.number,
        fence=manager.catalogue.fence,
        catalogue_generation=manager.catalogue.generation,
        ready=manager.ready and pod.state.phase is Phase.SERVING,
        draining=pod.state.is_leaving,
        base=admin.BaseFacts(
            served_name=pod.config.served_name,
            max_model_len=facts.max_model_len,
            dtype=facts.dtype,
            device=facts.device,
        ),
        budgets=admin.Budgets(
            max_resident_adapters=budgets.max_resident_adapters,
            max_rank=budgets.max_rank,
            rank_page=1,
            total_rank_pages=budgets.total_rank_pages * layout.page // layout.rank_elements,
            used_rank_pages=-(-used * layout.page // layout.rank_elements),
            memory_pages=budgets.total_rank_pages,
            used_memory_pages=used,
            host_cache_bytes=budgets.host_cache_bytes,
            host_used_bytes=stats.host_used_bytes if stats is not None else 0,
            disk_cache_bytes=manager.cache.max_bytes,
            disk_used_bytes=manager.cache.used_bytes,
        ),
        adapters=manager.shown.observed(difference),
        local_failures=manager.local_failures,
    )


def load_of(pod: Pod) -> admin.PodLoad:
    """Return what the pod has to do now."""
    stats = pod.engine.stats
    return admin.PodLoad(
        boot_id=pod.manager.boot_id,
        num_running=stats.num_running if stats is not None else 0,
        num_waiting=stats.num_waiting if stats is not None else 0,
        num_requests=pod.state.num_begun,
    )


def _add_state(app: FastAPI, pod: Pod) -> None:
    @app.get("/admin/v1/state")
    async def state(
        after: After = None, boot_id: str = "", wait_seconds: WaitSeconds = 0.0, since: Since = None
    ) -> Response:
        manager = pod.manager
        _ = manager.engine_ready  # before the base is loaded there is nothing to wait for
        await manager.changes.wait(after, wait_seconds)
        if boot_id == manager.boot_id and after == manager.changes.number:
            return Response(status_code=304)
        return _answer(state_of(pod, since if boot_id == manager.boot_id else None))

    @app.get("/admin/v1/load")
    async def load() -> Response:
        _ = pod.manager.engine_ready
        return _answer(load_of(pod))

    @app.put("/admin/v1/adapters")
    async def write(body: admin.CatalogueWrite, boot_id: str = "", since: Since = None) -> Response:
        _ = pod.manager.engine_ready
        pod.manager.write(body)
        return _answer(state_of(pod, since if boot_id == pod.manager.boot_id else None))

    @app.post("/admin/v1/resolve")
    async def resolve(body: admin.ResolveRequest) -> Response:
        return _answer(admin.ResolveAnswer(resolved=await pod.manager.resolve(body.source, body.expected_digest)))

    @app.post("/admin/v1/drain")
    async def drain(body: admin.DrainRequest) -> Response:
        await pod.state.drain(grace_seconds=pod.config.drain_grace_seconds, timeout_seconds=body.timeout_seconds)
        return _answer(admin.DrainAnswer(num_in_flight=pod.state.num_in_flight))


def _add_names(app: FastAPI, pod: Pod) -> None:
    @app.put("/admin/v1/adapters/{name:path}")
    async def put(name: admin.ServedName, body: admin.AdapterPut) -> Response:
        return _answer(await pod.manager.put_local(name, body.source, pinned=body.pinned))

    @app.get("/admin/v1/adapters/{name:path}")
    async def get(name: str) -> Response:
        found = [one for one in pod.manager.shown.observed() if one.name == name]
        failures = [one for one in pod.manager.local_failures if one.name == name]
        if not found and not failures:
            raise _unknown(name)
        failure = failures[0] if failures else None
        sources = pod.manager.sources(name)
        return _answer(admin.AdapterAnswer(revisions=found, sources=sources, local_failure=failure))

    @app.delete("/admin/v1/adapters/{name:path}")
    async def delete(name: str, drain_timeout_seconds: DrainSeconds = 60.0) -> Response:
        if not await pod.manager.remove_local(name, drain_seconds=drain_timeout_seconds):
            raise _unknown(name)
        return Response(status_code=204)


def _unknown(name: str) -> AdapterError:
    return AdapterError(Reason.NOT_FOUND, f"no adapter {name!r}")


class TokenGate:
    """ASGI middleware: whatever is asked without the bearer token is answered 401."""

    def __init__(self, app: ASGIApp, *, token_hash: bytes) -> None:
        self._app = app
        self._token_hash = token_hash

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            await self._app(scope, receive, send)
            return
        refused = _error(Reason.UNAUTHORIZED, "a bearer token is needed, and this is not it", 401)
        refused.headers["www-authenticate"] = "Bearer"
        await refused(scope, receive, send)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self._token_hash)


def _answer(body: Wire, status: int = 200) -> Response:
    return Response(body.model_dump_json(by_alias=True), status, media_type="application/json")


def _error(reason: Reason, message: str, status: int, *, retryable: bool = False) -> Response:
    return _answer(admin.AdminError(reason=reason, message=message, retryable=retryable), status)


def _add_error_shapes(app: FastAPI, pod: Pod) -> None:
    @app.exception_handler(AdapterError)
    async def adapter_error(_: Request, error: AdapterError) -> Response:
        status = _STATUS.get(error.reason, 503 if error.retryable else 422)
        return _error(error.reason, error.message, status, retryable=error.retryable)

    @app.exception_handler(StaleWrite)
    async def stale(_: Request, error: StaleWrite) -> Response:
        return _error(Reason.STALE_FENCE, str(error), 409)

    @app.exception_handler(NotOwned)
    async def not_owned(_: Request, error: NotOwned) -> Response:
        return _error(Reason.NOT_OWNED, str(error), 409)

    @app.exception_handler(Contradiction)
    async def contradiction(_: Request, error: Contradiction) -> Response:
        return _error(Reason.BAD_REQUEST, str(error), 400)

    @app.exception_handler(EngineNotReady)
    async def not_ready(_: Request, error: EngineNotReady) -> Response:
        refused = admin.AdminError(
            reason=Reason.PENDING, message=error.message, retryable=True, start=pod.start_progress
        )
        return _answer(refused, 503)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _error(Reason.BAD_REQUEST, f"{where}: {first['msg']}", 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        reason = Reason.NOT_FOUND if error.status_code == 404 else Reason.BAD_REQUEST
        answer = _error(reason, f"{request.method} {request.url.path}: {error.detail}", error.status_code)
        if error.status_code == 405:
            answer.headers.update(allow(request))
        return answer

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return _error(Reason.LOAD_FAILED, "the pod failed on this request; its log says why", 500, retryable=True)
