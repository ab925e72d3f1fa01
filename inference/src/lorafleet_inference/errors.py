"""All errors of the pod; options raise lorafleet_common.errors.ConfigError.

InferenceError
├── RequestError          one request fails; carries HTTP status, code and field
│   ├── InvalidValue            400  invalid_value
│   ├── UnsupportedParameter    400  unsupported_parameter
│   ├── ContextLengthExceeded   400  context_length_exceeded
│   ├── Unauthorized            401  invalid_api_key          WWW-Authenticate
│   ├── ModelForbidden          403  model_not_found          the key may not name the model
│   ├── ModelNotFound           404  model_not_found
│   ├── RevisionNotFound        404  revision_not_found
│   ├── AdapterFailed           424  adapter_failed           the adapter was refused; message gives the reason
│   ├── OutputNotFinite         424  not_finite               the model's numbers overflow on this request
│   ├── RateLimited             429  rate_limit_exceeded      Retry-After; the key has used what it may use
│   ├── Overloaded              429  overloaded               Retry-After
│   ├── AdapterLoading          503  adapter_loading          Retry-After
│   ├── PodDraining             503  draining                 Retry-After
│   ├── EngineNotReady          503  not_ready                Retry-After
│   └── EngineFailure           500  internal_error
└── AdapterError          one adapter fails; carries a Reason of the contract; retryable by its Reason
"""

from typing import ClassVar

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import RETRYABLE, Reason


class InferenceError(Exception):
    """Root of the tree."""


class RequestError(InferenceError):
    """One request fails with an OpenAI-shaped body."""

    status: ClassVar[int] = 500
    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL_ERROR

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class InvalidValue(RequestError):
    """A field has a value that is not legal; `param` names it."""

    status = 400
    code = ErrorCode.INVALID_VALUE


class UnsupportedParameter(RequestError):
    """A field that would change the output is not honoured; `param` names it."""

    status = 400
    code = ErrorCode.UNSUPPORTED_PARAMETER


class ContextLengthExceeded(RequestError):
    """Prompt and requested tokens do not fit the model."""

    status = 400
    code = ErrorCode.CONTEXT_LENGTH_EXCEEDED


class Unauthorized(RequestError):
    """No key, or none that is known; `challenge` is the header WWW-Authenticate."""

    status = 401
    code = ErrorCode.INVALID_API_KEY

    def __init__(self, message: str, *, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


class ModelForbidden(RequestError):
    """The key may not name the model, whether there is one or not."""

    status = 403
    code = ErrorCode.MODEL_NOT_FOUND


class ModelNotFound(RequestError):
    """No base model or adapter of that name."""

    status = 404
    code = ErrorCode.MODEL_NOT_FOUND


class RevisionNotFound(RequestError):
    """The adapter is known, the revision asked for is not."""

    status = 404
    code = ErrorCode.REVISION_NOT_FOUND


class AdapterFailed(RequestError):
    """The adapter is known and was refused or failed."""

    status = 424
    code = ErrorCode.ADAPTER_FAILED


class OutputNotFinite(RequestError):
    """The model computed logits that are not finite (NaN or infinite) for this request; the same request does it again."""

    status = 424
    code = ErrorCode.NOT_FINITE


class RateLimited(RequestError):
    """The key of the request has used what it may use."""

    status = 429
    code = ErrorCode.RATE_LIMIT_EXCEEDED


class Overloaded(RequestError):
    """Too many requests wait."""

    status = 429
    code = ErrorCode.OVERLOADED


class AdapterLoading(RequestError):
    """The adapter is known and did not become answerable in time."""

    status = 503
    code = ErrorCode.ADAPTER_LOADING


class PodDraining(RequestError):
    """This pod is going away."""

    status = 503
    code = ErrorCode.DRAINING


class EngineNotReady(RequestError):
    """The base model is not loaded yet, or the engine was lost."""

    status = 503
    code = ErrorCode.NOT_READY


class EngineFailure(RequestError):
    """A step failed; the requests of its batch end with this."""

    status = 500
    code = ErrorCode.INTERNAL_ERROR


class AdapterError(InferenceError):
    """One adapter cannot be taken; others are untouched."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether trying the same thing again may succeed."""
        return self.reason in RETRYABLE
