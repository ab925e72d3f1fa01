"""OpenAI requests as pydantic reads them: null is absent, types are strict, ranges are checked, other fields are judged."""

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.errors import InvalidValue, RequestError, UnsupportedParameter
from lorafleet_inference.server.bodies import check_num_values
from lorafleet_inference.server.fields import refuse_others

MAX_CHOICES = 128
MAX_PROMPTS = 256
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of /v1/completions."""
INT64 = 1 << 63
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Some editors on Windows begin a file with it."""
NO_SEED = -1
"""Clients of other servers write it for no seed."""
LOWEST_TEMPERATURE = 1e-5
"""Dividing logits by less overflows; it is as good as greedy."""

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
"""A token id as the name of a JSON field."""
Bias = Annotated[float, Field(ge=-100, le=100)]
_ItemT = TypeVar("_ItemT")
Listed = Annotated[list[_ItemT], Field(fail_fast=True)]
"""The first item that is wrong is enough: a client may send millions."""


class _Strict(BaseModel):
    """A JSON object in which null means absent."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @property
    def others(self) -> dict[str, JsonValue]:
        """Fields that this model does not know."""
        return self.model_extra or {}


class TextPart(_Strict):
    """A content part; only text is understood."""

    type: str
    text: str = ""


class RequestMessage(_Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Listed[TextPart] = ""
    name: str | None = None

    def for_template(self, index: int) -> dict[str, Any]:
        """Return what the chat template sees; parts stay parts, `developer` is `system`.

        Raises:
            UnsupportedParameter: a part that is not text, a tool's message, or an unknown field.
        """
        where = f"messages[{index}]"
        if self.role in ("tool", "function"):
            raise UnsupportedParameter(f"messages of role {self.role!r} are not supported", param=f"{where}.role")
        for name, value in self.others.items():
            if value not in ([], {}, ""):
                raise UnsupportedParameter(f"{name!r} of messages is not supported", param=f"{where}.{name}")
        message = {"role": "system" if self.role == "developer" else self.role, "content": self._content(where)}
        return message if self.name is None else {**message, "name": self.name}

    def _content(self, where: str) -> str | list[dict[str, str]]:
        if isinstance(self.content, str):
            return self.content
        for number, part in enumerate(self.content):
            if part.type != "text":
                raise UnsupportedParameter(
                    f"content parts of type {part.type!r} are not supported", param=f"{where}.content[{number}].type"
                )
        return [{"type": "text", "text": part.text} for part in self.content]


class StreamOptions(_Strict):
    """`include_obfuscation` has no effect on the text and passes."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationRequest(_Strict):
    """What both generation routes share."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_BIASES)] = {}
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = []
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_STRINGS)] = []
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs comes with the whole answer only; leave out stream")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    @abstractmethod
    def max_new_tokens(self) -> int | None:
        """Tokens of the answer; None: as many as fit."""

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """None: no log-probabilities; else how many of the most likely tokens beside the chosen one."""

    def sampling(self, *, max_tokens: int, choice: int, eos_token_ids: tuple[int, ...] = ()) -> SamplingParams:
        """Return how one choice is sampled; `eos_token_ids` are the adapter's own.

        Choice i of a seeded request draws with seed + i; `top_p` 0 is greedy.
        """
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature if self.top_p > 0 and self.temperature > LOWEST_TEMPERATURE else 0.0,
            top_p=self.top_p if self.top_p > 0 else 1.0,
            top_k=self.top_k if self.top_k > 0 else None,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            min_tokens=min(self.min_tokens, max_tokens),
            seed=None if self.seed is None or self.seed == NO_SEED else (self.seed + choice) % INT64,
            stop_token_ids=tuple(self.stop_token_ids),
            eos_token_ids=eos_token_ids,
            ignore_eos=self.ignore_eos,
            num_logprobs=self.num_logprobs,
            # choices of one prompt have the same; the first one's are shown with each
            prompt_logprobs=self.prompt_logprobs if choice == 0 else None,
        )


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[Listed[RequestMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """`max_completion_tokens`, or the older name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """As many alternatives as `top_logprobs` says."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: str | Listed[str] | Listed[TokenId] | Listed[Listed[TokenId]]
    max_tokens: Annotated[int, Field(ge=1)] = DEFAULT_COMPLETION_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _some_prompt(self) -> Self:
        if isinstance(self.prompt, list) and not 1 <= len(self.prompts) <= MAX_PROMPTS:
            raise ValueError(f"prompt: from 1 to {MAX_PROMPTS} prompts")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):  # then all are
            return [self.prompt]
        return list(cast("list[str | list[int]]", self.prompt))

    @property
    def max_new_tokens(self) -> int | None:
        """`max_tokens`."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """`logprobs`."""
        return self.logprobs


def parse_chat(body: bytes) -> ChatRequest:
    """Read a chat request.

    Raises:
        RequestError: InvalidValue or UnsupportedParameter, with the field in `param`.
    """
    return _parse(ChatRequest, body)


def parse_completion(body: bytes) -> CompletionRequest:
    """Read a completion request.

    Raises:
        RequestError: InvalidValue or UnsupportedParameter, with the field in `param`.
    """
    return _parse(CompletionRequest, body)


RequestT = TypeVar("RequestT", bound=GenerationRequest)


def _parse(kind: type[RequestT], body: bytes) -> RequestT:
    check_num_values(body)
    try:
        request = kind.model_validate_json(body.removeprefix(BYTE_ORDER_MARK))
    except ValidationError as error:
        raise _as_request_error(error) from None
    refuse_others(request.others)
    if request.stream_options is not None and request.stream_options.others:
        name = next(iter(request.stream_options.others))
        raise UnsupportedParameter(f"unknown field {name!r} of stream_options", param=f"stream_options.{name}")
    return request


def _as_request_error(error: ValidationError) -> RequestError:
    """Name the first offending field as a client writes it, never its value."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidValue(f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    field = first["loc"][:1]
    first = max((entry for entry in errors if entry["loc"][:1] == field), key=_aptness)
    path = _field_path(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return InvalidValue(f"{path}: {message}" if path else message, param=path or None)


def _aptness(error: ErrorDetails) -> tuple[bool, int]:
    """Return how well a complaint fits: of a union's, one about a value is about the member that was meant, then the deepest."""
    depth = len(_field_path(error["loc"]).replace("[", ".").split("."))
    return not error["type"].endswith("_type"), depth


def _field_path(location: tuple[int | str, ...]) -> str:
    """Return `messages[2].content` for ("messages", 2, "content", …): names of union members are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path:
            path = part
        elif part.isidentifier() and part not in ("str", "int"):
            path += f".{part}"
    return path
