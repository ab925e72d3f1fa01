"""What the gateway's span of a request says. Nothing of prompts and answers is among it."""

from collections.abc import Mapping

from aiohttp import web

from lorafleet_common.tracing import RequestTrace, Tracing, Value


def begin_trace(tracing: Tracing, request: web.BaseRequest) -> RequestTrace:
    """Begin the span of a request that goes to pods."""
    attributes = {"http.request.method": request.method, "url.path": request.path, "http.route": request.path}
    return tracing.request(request.headers, f"{request.method} {request.path}", attributes)


def told(values: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return what is known."""
    return {name: value for name, value in values.items() if value is not None}
