"""Asks for keys at the port: who sends a request, and what is answered where a key is not enough."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from lorafleet_common.keys import errors as refusals
from lorafleet_common.keys.guard import Caller, Guard
from lorafleet_contract.lorax import COMPATIBLE
from lorafleet_contract.openai import OPENAPI
from lorafleet_gateway.errors import ModelForbidden, RateLimited, RequestError, Unauthorized
from lorafleet_gateway.front import lorax
from lorafleet_gateway.front.answers import error_response
from lorafleet_gateway.front.headers import AUTHORIZATION, request_id_of

access = logging.getLogger("lorafleet_gateway.access")
CLIENT_LEFT: Final = 499
OPEN_PATHS: Final = frozenset({"/health", "/ready", "/ping", "/version", OPENAPI})
"""Nobody is asked for a key there: probes have none, and the document says how a key is sent."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
KeyedHandler = Callable[[web.BaseRequest, Caller], Awaitable[web.StreamResponse]]


class KeyGate:
    """Lets through whom the guard knows, and counts what they were answered."""

    def __init__(self, guard: Guard, inner: KeyedHandler) -> None:
        self._guard = guard
        self._inner = inner

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if not self._guard.asks or _is_open(request):
            return await self._inner(request, self._guard.anybody)
        status, name = CLIENT_LEFT, ""
        try:
            with as_errors():
                caller = self._guard.identify(request.headers.get(AUTHORIZATION))
            name = caller.name
            response = await self._inner(request, caller)
            status = response.status
        except RequestError as error:
            is_lorax, request_id = request.path in lorax.PATHS, request_id_of(request.headers)
            response = error_response(error, request_id=request_id, is_lorax=is_lorax)
            status = response.status
            access.info("%s %s %d key=- id=%s", request.method, request.rel_url.raw_path, status, request_id)
        finally:
            self._guard.count(name, status)
        return response


@contextmanager
def as_errors(param: str = "model") -> Iterator[None]:
    """Raise what a key refuses as an error of a request; `param` is the field that names the model."""
    try:
        yield
    except refusals.Unauthorized as refusal:
        raise Unauthorized(refusal.message, headers={"www-authenticate": refusal.challenge}) from None
    except refusals.ModelForbidden as refusal:
        raise ModelForbidden(refusal.message, param=param) from None
    except refusals.RateLimited as refusal:
        seconds = max(1, math.ceil(refusal.retry_after_seconds))
        raise RateLimited(refusal.message, headers={"retry-after": str(seconds)}) from None


def _is_open(request: web.BaseRequest) -> bool:
    return request.path in OPEN_PATHS or (request.path == COMPATIBLE and request.method in ("GET", "HEAD"))
