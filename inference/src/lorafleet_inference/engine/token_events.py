"""What the engine tells of a request's tokens, and of its end."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import Reason


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """An end token or a stop token id; of an embedding, that it is there."""
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities of one position: of the chosen token, and of the most likely ones."""

    chosen: float
    top: tuple[tuple[int, float], ...]


class TokenEvent(msgspec.Struct, frozen=True):
    """New tokens of one request and, in its last event, why it ended.

    An end token that stopped it is among the tokens only if the request wants it shown.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    with_end: bool = False
    """Whether the last of the tokens is the end token that stopped it."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """Of the prompt's tokens from the second on; in the first event, if they were asked for."""
    finish: FinishReason | None = None
    error: str | None = None
    """With finish ERROR: one sentence for the client."""
    reason: Reason | None = None
    """With finish ERROR: set when the cause is the request's adapter."""
    code: ErrorCode | None = None
    """With finish ERROR: set when the cause is the request itself, which no engine of this size could serve, or logits that
    are not finite."""
    embedding: bytes | None = None
    """[dimensions] float32, little endian: of the prompt; in the last event, if it was asked for."""
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was found in the prefix cache; in the first event."""
    num_draft_tokens: int = 0
    """Draft tokens of the step that these tokens come from; in the first event of a step."""
    num_accepted_tokens: int = 0
    """Those of them that were right."""
    queue_seconds: float | None = None
    """Time from Submit to the first scheduled step; in the first event."""


def joined(events: Sequence[TokenEvent]) -> TokenEvent:
    """Return events of one request that follow each other as one; only the last may be terminal."""
    if len(events) == 1:
        return events[0]
    first, last = events[0], events[-1]
    logprobs = tuple(one for event in events for one in event.logprobs or ())
    return TokenEvent(
        first.request_id,
        token_ids=tuple(token_id for event in events for token_id in event.token_ids),
        logprobs=logprobs or None,
        with_end=last.with_end,
        prompt_logprobs=first.prompt_logprobs,
        finish=last.finish,
        error=last.error,
        reason=last.reason,
        code=last.code,
        embedding=last.embedding,
        num_cached_tokens=first.num_cached_tokens,
        num_draft_tokens=sum(event.num_draft_tokens for event in events),
        num_accepted_tokens=sum(event.num_accepted_tokens for event in events),
        queue_seconds=first.queue_seconds,
    )
