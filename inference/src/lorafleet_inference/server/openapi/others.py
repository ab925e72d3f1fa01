"""What a request may have beside the fields of its model, as it is judged: nothing, or what changes nothing."""

from typing import Any, Final

from lorafleet_inference.server.embeddings import EmbedBody, EmbeddingRequest
from lorafleet_inference.server.fields import NEUTRAL, PASSED, Neutral
from lorafleet_inference.server.lorax_reads import TokenizeInputs
from lorafleet_inference.server.lorax_requests import REFUSED, AdapterParameters, LoraxBody
from lorafleet_inference.server.requests import (
    EMPTY,
    PASSED_OF_MESSAGES,
    ChatRequest,
    GenerationRequest,
    RequestMessage,
    StreamOptions,
)
from lorafleet_inference.server.responses_request import OF_CHATS, ResponsesRequest
from lorafleet_inference.server.tokens import DetokenizeRequest

Schema = dict[str, Any]
BORROWED: Final = {ResponsesRequest: (ChatRequest, OF_CHATS)}
"""Models that take fields of another one, as it takes them."""
_JUDGED: Final = (GenerationRequest, ResponsesRequest, DetokenizeRequest, EmbeddingRequest)
_CLOSED: Final = (LoraxBody, EmbedBody, TokenizeInputs, StreamOptions)


def others_of(kind: type, known: frozenset[str]) -> tuple[dict[str, Schema], bool | Schema]:
    """Return the schemas of fields that pass beside those that are known, and of all further ones; False: there may be none."""
    known |= BORROWED[kind][1] if kind in BORROWED else frozenset()
    if issubclass(kind, _JUDGED):
        passed = {name: Schema(description=f"Changes nothing: it {why}.") for name, why in PASSED.items()}
        neutral = {name: _neutral(field) for name, field in NEUTRAL.items()}
        return {name: one for name, one in (passed | neutral).items() if name not in known}, False
    if issubclass(kind, AdapterParameters):
        return {name: _neutral(field) for name, field in REFUSED.items()}, False
    if issubclass(kind, RequestMessage):
        return {name: {} for name in PASSED_OF_MESSAGES}, {"enum": [*EMPTY, None]}
    return {}, not issubclass(kind, _CLOSED)


def _neutral(field: Neutral) -> Schema:
    values = [one for number, one in enumerate(field.values) if one not in field.values[:number]]
    return {"enum": [*values, None], "description": f"Not honoured: it would {field.meaning}."}
