"""Log-probabilities in the two forms of OpenAI's API."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.server.wire import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprobs,
    PromptToken,
    TokenLogprob,
    TopLogprob,
)
from lorafleet_inference.text.output import ShownToken
from lorafleet_inference.text.pieces import Pieces

_encoder = msgspec.json.Encoder()
LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


class TokenNames:
    """How tokens are written in log-probabilities: as their text, or with `as_ids` as `token_id:7`."""

    def __init__(self, pieces: Pieces, *, as_ids: bool) -> None:
        self.pieces = pieces
        self._as_ids = as_ids

    def of(self, token_id: int) -> str:
        """Return the name of a token."""
        return f"token_id:{token_id}" if self._as_ids else _name(self.pieces.shown(token_id))


@dataclass(frozen=True, slots=True)
class Echoed:
    """A prompt that is shown before its answer: tokens, where the text of each begins, and what is known of all but the first."""

    token_ids: Sequence[int]
    offsets: Sequence[int]
    scored: Sequence[TokenLogprobs]
    num_top: int


def chat_logprobs(tokens: Sequence[ShownToken], names: TokenNames) -> ChatLogprobs:
    """Return `logprobs` of a chat choice."""
    return ChatLogprobs([_token(token, names) for token in tokens])


def completion_logprobs(
    tokens: Sequence[ShownToken], names: TokenNames, echoed: Echoed | None, num_before: int
) -> CompletionLogprobs:
    """Return `logprobs` of a completion choice, those of its prompt first where it is echoed.

    `num_before`: characters that stand before the answer.
    """
    answer = CompletionLogprobs(
        tokens=[names.of(token.token_id) for token in tokens],
        token_logprobs=[finite(token.logprobs.chosen) for token in tokens],
        top_logprobs=[_top(token.token_id, token.logprobs, None, names) for token in tokens],
        text_offset=[num_before + token.offset for token in tokens],
    )
    if echoed is None:
        return answer
    places = list(zip(echoed.token_ids[1:], echoed.scored, strict=True))
    return CompletionLogprobs(
        tokens=[*(names.of(token_id) for token_id in echoed.token_ids), *answer.tokens],
        token_logprobs=[None, *(finite(one.chosen) for _, one in places), *answer.token_logprobs],
        top_logprobs=[
            None,
            *(_top(token_id, one, echoed.num_top, names) for token_id, one in places),
            *answer.top_logprobs,
        ],
        text_offset=[*echoed.offsets, *answer.text_offset],
    )


def _top(token_id: int, logprobs: TokenLogprobs, number: int | None, names: TokenNames) -> dict[str, float]:
    """The token itself and the most likely ones; of two with the same name the more likely one."""
    likely = {names.of(one): finite(logprob) for one, logprob in reversed(logprobs.top[:number])}
    return {names.of(token_id): finite(logprobs.chosen), **likely}


def prompt_logprobs(
    token_ids: Sequence[int], scored: Sequence[TokenLogprobs] | None, number: int | None, pieces: Pieces
) -> PromptLogprobs | msgspec.UnsetType:
    """Return `prompt_logprobs` of a choice, in vLLM's form.

    `scored`: from the second token on; `number`: how many of the most likely ones are shown, None if nothing is.
    """
    if scored is None or number is None:
        return msgspec.UNSET
    places: PromptLogprobs = [msgspec.Raw(b"null")]
    for token_id, one in zip(token_ids[1:], scored, strict=True):
        shown = {**dict(one.top[:number]), token_id: one.chosen}
        place = {str(key): PromptToken(finite(value), _name(pieces.shown(key))) for key, value in shown.items()}
        places.append(msgspec.Raw(_encoder.encode(place)))
    return places


def _token(token: ShownToken, names: TokenNames) -> TokenLogprob:
    shown = names.pieces.shown
    return TokenLogprob(
        token=names.of(token.token_id),
        logprob=finite(token.logprobs.chosen),
        bytes=list(shown(token.token_id)),
        top_logprobs=[
            TopLogprob(names.of(token_id), finite(logprob), list(shown(token_id)))
            for token_id, logprob in token.logprobs.top
        ],
    )


def _name(data: bytes) -> str:
    """Return the token's text; part of a character is written `bytes:\\xe4\\xbd`, so that no two look the same."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """Return a log-probability as JSON can write it."""
    return max(LOWEST, logprob)  # in this order it is the lowest also for NaN, which JSON cannot write either
