"""Bodies of the Responses API."""

from typing import Any, Literal

import msgspec

from lorafleet_inference.server.wire import CachedTokens, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True):
    """The text of a message."""

    text: str
    logprobs: list[TokenLogprob] = []
    annotations: tuple[()] = ()
    type: Literal["output_text"] = "output_text"


class ReasoningText(msgspec.Struct, frozen=True):
    """The text of reasoning."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class OutputMessage(msgspec.Struct, frozen=True):
    """What is said."""

    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class OutputReasoning(msgspec.Struct, frozen=True):
    """What is thought."""

    id: str
    status: Status
    content: list[ReasoningText]
    summary: tuple[()] = ()
    type: Literal["reasoning"] = "reasoning"


class OutputCall(msgspec.Struct, frozen=True):
    """A call of a tool."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status
    type: Literal["function_call"] = "function_call"


Output = OutputMessage | OutputReasoning | OutputCall


class ReasoningTokens(msgspec.Struct, frozen=True):
    """Part of `usage`: reasoning is not counted apart."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    total_tokens: int
    output_tokens_details: ReasoningTokens = ReasoningTokens()


class Incomplete(msgspec.Struct, frozen=True):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(msgspec.Struct, frozen=True):
    """The answer, and what of the request OpenAI's has too."""

    id: str
    created_at: int
    model: str
    status: Status
    output: list[Output]
    usage: ResponseUsage | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    object: Literal["response"] = "response"
    error: None = None
    previous_response_id: None = None
    store: Literal[False] = False
    background: Literal[False] = False


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of a stream; which fields it has follows from its type."""

    type: str
    sequence_number: int
    response: Response | None = None
    output_index: int | msgspec.UnsetType = msgspec.UNSET
    item: Output | None = None
    item_id: str | None = None
    content_index: int | msgspec.UnsetType = msgspec.UNSET
    part: OutputText | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET
