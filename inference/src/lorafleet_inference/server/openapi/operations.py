"""Every operation of the public port: what it takes, what it answers, with which errors it may end."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from pydantic import BaseModel

from lorafleet_contract.lorax import COMPATIBLE, INFO
from lorafleet_contract.names import HEADER_REVISION
from lorafleet_contract.openai import OPENAPI
from lorafleet_contract.routes import Routes
from lorafleet_inference import errors
from lorafleet_inference.errors import RequestError
from lorafleet_inference.server import http
from lorafleet_inference.server.chat import Chat
from lorafleet_inference.server.completions import Completions
from lorafleet_inference.server.embeddings import EmbedBody, EmbeddingRequest, LoraxForm, OpenAIForm
from lorafleet_inference.server.keys import OPEN_PATHS
from lorafleet_inference.server.lorax import Compatible, Generate, GenerateStream
from lorafleet_inference.server.lorax_reads import TokenizeInputs
from lorafleet_inference.server.lorax_wire import Embedded, Info, TokenSpan
from lorafleet_inference.server.responses import Responses
from lorafleet_inference.server.routes import MAX_WAIT_SECONDS
from lorafleet_inference.server.surface import Surface
from lorafleet_inference.server.tokens import DetokenizeRequest, TokenizeChat, TokenizeText
from lorafleet_inference.server.wire import Detokenized, EmbeddingList, Health, Model, ModelList, Tokenized, Version

Errors = frozenset[type[RequestError]]
Form = Literal["OpenAI", "LoRAX"]
Schema = dict[str, Any]

ALL_ERRORS: Final[Errors] = frozenset(
    kind
    for module in (errors, http)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, RequestError)
)
_GENERATES: Final = ALL_ERRORS
_LEASES: Final = ALL_ERRORS - {errors.OutputNotFinite, errors.EngineFailure}
_LOADED: Final = frozenset({errors.EngineNotReady})


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of the path, the query or the head of a request."""

    name: str
    place: Literal["path", "query", "header"]
    schema: Schema
    meaning: str


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer of server-sent events."""

    event: type[msgspec.Struct]
    """What each has as its data."""
    tells_done: bool
    """Whether `data: [DONE]` follows the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: Literal["get", "head", "post"] = "get"
    path: str
    summary: str
    tag: Literal["OpenAI", "LoRAX", "vLLM", "Operations"]
    takes: tuple[type[BaseModel], ...] = ()
    """Its body has one of these forms."""
    parameters: tuple[Parameter, ...] = ()
    answers: tuple[Any, ...] = ()
    """Types of the JSON document that it answers with."""
    media_type: str | None = None
    """Of an answer that is neither JSON nor a stream."""
    stream: Stream | None = None
    errors: Errors = frozenset()
    """Beside those that every operation has."""
    forms: tuple[Form, ...] = ("OpenAI",)
    """Of its errors."""
    fails: tuple[Any, ...] | None = None
    """Types of a 503 that is no error, but what was asked for; None: there is none."""
    headers: tuple[str, ...] = ()
    """Of its answers, beside those that all have."""

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked for a key."""
        return self.path in OPEN_PATHS or (self.path == COMPATIBLE and self.method != "post")

    @property
    def id(self) -> str:
        """A name that no other has."""
        words = self.path.replace("{", "").replace("}", "").replace("/", " ").replace(".", " ").split()
        return "_".join([self.method, *(words or ["root"])])

    @property
    def has_limits(self) -> bool:
        """Whether a key's limits count it."""
        return self.method == "post" and not self.is_open

    @property
    def leases(self) -> bool:
        """Whether an adapter may be asked for, which answers name then."""
        return errors.RevisionNotFound in self.errors


REVISION: Final = Parameter(
    HEADER_REVISION, "header", {"type": "string"}, "answer with this revision of the adapter, as `name@revision` does"
)


def _generation(surface: type[Surface[Any]], summary: str, tag: Literal["OpenAI", "LoRAX"]) -> Operation:
    """Return the operation of a route that generates."""
    tells_done = surface.tells_done and not surface.names_events
    return Operation(
        method="post",
        path=surface.path,
        summary=summary,
        tag=tag,
        takes=(surface.reads,),
        parameters=(REVISION,),
        answers=() if surface.writes is None else (surface.writes,),
        stream=None if surface.streams_as is None else Stream(surface.streams_as, tells_done),
        errors=_GENERATES,
        forms=(tag,),
        headers=surface.answer_headers,
    )


def _health(path: str) -> Operation:
    summary = "Whether the process and its engine live"
    return Operation(path=path, summary=summary, tag="Operations", answers=(Health,), fails=(Health,))


def _ping(method: Literal["get", "post"]) -> Operation:
    return Operation(method=method, path="/ping", summary="As /health, without a body", tag="vLLM", fails=())


_NAME: Final = Parameter("name", "path", {"type": "string", "minLength": 1}, "a served name, slashes as they are")
_AFTER: Final = Parameter("after", "query", {"type": "integer", "minimum": 0}, "wait while this generation is current")
_BOOT: Final = Parameter("boot_id", "query", {"type": "string"}, "the boot that the generation is of")
_WAIT: Final = Parameter(
    "wait_seconds", "query", {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS}, "for at most so long"
)

OPERATIONS: Final = (
    _generation(Chat, "The next message of a chat", "OpenAI"),
    _generation(Completions, "Continuations of prompts", "OpenAI"),
    _generation(Responses, "The answer to items, nothing of which is kept", "OpenAI"),
    Operation(
        method="post",
        path=OpenAIForm.path,
        summary="Vectors of texts",
        tag="OpenAI",
        takes=(EmbeddingRequest,),
        parameters=(REVISION,),
        answers=(EmbeddingList,),
        errors=_GENERATES,
    ),
    Operation(path="/v1/models", summary="Models that answer", tag="OpenAI", answers=(ModelList,), errors=_LOADED),
    Operation(
        path="/v1/models/{name}",
        summary="One model",
        tag="OpenAI",
        parameters=(_NAME,),
        answers=(Model,),
        errors=_LOADED | {errors.ModelNotFound},
    ),
    Operation(
        method="post",
        path="/tokenize",
        summary="The tokens of a prompt; with `inputs` as LoRAX has it, else as vLLM has it",
        tag="vLLM",
        takes=(TokenizeText, TokenizeChat, TokenizeInputs),
        parameters=(REVISION,),
        answers=(Tokenized, list[TokenSpan]),
        errors=_LEASES,
        forms=("OpenAI", "LoRAX"),
    ),
    Operation(
        method="post",
        path="/detokenize",
        summary="The text of tokens",
        tag="vLLM",
        takes=(DetokenizeRequest,),
        parameters=(REVISION,),
        answers=(Detokenized,),
        errors=_LEASES,
    ),
    _generation(Compatible, "A prompt's continuation, whole or streamed as `stream` says", "LoRAX"),
    _generation(Generate, "A prompt's continuation", "LoRAX"),
    _generation(GenerateStream, "A prompt's continuation, token by token", "LoRAX"),
    Operation(
        method="post",
        path=LoraxForm.path,
        summary="The vector of a text",
        tag="LoRAX",
        takes=(EmbedBody,),
        parameters=(REVISION,),
        answers=(Embedded,),
        errors=_GENERATES,
        forms=("LoRAX",),
    ),
    Operation(
        path=INFO,
        summary="What the server is",
        tag="LoRAX",
        answers=(Info,),
        errors=_LOADED | {errors.ModelForbidden},
        forms=("LoRAX",),
    ),
    _health("/health"),
    _health(COMPATIBLE),
    _ping("get"),
    _ping("post"),
    Operation(
        path="/ready",
        summary="Whether requests are answered",
        tag="Operations",
        answers=(Health,),
        fails=(Health,),
    ),
    Operation(path="/version", summary="Which version answers", tag="vLLM", answers=(Version,)),
    Operation(path="/metrics", summary="Metrics of Prometheus", tag="Operations", media_type="text/plain"),
    Operation(
        path="/v1/routes",
        summary="What a gateway has to know of this pod, as a long poll",
        tag="Operations",
        parameters=(_AFTER, _BOOT, _WAIT),
        answers=(Routes,),
        errors=_LOADED | {errors.InvalidValue},
    ),
    Operation(path=OPENAPI, summary="This document", tag="Operations", answers=(dict[str, Any],)),
)
