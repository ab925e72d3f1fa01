"""Log-probabilities in the two forms of OpenAI's API."""

from collections.abc import Sequence

import msgspec

from lorafleet_inference.engine.messages import TokenLogprobs
from lorafleet_inference.server.wire import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    PromptToken,
    TokenLogprob,
    TopLogprob,
)
from lorafleet_inference.text.output import ShownToken
from lorafleet_inference.text.pieces import PieceTable

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


def chat_logprobs(tokens: Sequence[ShownToken], pieces: PieceTable) -> ChatLogprobs:
    """Return `logprobs` of a chat choice."""
    return ChatLogprobs([_token(token, pieces) for token in tokens])


def completion_logprobs(tokens: Sequence[ShownToken], pieces: PieceTable) -> CompletionLogprobs:
    """Return `logprobs` of a completion choice."""
    return CompletionLogprobs(
        tokens=[_name(pieces.shown(token.token_id)) for token in tokens],
        token_logprobs=[_finite(token.logprobs.chosen) for token in tokens],
        top_logprobs=[
            {_name(pieces.shown(token_id)): _finite(logprob) for token_id, logprob in reversed(token.logprobs.top)}
            for token in tokens
        ],
        text_offset=[token.offset for token in tokens],
    )


def prompt_logprobs(
    token_ids: Sequence[int], scored: Sequence[TokenLogprobs] | None, pieces: PieceTable
) -> PromptLogprobs | msgspec.UnsetType:
    """Return `prompt_logprobs` of a choice, in vLLM's form; `scored`: from the second token on, None if not asked for."""
    if scored is None:
        return msgspec.UNSET
    places: PromptLogprobs = [None]
    for token_id, one in zip(token_ids[1:], scored, strict=True):
        shown = {**dict(one.top), token_id: one.chosen}
        places.append({str(key): PromptToken(_finite(value), _name(pieces.shown(key))) for key, value in shown.items()})
    return places


def _token(token: ShownToken, pieces: PieceTable) -> TokenLogprob:
    data = pieces.shown(token.token_id)
    top = [(pieces.shown(token_id), logprob) for token_id, logprob in token.logprobs.top]
    return TokenLogprob(
        token=_name(data),
        logprob=_finite(token.logprobs.chosen),
        bytes=list(data),
        top_logprobs=[TopLogprob(_name(piece), _finite(logprob), list(piece)) for piece, logprob in top],
    )


def _name(data: bytes) -> str:
    """Return the token's text; part of a character is written `bytes:\\xe4\\xbd`, so that no two look the same."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return max(LOWEST, logprob)  # in this order it is the lowest also for NaN, which JSON cannot write either
