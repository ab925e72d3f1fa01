"""Answers of the gateway's own: OpenAI-shaped errors, JSON."""

import json
from typing import Any, Final

from aiohttp import web

from lorafleet_contract.lorax import lorax_answer
from lorafleet_contract.openai import ErrorAnswer, ErrorBody, error_type
from lorafleet_gateway.errors import MethodNotAllowed, RequestError
from lorafleet_gateway.front.headers import REQUEST_ID

SERVER: Final = "lorafleet-gateway"


def error_response(error: RequestError, *, request_id: str, is_lorax: bool = False) -> web.Response:
    """Return the answer for an error, in the shape of the API that was asked."""
    status, body = _shaped(error, is_lorax=is_lorax)
    headers = {REQUEST_ID: request_id, **error.headers}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allowed
    response = json_bytes(body, status=status, headers=headers)
    if status in (401, 408, 413, 415, 429):
        response.force_close()  # the rest of the body is not read
    return response


def error_body(error: RequestError) -> bytes:
    """Return the body of an error of a connection, which has asked for no API yet."""
    return _shaped(error, is_lorax=False)[1]


def error_event(error: RequestError, *, is_lorax: bool = False) -> bytes:
    """Return the server-sent event that ends a stream that had begun."""
    _, body = _shaped(error, is_lorax=is_lorax)
    return b"event: error\ndata: " + body + b"\n\n"


def json_response(document: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON answer."""
    return json_bytes(json.dumps(document, ensure_ascii=False).encode(), status=status, headers=headers or {})


def json_bytes(body: bytes, *, status: int, headers: dict[str, str]) -> web.Response:
    """Return an answer whose body is JSON already."""
    return web.Response(
        body=body, status=status, headers={"server": SERVER, **headers}, content_type="application/json"
    )


def _shaped(error: RequestError, *, is_lorax: bool) -> tuple[int, bytes]:
    if is_lorax:
        return lorax_answer(error.message, status=error.status, code=error.code, param=error.param)
    code = error.code.value if error.code is not None else None
    body = ErrorBody(message=error.message, type=error_type(error.status), param=error.param, code=code)
    return error.status, ErrorAnswer(error=body).model_dump_json().encode()
