"""LoRAX's routes and the errors of its API, shared by pod and gateway."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from lorafleet_contract.openai import ErrorCode

GENERATE: Final = "/generate"
GENERATE_STREAM: Final = "/generate_stream"
COMPATIBLE: Final = "/"
"""Whole or streamed, as the body says."""
EMBED: Final = "/embed"
INFO: Final = "/info"
ADAPTER_PATHS: Final = frozenset({COMPATIBLE, GENERATE, GENERATE_STREAM, EMBED})
"""Their bodies have `inputs`, and the adapter in `parameters.adapter_id`."""

MERGED: Final = "_merged"
"""The name under which merges of adapters (`parameters.merged_adapters`) are counted, all together."""
AD_HOC: Final = "_ad_hoc"
"""Likewise of adapters that no LoraAdapter declares, where a base allows requests to name them."""
MAX_MERGED: Final = 16
"""Adapters of a merge."""

ErrorType = Literal["generation", "incomplete_generation", "overloaded", "validation"]
_OF_THE_ADAPTER: Final = frozenset(
    {
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.REVISION_NOT_FOUND,
        ErrorCode.ADAPTER_FAILED,
        ErrorCode.NOT_FINITE,
    }
)


class LoraxError(BaseModel):
    """Body of an error; LoRAX has the first two fields."""

    model_config = ConfigDict(frozen=True)

    error: str
    error_type: ErrorType
    code: str | None = None
    """As of the OpenAI routes."""
    param: str | None = None
    """The field that is at fault."""


def lorax_answer(message: str, *, status: int, code: ErrorCode | None, param: str | None) -> tuple[int, bytes]:
    """Return HTTP status and body, as LoRAX has them, of an error that the OpenAI routes answer with `status` and `code`.

    The message names the field: LoRAX's clients show nothing else. What LoRAX does not tell apart keeps its status: bodies
    that are not taken, pods that are not there.
    """
    if param is not None and param.rpartition(".")[2] not in message:
        message = f"{param}: {message}"
    told, kind = _status(status, code)
    body = LoraxError(error=message, error_type=kind, code=code.value if code is not None else None, param=param)
    return told, body.model_dump_json(exclude_none=True).encode()


def _status(status: int, code: ErrorCode | None) -> tuple[int, ErrorType]:
    if status in (401, 403):  # LoRAX has no keys
        return status, "validation"
    if code in _OF_THE_ADAPTER:
        return 424, "generation"
    if status in (429, 503):
        return status, "overloaded"
    if status >= 500:
        return status, "incomplete_generation"
    return (422 if status == 400 else status), "validation"
