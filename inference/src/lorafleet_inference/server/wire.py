"""Bodies of OpenAI's answers, as structs that encode fast: a stream makes one for every token."""

from typing import Literal

import msgspec

Finish = Literal["stop", "length", "tool_calls"]


OptionalIds = list[int] | msgspec.UnsetType
"""Token ids, where `return_token_ids` asks for them."""


class CachedTokens(msgspec.Struct, frozen=True):
    """Part of `usage`."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request: each prompt counts once, the tokens of all choices add up."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopLogprob(msgspec.Struct, frozen=True):
    """One likely token; `bytes` are its UTF-8 bytes, which may be half a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token of the answer with the most likely ones at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a chat choice."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a completion choice; offsets count characters from the start of its text.

    None for the first token of an echoed prompt, which follows nothing.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptToken(msgspec.Struct, frozen=True):
    """What the model thought of a token at a place of the prompt."""

    logprob: float
    decoded_token: str


PromptLogprobs = list[msgspec.Raw]
"""For each token of the prompt, by token id: itself and the most likely ones. `null` for the first, which follows nothing.

Each is JSON already: all of a long prompt at once would keep Python's lock from everybody else.
"""


class FunctionCall(msgspec.Struct, frozen=True):
    """Which function is called with what: `arguments` is JSON as the model wrote it."""

    name: str
    arguments: str


class MessageCall(msgspec.Struct, frozen=True):
    """A call of a tool."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True):
    """The assistant's message. Without `content` it only calls."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[MessageCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    token_ids: OptionalIds = msgspec.UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    """JSON answer of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_token_ids: OptionalIds = msgspec.UNSET


class CalledFunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Part of a call; the name stands in its first one."""

    arguments: str
    name: str | None = None


class MessageCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a call; id and type stand in its first one."""

    index: int
    function: CalledFunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageCallDelta] | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """One choice of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    token_ids: OptionalIds = msgspec.UNSET


class ChatChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of a chat stream. `usage` stands in the last one, or in all of them, where it was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"]
    usage: Usage | None = None
    prompt_token_ids: OptionalIds = msgspec.UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer, or of a stream what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    token_ids: OptionalIds = msgspec.UNSET
    prompt_token_ids: OptionalIds = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True, omit_defaults=True):
    """JSON answer of /v1/completions, and each event of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"]
    usage: Usage | None = None


class Model(msgspec.Struct, frozen=True):
    """One entry of /v1/models; `root` is where it comes from, `parent` the base of an adapter."""

    id: str
    created: int
    root: str
    parent: str | None
    revision: str | None
    max_model_len: int | None
    """None: a gateway says it that has not heard from a pod yet."""
    invocation_tokens: list[int] | None = None
    """Of an activated adapter: on what tokens of a prompt it begins."""
    object: Literal["model"] = "model"
    owned_by: Literal["lorafleet"] = "lorafleet"


class ModelList(msgspec.Struct, frozen=True):
    """Answer of /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one input."""

    index: int
    embedding: list[float] | str
    """Its numbers, or in base64 their bytes: float32, little endian."""
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """What a request has used."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    """Answer of /v1/embeddings."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Tokenized(msgspec.Struct, frozen=True):
    """Answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None
    """As log-probabilities write them."""


class Detokenized(msgspec.Struct, frozen=True):
    """Answer of /detokenize."""

    prompt: str


class Version(msgspec.Struct, frozen=True):
    """Answer of /version."""

    version: str


class Health(msgspec.Struct, frozen=True):
    """Answer of /health and /ready."""

    status: str
    reason: str = ""
