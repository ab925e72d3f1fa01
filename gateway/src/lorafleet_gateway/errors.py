"""All errors of the gateway; options raise lorafleet_common.errors.ConfigError, the API server lorafleet_common.kube.errors.

GatewayError
├── WatchEnded                  an essential task ended; the process ends
└── RequestError                one request fails; carries HTTP status, code, field and seconds for Retry-After
    ├── InvalidRequest          400  invalid_value
    ├── Unauthorized            401  invalid_api_key       WWW-Authenticate
    ├── ModelForbidden          403  model_not_found       the key may not name the model
    ├── NotFound                404  without a code: no such path
    ├── MethodNotAllowed        405  without a code
    ├── ModelNotFound           404  model_not_found
    ├── RevisionNotFound        404  revision_not_found    a pinned revision that no status shows
    ├── BodyTimeout             408  invalid_value
    ├── HeadTimeout             408  invalid_value
    ├── BodyTooLarge            413  invalid_value
    ├── UnsupportedEncoding     415  invalid_value         a compressed body
    ├── HeadTooLarge            431  without a code        the request line or a header is too long
    ├── AdapterFailed           424  adapter_failed        the adapter was refused; message gives the reason
    ├── RateLimited             429  rate_limit_exceeded   Retry-After; the key has used what it may use
    ├── Overloaded              429  overloaded            Retry-After
    ├── PodLost                 502  internal_error        a pod took the request and was lost
    ├── AdapterLoading          503  adapter_loading       Retry-After
    ├── NoReadyPod              503  not_ready             Retry-After
    │   ├── ModelUnreadable     503  not_ready             Retry-After; whose name it may be cannot be read
    │   └── NoPodInTime         503  not_ready             Retry-After; no pod came while the request was held
    ├── TooManyConnections      503  overloaded            Retry-After
    ├── Draining                503  draining              Retry-After
    └── PodSilent               504  internal_error        a pod took the request and said nothing for too long
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

from lorafleet_contract.openai import ErrorCode


class Full(StrEnum):
    """What there is too much of where a gateway takes no request."""

    REQUESTS = "requests"
    MODEL_REQUESTS = "model_requests"
    """The model has its share of them."""
    BODIES = "bodies"
    MODEL_BODIES = "model_bodies"
    """The model has its share of the memory for them."""


class GatewayError(Exception):
    """Root of the tree."""


class WatchEnded(GatewayError):
    """Something without which the gateway grows blind has ended."""


class RequestError(GatewayError):
    """One request fails with an OpenAI-shaped body."""

    status: ClassVar[int] = 500
    code: ClassVar[ErrorCode | None] = ErrorCode.INTERNAL_ERROR
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        """`headers`: what the answer has beside those of every error."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}


class InvalidRequest(RequestError):
    """The body or a header is not legal."""

    status = 400
    code = ErrorCode.INVALID_VALUE


class Unauthorized(RequestError):
    """No key, or none that is known."""

    status = 401
    code = ErrorCode.INVALID_API_KEY


class ModelForbidden(RequestError):
    """The key may not name the model, whether there is one or not."""

    status = 403
    code = ErrorCode.MODEL_NOT_FOUND


class NotFound(RequestError):
    """There is nothing at this path."""

    status = 404
    code = None


class MethodNotAllowed(RequestError):
    """The path does not take this method; `allowed` are those that it takes."""

    status = 405
    code = None

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class ModelNotFound(RequestError):
    """No base model or adapter of that name."""

    status = 404
    code = ErrorCode.MODEL_NOT_FOUND


class RevisionNotFound(RequestError):
    """The client insists on a revision that the adapter's status does not show."""

    status = 404
    code = ErrorCode.REVISION_NOT_FOUND


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = ErrorCode.INVALID_VALUE


class HeadTimeout(RequestError):
    """The head of the request did not arrive in time."""

    status = 408
    code = ErrorCode.INVALID_VALUE


class BodyTooLarge(RequestError):
    """The body is larger than the gateway takes."""

    status = 413
    code = ErrorCode.INVALID_VALUE


class UnsupportedEncoding(RequestError):
    """The body is compressed."""

    status = 415
    code = ErrorCode.INVALID_VALUE


class HeadTooLarge(RequestError):
    """The request line, a header or the whole head is longer than the gateway takes."""

    status = 431
    code = None


class AdapterFailed(RequestError):
    """The adapter is known and was refused."""

    status = 424
    code = ErrorCode.ADAPTER_FAILED


class Overloaded(RequestError):
    """Too many requests are in flight in this gateway, or their bodies hold too much of its memory."""

    status = 429
    code = ErrorCode.OVERLOADED
    retry_after_seconds = 1

    def __init__(self, message: str, *, why: Full) -> None:
        super().__init__(message)
        self.why = why


class RateLimited(RequestError):
    """The key of the request has used what it may use."""

    status = 429
    code = ErrorCode.RATE_LIMIT_EXCEEDED


class PodLost(RequestError):
    """The connection broke after a pod had taken the request."""

    status = 502


class AdapterLoading(RequestError):
    """The adapter is known and no revision of it is answerable yet."""

    status = 503
    code = ErrorCode.ADAPTER_LOADING
    retry_after_seconds = 2


class NoReadyPod(RequestError):
    """No pod can answer now."""

    status = 503
    code = ErrorCode.NOT_READY
    retry_after_seconds = 2


class ModelUnreadable(NoReadyPod):
    """The resource that may have the name cannot be read: another version wrote it."""

    retry_after_seconds = 10


class NoPodInTime(NoReadyPod):
    """The base runs no pod while nothing is asked, and none was there in time."""

    retry_after_seconds = 10


class TooManyConnections(RequestError):
    """All connections that the gateway takes are being answered."""

    status = 503
    code = ErrorCode.OVERLOADED
    retry_after_seconds = 1


class Draining(RequestError):
    """This gateway is going away."""

    status = 503
    code = ErrorCode.DRAINING
    retry_after_seconds = 1


class PodSilent(RequestError):
    """A pod took the request and sent nothing for too long."""

    status = 504
