"""The trace that a request of the public port is part of; its handlers find it in the scope."""

from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from lorafleet_common.tracing import RequestTrace, Tracing, Value

_TRACE: Final = "lorafleet.trace"


def begin_trace(tracing: Tracing, scope: Scope) -> RequestTrace:
    """Begin the span of a request."""
    attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
    trace = tracing.request(Headers(scope=scope), f"{scope['method']} {scope['path']}", attributes)
    scope[_TRACE] = trace
    return trace


def trace_of(scope: Scope) -> RequestTrace:
    """Return the trace that a request is part of; one that nobody records, on ports that take part in none."""
    trace: RequestTrace | None = scope.get(_TRACE)
    return trace or RequestTrace(None)


def known(values: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return what is not None."""
    return {name: value for name, value in values.items() if value is not None}
