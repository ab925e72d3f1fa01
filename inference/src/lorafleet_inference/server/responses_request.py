"""Requests of OpenAI's Responses API, and the chat that they ask for."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from lorafleet_inference.server.requests import MAX_TOP_LOGPROBS, ChatRequest
from lorafleet_inference.server.strict import Listed, Strict
from lorafleet_inference.server.tools import MAX_TOOLS, FunctionName

LOGPROBS = "message.output_text.logprobs"
NOT_OF_CHATS = frozenset(
    {"messages", "n", "best_of", "logprobs", "max_tokens", "max_completion_tokens", "response_format"}
)
NOT_OF_CHATS |= {"reasoning_effort", "echo", "prompt_logprobs", "return_token_ids"}
"""Fields of chats that these requests say in other words, or whose effect these answers have no place for."""
OF_CHATS = frozenset(ChatRequest.model_fields) - NOT_OF_CHATS
"""The others, which mean the same here."""


class InputPart(Strict):
    """Part of a content; only text is understood."""

    type: Literal["input_text", "output_text", "text"]
    text: str


Content = str | Listed[InputPart]


class InputMessage(Strict):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = ""
    type: Literal["message"] = "message"


class InputCall(Strict):
    """An earlier call of a tool."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = "{}"


class InputOutput(Strict):
    """What a tool answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningPart(Strict):
    """Part of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class InputReasoning(Strict):
    """Earlier reasoning, where it was told."""

    type: Literal["reasoning"]
    content: Listed[ReasoningPart] = []


def _kind(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"<{kind}>" if isinstance(kind, str) else None


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[InputCall, Tag("<function_call>")]
    | Annotated[InputOutput, Tag("<function_call_output>")]
    | Annotated[InputReasoning, Tag("<reasoning>")],
    Discriminator(_kind),
]


class ResponseFunction(Strict):
    """A tool. Without `strict` its schema is held to, as OpenAI does here."""

    type: Literal["function"]
    name: FunctionName
    description: str = ""
    parameters: dict[str, JsonValue] | None = None
    strict: bool = True

    def of_chat(self) -> dict[str, Any]:
        """Return it as chats have it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class NamedFunction(Strict):
    """Forces a call of one function."""

    type: Literal["function"]
    name: str


class TextFormat(Strict):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    description: str = ""
    schema_: Annotated[dict[str, JsonValue] | None, Field(alias="schema")] = None
    strict: bool = True


class TextConfig(Strict):
    """How the text is written."""

    format: TextFormat = TextFormat(type="text")
    verbosity: Literal["medium"] = "medium"


class Reasoning(Strict):
    """How much is thought; summaries are made by nobody here."""

    effort: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    summary: Literal["auto", "none"] = "none"


class ResponsesRequest(Strict):
    """`POST /v1/responses`, without what is kept between requests."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: str | Annotated[Listed[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool = False
    text: TextConfig = TextConfig()
    reasoning: Reasoning = Reasoning()
    tools: Annotated[Listed[ResponseFunction], Field(max_length=MAX_TOOLS)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedFunction = "auto"
    parallel_tool_calls: bool = True
    include: Listed[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = []
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    truncation: Literal["disabled", "auto"] = "disabled"
    store: Literal[False] = False
    background: Literal[False] = False
    metadata: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.has_logprobs:
            raise ValueError(f"top_logprobs: include has no {LOGPROBS!r}")
        if self.text.format.type == "json_schema" and self.text.format.schema_ is None:
            raise ValueError("text.format.schema: the type asks for it")
        return self

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities are told."""
        return LOGPROBS in self.include

    def chat(self) -> tuple[dict[str, Any], dict[str, JsonValue]]:
        """Return the fields of the chat that is asked for, and those that no chat knows."""
        fields: dict[str, Any] = {name: value for name, value in self.others.items() if name in OF_CHATS}
        others = {name: value for name, value in self.others.items() if name not in OF_CHATS}
        fields |= {"model": self.model, "messages": self._messages(), "stream": self.stream}
        if self.max_output_tokens is not None:
            fields["max_completion_tokens"] = self.max_output_tokens
        if self.has_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.reasoning.effort is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        if self.truncation == "auto":
            fields.setdefault("truncate_prompt_tokens", -1)
        if self.text.format.type != "text":
            fields["response_format"] = self._format()
        if self.tools:
            fields |= {
                "tools": [tool.of_chat() for tool in self.tools],
                "parallel_tool_calls": self.parallel_tool_calls,
            }
        if isinstance(self.tool_choice, NamedFunction):
            fields["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        elif self.tools or self.tool_choice == "required":
            fields["tool_choice"] = self.tool_choice
        return fields, others

    def _format(self) -> dict[str, Any]:
        form = self.text.format
        if form.type == "json_object":
            return {"type": "json_object"}
        schema = {"name": form.name, "schema": form.schema_, "strict": form.strict}
        return {"type": "json_schema", "json_schema": schema}

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            match item:
                case InputMessage():
                    self._turn(messages, item.role, new=True)["content"] = _content(item.content)
                case InputCall():
                    function = {"name": item.name, "arguments": item.arguments}
                    calls = self._turn(messages, "assistant").setdefault("tool_calls", [])
                    calls.append({"id": item.call_id, "type": "function", "function": function})
                case InputReasoning() if item.content:
                    thought = "".join(part.text for part in item.content)
                    self._turn(messages, "assistant", new=True)["reasoning_content"] = thought
                case InputOutput():
                    messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
        return messages

    def _turn(self, messages: list[dict[str, Any]], role: str, *, new: bool = False) -> dict[str, Any]:
        """Return the message that an item goes into: reasoning, text and calls of one turn are one message."""
        last = messages[-1] if messages else None
        if last is not None and last["role"] == role == "assistant" and not (new and "content" in last):
            return last
        messages.append({"role": role})
        return messages[-1]


def _content(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [{"type": "text", "text": part.text} for part in content]
