"""What a route that generates says of itself: how its requests are read and how its answers are written.

`answering.py` runs them. A new route is one file with a `Surface` and a `Formatter`, and its line in `public.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from pydantic import BaseModel

from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.server.generation import ChoiceDelta, Timing
from lorafleet_inference.server.logprobs import TokenNames
from lorafleet_inference.server.parts import CONTENT_ALONE, Parts
from lorafleet_inference.server.requests import WHOLE_CONTEXT, GenerationRequest
from lorafleet_inference.server.wire import CachedTokens, Finish, OptionalIds, Usage
from lorafleet_inference.text.chat import ChatTemplates
from lorafleet_inference.text.output import ShownToken
from lorafleet_inference.text.own_text import Codec

RequestT = TypeVar("RequestT", bound=GenerationRequest)
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """What a request works with while it holds its lease."""

    facts: ModelFacts
    vocabulary: Vocabulary
    text: Codec
    """Of the adapter, where its tokenizer is not the base's."""
    templates: ChatTemplates
    lease: Lease
    eos_token_ids: tuple[int, ...]
    """Of the adapter, beside the base's."""
    has_own_tokens: bool = False
    """Whether `text` is the adapter's: grammars are of the base's tokens."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine gets, and how it is shown before its answer, where that is asked for."""

    token_ids: TokenIds
    text: str = ""
    offsets: tuple[int, ...] = ()
    """Where the text of each token begins."""
    eos_token_ids: TokenIds = ()
    """They end its answers beside the model's and the adapter's own."""
    grammar: str | None = None
    """What its answers have to match."""
    parts: Parts = CONTENT_ALONE
    """What its answers may have beside content."""
    shows_special: bool = False
    """Whether special tokens of its answers are part of their text, from which `parts` are read."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[RequestT]):
    """What is known of an answer before its first token."""

    id: str
    created: int
    """Seconds since 1970."""
    request: RequestT
    names: TokenNames
    prompts: Sequence[Prompt]
    leased: Leased

    def prompt_of(self, choice: int) -> Prompt:
        """Return the prompt of a choice, by its index."""
        return self.prompts[choice // self.request.n]

    def prompt_ids(self, choice: int) -> OptionalIds:
        """Return the ids of its prompt, where they are asked for."""
        return list(self.prompt_of(choice).token_ids) if self.request.return_token_ids else msgspec.UNSET

    def token_ids(self, ids: Sequence[int]) -> OptionalIds:
        """Return ids of the answer, where they are asked for."""
        return list(ids) if self.request.return_token_ids else msgspec.UNSET

    def usage(self, delta: ChoiceDelta) -> Usage | None:
        """Return the usage of a choice so far, where each event tells it."""
        if not self.request.continuous_usage:
            return None
        num_prompt = len(self.prompt_of(delta.index).token_ids)
        return Usage(num_prompt, delta.num_tokens, num_prompt + delta.num_tokens, CachedTokens(delta.num_cached_tokens))


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of a whole answer."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...]
    """Empty unless log-probabilities were asked for."""
    finish: Finish
    token_ids: TokenIds
    """Likewise, unless they were asked for."""
    scored: tuple[TokenLogprobs, ...] | None
    """Log-probabilities of the prompt from its second token on, where they were asked for."""
    last: ChoiceDelta
    """Its end."""


class Formatter(ABC):
    """Writes one answer, either whole or as events."""

    @abstractmethod
    def whole(self, choices: Sequence[Choice], usage: Usage) -> msgspec.Struct | list[msgspec.Struct]:
        """Return the one JSON document."""

    def headers(self, _: Sequence[Choice] | None, __: Timing) -> Mapping[str, str]:
        """Return headers of its own for an answer of these choices; without them, of a stream before its first event."""
        return {}

    @abstractmethod
    def events(self, delta: ChoiceDelta, scored: Sequence[TokenLogprobs] | None) -> Iterable[msgspec.Struct]:
        """Return the events that show what a choice adds; `scored` is of its prompt, as of `Choice`."""

    @abstractmethod
    def usage_event(self, usage: Usage) -> msgspec.Struct:
        """Return the event of usage, after those of all choices."""


class Surface(ABC, Generic[RequestT]):
    """One route."""

    path: ClassVar[str]
    reads: ClassVar[type[BaseModel]]
    """Its requests, as clients write them."""
    writes: ClassVar[Any]
    """The type of the document of a whole answer; None: all are streamed."""
    streams_as: ClassVar[type[msgspec.Struct] | None]
    """The type of the events of a stream; None: none is streamed."""
    names_events: ClassVar[bool] = False
    """Whether each event of a stream begins with its type; then the last one of them ends it, else `[DONE]` does."""
    tells_done: ClassVar[bool] = True
    """False: its last event ends a stream although events have no names."""
    answer_headers: ClassVar[tuple[str, ...]] = ()
    """Headers of its answers beside those that all answers have."""
    id_prefix: ClassVar[str]
    """The first part of an answer's id."""
    prompt_field: ClassVar[str]
    """The field that is named where the prompt is at fault."""
    model_field: ClassVar[str] = "model"
    """Likewise the model."""

    @classmethod
    def fields(cls) -> frozenset[str]:
        """Return the names of the fields that are honoured."""
        return frozenset(cls.reads.model_fields)

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
    async def prompts(self, request: RequestT, leased: Leased) -> list[Prompt]:
        """Return the prompts of a request; each gets `n` choices.

        Raises:
            RequestError: one cannot be made.
        """

    @abstractmethod
    def strip_leading(self, request: RequestT) -> bool:
        """Return whether an answer is a text by itself, and does not continue its prompt."""

    def form_field(self, request: RequestT) -> str | None:
        """Return the field that is named where the form of the answer cannot be enforced."""
        return request.form_field

    async def tokenised(
        self, text: str, request: RequestT, leased: Leased, *, add_special_tokens: bool | None = None
    ) -> TokenIds:
        """Return the token ids of the text of a prompt, cut to its end where the request says so.

        `add_special_tokens` of the request counts where none is given.

        Raises:
            RequestError: it is too long.
        """
        return await leased.text.encode(
            text,
            add_special_tokens=request.add_special_tokens if add_special_tokens is None else add_special_tokens,
            max_tokens=leased.facts.max_model_len,
            field=self.prompt_field,
            keep_last=self.num_kept(request, leased),
        )

    def num_kept(self, request: RequestT, leased: Leased) -> int | None:
        """Return how many tokens of a prompt are kept; None: all."""
        if request.truncate_prompt_tokens == WHOLE_CONTEXT:
            num_new = 1 if request.max_new_tokens is None else request.max_new_tokens
            return max(1, leased.facts.max_model_len - num_new)
        return request.truncate_prompt_tokens

    @abstractmethod
    def formatter(self, answer: Answer[RequestT]) -> Formatter:
        """Return who writes this answer."""
