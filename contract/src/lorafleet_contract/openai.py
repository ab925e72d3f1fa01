"""Error bodies of the OpenAI API, shared by pod and gateway."""

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

OPENAPI: Final = "/openapi.json"
"""Where pods and gateways say what they answer."""


class ErrorCode(StrEnum):
    """`error.code` of answers; clients may switch on it."""

    MODEL_NOT_FOUND = "model_not_found"
    """404: no base model or adapter of that name; 403: the key may not name it, whether it exists or not."""
    ADAPTER_LOADING = "adapter_loading"
    """503 with Retry-After: known, not yet answerable."""
    ADAPTER_FAILED = "adapter_failed"
    """424: known and refused or failed; the message gives the reason."""
    NOT_FINITE = "not_finite"
    """424: the adapter, or the base, computed NaN or infinity for this request; no other request is touched."""
    REVISION_NOT_FOUND = "revision_not_found"
    """404 from a pod: the revision of the header is not in its catalogue."""
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    """400."""
    INVALID_VALUE = "invalid_value"
    """400; `param` names the field."""
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    """400; `param` names the field that would change the output and is not honoured."""
    INVALID_API_KEY = "invalid_api_key"
    """401 with WWW-Authenticate: no key, or none that is known."""
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    """429 with Retry-After: the key has used what it may use; x-ratelimit-* tell of what."""
    OVERLOADED = "overloaded"
    """429 with Retry-After."""
    NOT_READY = "not_ready"
    """503 with Retry-After: no ready pod."""
    DRAINING = "draining"
    """503 with Retry-After: this pod is going away."""
    INTERNAL_ERROR = "internal_error"
    """500."""


class ErrorBody(BaseModel):
    """The `error` object of OpenAI's API."""

    model_config = ConfigDict(frozen=True)

    message: str
    type: str
    """`invalid_request_error`, `not_found_error`, `rate_limit_error`, `service_unavailable_error` or `server_error`."""
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """`{"error": {…}}`."""

    model_config = ConfigDict(frozen=True)

    error: ErrorBody


def error_type(status: int) -> str:
    """Return OpenAI's `type` for an HTTP status."""
    if status == 404:
        return "not_found_error"
    if status == 429:
        return "rate_limit_error"
    if status == 503:
        return "service_unavailable_error"
    return "server_error" if status >= 500 else "invalid_request_error"
