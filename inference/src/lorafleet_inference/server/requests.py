"""OpenAI requests as pydantic reads them: null is absent, types are strict, ranges are checked, other fields are judged."""

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints, model_validator

from lorafleet_inference.adapters.ad_hoc import Wish
from lorafleet_inference.config import MAX_DRAFT_TOKENS
from lorafleet_inference.engine.messages import MAX_LOGPROBS
from lorafleet_inference.errors import UnsupportedParameter
from lorafleet_inference.server.fields import REFUSING, FieldPolicy
from lorafleet_inference.server.merged_fields import MergedAdapters
from lorafleet_inference.server.reading import read_json
from lorafleet_inference.server.strict import Listed, Strict
from lorafleet_inference.server.structured import FormFields
from lorafleet_inference.server.tools import MAX_TOOLS, ToolCall, ToolFields, check_arguments
from lorafleet_inference.text.conversation import RESERVED

MAX_CHOICES = 128
MAX_PROMPTS = 256
MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = MAX_LOGPROBS
MAX_BIASES = 1024
MAX_ALLOWED_TOKENS = 4096
MAX_BAD_WORDS = 128
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_CHARS = 1 << 17
WHOLE_CONTEXT = -1
"""`truncate_prompt_tokens` that means as many as fit."""
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of /v1/completions."""
INT64 = 1 << 63

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
"""A token id as the name of a JSON field."""
BadWord = Annotated[str, StringConstraints(pattern=r"\S", max_length=128)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _few(biases: Any) -> Any:
    """Look at the number first: each bias that is wrong becomes an error of its own."""
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} biases, not {len(biases)}")
    return biases


class TextPart(Strict):
    """A content part; only text is understood."""

    type: str
    text: str = ""


UNSUPPORTED_OF_MESSAGES = frozenset({"function_call", "audio", "refusal"})
"""Fields of messages that mean something, and cannot be honoured."""
PASSED_OF_MESSAGES = frozenset({"provider_specific_fields"})
"""What LiteLLM adds to answers for itself, and sends back with the conversation."""
EMPTY: tuple[JsonValue, ...] = ([], {}, "")
"""Values with which a field that messages do not have means nothing."""


class RequestMessage(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Listed[TextPart] = ""
    name: str | None = None
    tool_calls: Annotated[Listed[ToolCall], Field(max_length=MAX_TOOLS)] = []
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _fields_are_of_the_role(self) -> Self:
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id: a message of a tool names the call that it answers")
        for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool"), ("reasoning_content", "assistant")):
            if getattr(self, name) and self.role != role:
                raise ValueError(f"{name}: only messages of role {role} have it")
        return self

    def for_template(self, index: int, policy: FieldPolicy = REFUSING) -> dict[str, Any]:
        """Return what the chat template sees; parts stay parts, `developer` is `system`.

        Raises:
            UnsupportedParameter: a part that is not text, a message of role `function`, or an unknown field.
        """
        where = f"messages[{index}]"
        if self.role == "function":
            raise UnsupportedParameter(
                "messages of role 'function' are not supported; 'tool' is", param=f"{where}.role"
            )
        for name, value in self.others.items():
            if name in PASSED_OF_MESSAGES or value in EMPTY:
                continue
            if name in UNSUPPORTED_OF_MESSAGES:
                raise UnsupportedParameter(f"{name!r} of messages is not supported", param=f"{where}.{name}")
            policy.meet(name, of="messages", path=f"{where}.{name}")
        message = {"role": "system" if self.role == "developer" else self.role, "content": self._content(where)}
        given = {name: getattr(self, name) for name in ("name", "tool_call_id", "reasoning_content")}
        message |= {name: value for name, value in given.items() if value is not None}
        if self.tool_calls:
            calls = enumerate(self.tool_calls)
            message["tool_calls"] = [call.for_template(f"{where}.tool_calls[{number}]") for number, call in calls]
        return message

    def _content(self, where: str) -> str | list[dict[str, str]]:
        if isinstance(self.content, str):
            return self.content
        for number, part in enumerate(self.content):
            if part.type != "text":
                raise UnsupportedParameter(
                    f"content parts of type {part.type!r} are not supported", param=f"{where}.content[{number}].type"
                )
        return [{"type": "text", "text": part.text} for part in self.content]


class StreamOptions(Strict):
    """`include_obfuscation` has no effect on the text and passes."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class GenerationRequest(FormFields, Strict):
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
    logit_bias: Annotated[dict[TokenKey, Bias], BeforeValidator(_few)] = {}
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED_TOKENS)] = []
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)] = []
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = []
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_STRINGS)] = []
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    truncate_prompt_tokens: Annotated[int, Field(ge=WHOLE_CONTEXT, lt=1 << 31)] | None = None
    add_special_tokens: bool = False
    priority: Annotated[int, Field(ge=-INT64, lt=INT64)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] = ""
    num_speculative_tokens: Annotated[int, Field(ge=0, le=MAX_DRAFT_TOKENS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs comes with the whole answer only; leave out stream")
        return self

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens: -1, or at least 1")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError("best_of: at least n")
        if self.is_ranked and self.stream:
            raise ValueError("best_of: more than n cannot be streamed, as the best is known at the end only")
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
    def continuous_usage(self) -> bool:
        """Whether each event of a stream has the usage of its choice so far."""
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def num_sequences(self) -> int:
        """Sequences that are computed for each prompt."""
        return self.n if self.best_of is None else self.best_of

    @property
    def is_ranked(self) -> bool:
        """Whether only the best ones of them are shown."""
        return self.num_sequences > self.n

    @property
    def num_prompt_logprobs(self) -> int | None:
        """As `num_logprobs`, of the prompt."""
        return self.prompt_logprobs

    @property
    def merge(self) -> MergedAdapters | None:
        """Adapters that the request wants merged, in the place of `model`."""
        return None

    @property
    def wish(self) -> Wish | None:
        """Where `model` is to be found if nothing of that name is known, and that may be asked for."""
        return None

    @property
    @abstractmethod
    def max_new_tokens(self) -> int | None:
        """Tokens of the answer; None: as many as fit."""

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """None: no log-probabilities; else how many of the most likely tokens beside the chosen one."""


class ChatRequest(ToolFields, GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[Listed[RequestMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    documents: Annotated[list[dict[str, JsonValue]], Field(max_length=MAX_DOCUMENTS, fail_fast=True)] = []
    chat_template: Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARS)] | None = None
    chat_template_kwargs: dict[str, JsonValue] = {}
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_arguments(call for message in self.messages for call in message.tool_calls)
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message: true does not go with add_generation_prompt: true")
        if self.callable_tools and self.form_field is not None:
            raise ValueError(f"{self.form_field}: does not go with tools; tool_choice: none leaves them out")
        reserved = RESERVED.intersection(self.chat_template_kwargs)
        if reserved:
            raise ValueError(f"chat_template_kwargs: {min(reserved)!r} is a field of the request, not a variable")
        return self

    @property
    def opens_turn(self) -> bool:
        """Whether the prompt ends with the beginning of the assistant's message."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    @property
    def variables(self) -> dict[str, JsonValue]:
        """What the chat template may read beside the messages."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **self.chat_template_kwargs}

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
    max_tokens: Annotated[int, Field(ge=0)] = DEFAULT_COMPLETION_TOKENS
    echo: bool = False
    suffix: str = ""
    add_special_tokens: bool = True
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _some_prompt(self) -> Self:
        if isinstance(self.prompt, list) and not 1 <= len(self.prompts) <= MAX_PROMPTS:
            raise ValueError(f"prompt: from 1 to {MAX_PROMPTS} prompts")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise ValueError("max_tokens: at least 1, or 0 where echo or prompt_logprobs show the prompt")
        if self.suffix and self.echo:
            raise ValueError("suffix: does not go with echo")
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

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Of an echo as many as of the answer."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((one for one in wanted if one is not None), default=None)


def parse_chat(body: bytes, policy: FieldPolicy = REFUSING) -> ChatRequest:
    """Read a chat request; `policy` says what is done with unknown fields.

    Raises:
        RequestError: InvalidValue or UnsupportedParameter, with the field in `param`.
    """
    return read_request(ChatRequest, body, policy)


def parse_completion(body: bytes, policy: FieldPolicy = REFUSING) -> CompletionRequest:
    """Read a completion request; `policy` says what is done with unknown fields.

    Raises:
        RequestError: InvalidValue or UnsupportedParameter, with the field in `param`.
    """
    return read_request(CompletionRequest, body, policy)


RequestT = TypeVar("RequestT", bound=GenerationRequest)


def read_request(kind: type[RequestT], body: bytes, policy: FieldPolicy) -> RequestT:
    """Read a request that generates.

    Raises:
        RequestError: InvalidValue or UnsupportedParameter, with the field in `param`.
    """
    request = read_json(kind, body)
    policy.judge(request.others)
    if request.stream_options is not None:
        for name in request.stream_options.others:
            policy.meet(name, of="stream_options", path=f"stream_options.{name}")
    return request
