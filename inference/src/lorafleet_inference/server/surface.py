"""What a route that generates says of itself: how its requests are read and how its answers are written.

`answering.py` runs them. A new route is one file with a `Surface` and a `Formatter`, and its line in `public.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import msgspec

from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.engine.messages import ModelFacts, TokenLogprobs
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.server.generation import ChoiceDelta
from lorafleet_inference.server.requests import GenerationRequest
from lorafleet_inference.server.wire import Finish, Usage
from lorafleet_inference.text.output import ShownToken
from lorafleet_inference.text.pieces import PieceTable
from lorafleet_inference.text.tokenizer import Text

RequestT = TypeVar("RequestT", bound=GenerationRequest)
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """What a request works with while it holds its lease."""

    facts: ModelFacts
    vocabulary: Vocabulary
    text: Text
    lease: Lease
    eos_token_ids: tuple[int, ...]
    """Of the adapter, beside the base's."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[RequestT]):
    """What is known of an answer before its first token."""

    id: str
    created: int
    """Seconds since 1970."""
    request: RequestT
    pieces: PieceTable


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of a whole answer."""

    index: int
    prompt_token_ids: TokenIds
    text: str
    tokens: tuple[ShownToken, ...]
    """Empty unless log-probabilities were asked for."""
    finish: Finish
    scored: tuple[TokenLogprobs, ...] | None
    """Log-probabilities of the prompt from its second token on, where they were asked for."""


class Formatter(ABC):
    """Writes one answer, either whole or as events."""

    @abstractmethod
    def whole(self, choices: Sequence[Choice], usage: Usage) -> msgspec.Struct:
        """Return the one JSON document."""

    @abstractmethod
    def events(self, delta: ChoiceDelta) -> Iterable[msgspec.Struct]:
        """Return the events that show what a choice adds."""

    @abstractmethod
    def usage_event(self, usage: Usage) -> msgspec.Struct:
        """Return the event of usage, after those of all choices."""


class Surface(ABC, Generic[RequestT]):
    """One route."""

    id_prefix: ClassVar[str]
    """The first part of an answer's id."""
    prompt_field: ClassVar[str]
    """The field that is named where the prompt is at fault."""
    strip_leading: ClassVar[bool]
    """Whether an answer is a text by itself, and does not continue its prompt."""

    @abstractmethod
    def parse(self, body: bytes) -> RequestT:
        """Read a request.

        Raises:
            RequestError: it is not one; names the field.
        """

    @abstractmethod
    def num_prompts(self, request: RequestT) -> int:
        """Return how many prompts a request has; each gets `n` choices."""

    @abstractmethod
    async def prompts(self, request: RequestT, leased: Leased) -> list[TokenIds]:
        """Return the prompts of a request; each gets `n` choices.

        Raises:
            RequestError: one cannot be made.
        """

    @abstractmethod
    def formatter(self, answer: Answer[RequestT]) -> Formatter:
        """Return who writes this answer."""
