"""What every answer of the public port has: a request id, the pod's name, a line in the log."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorafleet_common.tracing import OFF, Tracing
from lorafleet_contract.names import HEADER_ADAPTER, HEADER_POD, HEADER_REVISION
from lorafleet_inference.server.keys import key_name_of
from lorafleet_inference.server.tracing import begin_trace, known

logger = logging.getLogger("lorafleet_inference.access")
REQUEST_ID = "x-request-id"
_LEGAL_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
CLIENT_LEFT = 499
"""What a span has for a status where the client left before there was one."""
QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/v1/routes"})
"""Asked every few seconds by machines: logged at level debug."""


class AnswerHeaders:
    """ASGI middleware that adds x-request-id (the client's, if it sent a legal one) and x-lorafleet-pod."""

    def __init__(self, app: ASGIApp, *, pod_name: str, tracing: Tracing = OFF) -> None:
        self._app = app
        self._tracing = tracing
        self._pod_name = pod_name.encode("latin-1", "replace")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, adapter, revision = time.perf_counter(), 0, "", ""
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _LEGAL_ID.match(given) else uuid.uuid4().hex
        trace = begin_trace(OFF if scope["path"] in QUIET_PATHS else self._tracing, scope)

        async def send_with_headers(message: Message) -> None:
            nonlocal status, adapter, revision
            if message["type"] == "http.response.start":
                told = Headers(raw=message["headers"])
                status, adapter, revision = (
                    message["status"],
                    told.get(HEADER_ADAPTER, ""),
                    told.get(HEADER_REVISION, ""),
                )
                own = [(REQUEST_ID.encode(), request_id.encode()), (HEADER_POD.encode(), self._pod_name)]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
            if logger.isEnabledFor(level):
                seconds = time.perf_counter() - began
                # as it came: a path that is decoded may have line breaks
                path, key = scope["raw_path"].decode("ascii", "backslashreplace"), key_name_of(scope) or "-"
                what = f"{scope['method']} {path}"
                logger.log(
                    level,
                    "%s %s %.3fs %s key=%s id=%s%s",
                    what, status or "gone", seconds, adapter or "-", key, request_id, trace.log_suffix,
                )  # fmt: skip
            if trace.is_recorded:
                named = {"lorafleet.adapter": adapter or None, "lorafleet.revision": revision or None}
                trace.tell(known({**named, "lorafleet.request_id": request_id}))
            trace.end(status or CLIENT_LEFT)
