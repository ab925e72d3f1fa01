"""Asks for keys at the public port: who sends a request, and what is answered where a key is not enough."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorafleet_common.keys import errors as refusals
from lorafleet_common.keys.guard import Caller, Grant, Guard
from lorafleet_contract.lorax import ADAPTER_PATHS, COMPATIBLE, INFO
from lorafleet_contract.openai import OPENAPI
from lorafleet_inference.errors import ModelForbidden, RateLimited, RequestError, Unauthorized
from lorafleet_inference.server.generation import Generation
from lorafleet_inference.server.http import ErrorShape, error_response, openai_error

CLIENT_LEFT: Final = 499
OPEN_PATHS: Final = frozenset({"/health", "/ready", "/ping", "/version", "/metrics", "/v1/routes", OPENAPI})
"""Nobody is asked for a key there: probes, Prometheus and gateways have none, and the document says how a key is sent."""
_GRANT: Final = "lorafleet.grant"
_CALLER: Final = "lorafleet.caller"


class KeyGate:
    """ASGI middleware that lets through whom the guard knows, and counts what they were answered."""

    def __init__(self, app: ASGIApp, *, guard: Guard, lorax_shape: ErrorShape) -> None:
        self._app = app
        self._guard = guard
        self._lorax_shape = lorax_shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http", "the server takes no other"
        if not self._guard.asks or _is_open(scope):
            await self._serve(self._guard.anybody, scope, receive, send)
            return
        status, name = CLIENT_LEFT, ""

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with as_errors():
                caller = self._guard.identify(Headers(scope=scope).get("authorization"))
            name = caller.name
            await self._serve(caller, scope, receive, counting)
        except Unauthorized as error:
            response = error_response(error, {"www-authenticate": error.challenge}, self._shape(scope))
            await response(scope, receive, counting)
        finally:
            self._guard.count(name, status)

    async def _serve(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of somebody who is known. What asks for work counts for the limits until it ends."""
        scope[_CALLER] = caller
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(caller.limit_headers())
            await send(message)

        try:
            with as_errors(), caller.request() as grant:
                scope[_GRANT] = grant
                await self._app(scope, receive, with_limits)
        except RateLimited as error:
            await error_response(error, shape=self._shape(scope))(scope, receive, with_limits)

    def _shape(self, scope: Scope) -> ErrorShape:
        return self._lorax_shape if scope["path"] in _LORAX_PATHS else openai_error


_LORAX_PATHS: Final = ADAPTER_PATHS | {INFO}


def caller_of(scope: Scope) -> Caller:
    """Return whose request it is."""
    caller: Caller = scope[_CALLER]
    return caller


def key_name_of(scope: Scope) -> str:
    """Return the name of the key of a request, also one that was refused; empty where there is none."""
    caller: Caller | None = scope.get(_CALLER)
    return caller.name if caller is not None else ""


def grant_of(scope: Scope) -> Grant:
    """Return what the key of a request was enough for."""
    grant: Grant = scope[_GRANT]
    return grant


@contextmanager
def as_nobody(guard: Guard, scope: Scope) -> Iterator[None]:
    """Serve a request that no key is asked for: it may name any model, and nothing is counted for anybody."""
    scope[_CALLER] = guard.anybody
    with guard.anybody.request() as grant:
        scope[_GRANT] = grant
        yield


def check_model(scope: Scope, name: str, *, field: str = "model") -> None:
    """Check that whoever sends a request may name a model; `field` of it does.

    Raises:
        ModelForbidden: he may not.
    """
    with as_errors(field):
        caller_of(scope).check_model(name)


@contextmanager
def as_errors(param: str = "model") -> Iterator[None]:
    """Raise what a key refuses as an error of a request; `param` is the field that names the model."""
    try:
        yield
    except refusals.Unauthorized as refusal:
        raise Unauthorized(refusal.message, challenge=refusal.challenge) from None
    except refusals.ModelForbidden as refusal:
        raise ModelForbidden(refusal.message, param=param) from None
    except refusals.RateLimited as refusal:
        raise RateLimited(refusal.message, retry_after_seconds=refusal.retry_after_seconds) from None


@contextmanager
def spending(grant: Grant, generation: Generation, num_prompt_tokens: int) -> Iterator[None]:
    """Count the tokens of a generation for the key, however it ends; none where the engine began with nothing."""
    is_begun = True
    try:
        yield
    except RequestError:
        is_begun = generation.timing.first_token is not None
        raise
    finally:
        if is_begun:
            grant.spend(num_prompt_tokens + generation.num_completion_tokens)


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN_PATHS or (scope["path"] == COMPATIBLE and scope["method"] in ("GET", "HEAD"))
