"""Bodies of LoRAX's answers."""

from typing import Literal

import msgspec

Finish = Literal["length", "eos_token", "stop_sequence"]


class InputToken(msgspec.Struct, frozen=True):
    """A token of the prompt; the first one follows nothing and has no log-probability."""

    id: int
    text: str
    logprob: float | None


class AlternativeToken(msgspec.Struct, frozen=True):
    """One of the most likely tokens at a place of the answer."""

    id: int
    text: str
    logprob: float


class Token(msgspec.Struct, frozen=True):
    """A token of the answer. The texts of those that are not special make the generated text."""

    id: int
    text: str
    logprob: float
    special: bool
    alternative_tokens: list[AlternativeToken] | msgspec.UnsetType = msgspec.UNSET
    skipped: Literal[False] = False
    """LoRAX's speculation skips tokens."""


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """One of `best_of_sequences`."""

    generated_text: str
    finish_reason: Finish
    generated_tokens: int
    skipped_tokens: Literal[0] = 0
    seed: int | None
    prefill: list[InputToken]
    tokens: list[Token]


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """`details` of a whole answer."""

    finish_reason: Finish
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: Literal[0] = 0
    seed: int | None
    prefill: list[InputToken]
    tokens: list[Token]
    best_of_sequences: list[Sequence] | msgspec.UnsetType = msgspec.UNSET


class Generated(msgspec.Struct, frozen=True):
    """A whole answer."""

    generated_text: str
    details: Details | msgspec.UnsetType = msgspec.UNSET


class StreamDetails(msgspec.Struct, frozen=True):
    """`details` of the last event of a stream."""

    finish_reason: Finish
    prompt_tokens: int
    generated_tokens: int
    seed: int | None


class StreamEvent(msgspec.Struct, frozen=True):
    """One token of a stream; the last one has the whole text."""

    token: Token
    generated_text: str | None = None
    details: StreamDetails | None = None


class TokenSpan(msgspec.Struct, frozen=True):
    """One token of `/tokenize`, as the vocabulary writes it, and the characters that it stands for."""

    id: int
    text: str
    start: int
    stop: int


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /info."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str | None = None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_total_tokens: int
    max_batch_total_tokens: int
    version: str


class Embedded(msgspec.Struct, frozen=True):
    """Answer of /embed."""

    embeddings: list[float]
