"""How many tokens a request used, as far as a gateway can know: as the pod tells it, else by estimate."""

from typing import Any, Final

from pydantic import BaseModel, ValidationError

from lorafleet_common.keys.guard import Grant
from lorafleet_contract.usage import HEADER_USAGE, MAX_USAGE, USAGE_COMMENT, tokens_of
from lorafleet_gateway.front.headers import Given

TOKEN_BYTES: Final = 4
"""Of a text in English, about."""
MAX_DECLARED: Final = 1 << 24
TEMPLATE_TOKENS: Final = 1024
"""A prompt may have so many more tokens than its request has bytes: those of the chat template."""


class _Lengths(BaseModel):
    """Fields that say how long an answer may be; what is wrong with them the pod says."""

    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    best_of: Any = None
    max_new_tokens: Any = None
    """This one and `best_of` stand among `parameters` of LoRAX."""
    parameters: Any = None


def declared_tokens(body: bytes | bytearray) -> int:
    """Return how many tokens a request allows its answers together; 0 where it does not say."""
    try:
        asked = _Lengths.model_validate_json(body)
        parameters = _Lengths.model_validate(asked.parameters or {})
    except ValidationError:
        return 0
    lengths = (asked.max_tokens, asked.max_completion_tokens, asked.max_output_tokens, parameters.max_new_tokens)
    numbers = (asked.n, asked.best_of, parameters.best_of, 1)
    return min(MAX_DECLARED, max(map(_number, lengths)) * max(map(_number, numbers)))


class Bill:
    """The tokens of one request."""

    def __init__(self, grant: Grant, body: bytes | bytearray) -> None:
        """Hold back what the request may use, by estimate.

        Raises:
            RateLimited: the key does not have so many tokens now.
        """
        self._grant = grant
        self._num_prompt = len(body) // TOKEN_BYTES
        self._status: int | None = None
        self._told: int | None = None
        self._num_bytes = 0
        self._num_events = 0
        self._tail = b"\n"
        declared = declared_tokens(body)
        self._most = len(body) + TEMPLATE_TOKENS + declared
        grant.reserve(self._num_prompt + declared)

    def answered(self, status: int, headers: Given) -> None:
        """A pod has begun to answer."""
        self._status = status
        self._told = tokens_of(headers.get(HEADER_USAGE, ""))

    def lost(self) -> None:
        """The answer broke off before any of it was passed on: what its pod told of it does not count."""
        self._status = self._told = None

    def feed(self, chunk: bytes, *, is_stream: bool) -> None:
        """Look at the next bytes of the answer."""
        self._num_bytes += len(chunk)
        if not is_stream or self._told is not None:
            return
        seen = self._tail + chunk
        self._num_events += seen.count(_EVENT_END) - self._tail.count(_EVENT_END)
        begin = seen.find(_MARK)
        if begin >= 0:
            told, end, _ = seen[begin + len(_MARK) :].partition(b"\n")
            self._told = tokens_of(told.decode("latin-1")) if end else None
        self._tail = seen[-_TAIL_BYTES:]

    def close(self, *, has_left: bool) -> None:
        """The request has ended; `has_left`: because its client went away."""
        self._grant.spend(self._num_tokens(has_left=has_left))

    def _num_tokens(self, *, has_left: bool) -> int:
        if self._told is not None:  # no more than can be: in pods runs what the owner of a base likes
            return min(self._told, self._most + self._num_bytes)
        if self._status is None:
            return self._num_prompt if has_left else 0
        if self._status >= 400:
            return 0
        return self._num_prompt + (self._num_events or self._num_bytes // TOKEN_BYTES)


_EVENT_END: Final = b"\n\n"
_MARK: Final = b"\n" + USAGE_COMMENT
_TAIL_BYTES: Final = len(_MARK) + MAX_USAGE


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value <= MAX_DECLARED else 0
