"""The fields of a chat that are about tools: which there are, whether they have to be called, and earlier calls."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, StringConstraints, model_validator

from lorafleet_common.json_values import MAX_ITEMS, MAX_VALUES, TooManyValues, check_num_values
from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.server.strict import Listed, Strict, parsed
from lorafleet_inference.text.tool_calls import Notation, Tool
from lorafleet_inference.text.tool_calls.notation import Literal as TextLiteral

MAX_TOOLS = 128
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Strict):
    """What may be called. `strict`: its arguments match `parameters`, a JSON schema, also where no call is forced."""

    name: FunctionName
    description: str = ""
    parameters: dict[str, JsonValue] | None = None
    strict: bool = False


class FunctionTool(Strict):
    """The one kind of tool there is."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """Return what the chat template sees: what the client sent, without `strict`."""
        function = self.function.model_dump(exclude={"strict"}, exclude_unset=True)
        return {"type": self.type, "function": {"description": "", **function}}


class FunctionOf(Strict):
    """Names a function."""

    name: str


class NamedTool(Strict):
    """Forces a call of one function."""

    type: Literal["function"]
    function: FunctionOf


class CalledFunction(Strict):
    """Part of an earlier call; `arguments` is JSON."""

    name: str
    arguments: str = "{}"


class ToolCall(Strict):
    """A call that the assistant made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self, where: str) -> dict[str, Any]:
        """Return what the chat template sees: templates write the arguments out as JSON themselves.

        Raises:
            InvalidValue: the arguments are no JSON object.
        """
        try:
            arguments = parsed(self.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidValue(
                "arguments of a tool call are a JSON object, as text", param=f"{where}.function.arguments"
            )
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


def check_arguments(calls: Iterable[ToolCall]) -> None:
    """Check that the arguments of all calls of a request have no more values than a body may: inside of its strings they are
    not counted with it.

    Raises:
        ValueError: they have more.
    """
    try:
        check_num_values(",".join(call.function.arguments for call in calls).encode(errors="surrogatepass"))
    except TooManyValues:
        raise ValueError(
            f"messages: the arguments of tool calls have more than {MAX_VALUES} strings, lists and objects, or more than "
            f"{MAX_ITEMS} items, together"
        ) from None


class ToolFields(BaseModel):
    """The fields of a request."""

    tools: Annotated[Listed[FunctionTool], Field(max_length=MAX_TOOLS)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions have the same name")
        if not names and self.must_call:
            raise ValueError("tool_choice: there are no tools to call")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: there is no tool {self.tool_choice.function.name!r}")
        return self

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def enforces_calls(self) -> bool:
        """Whether a call has to be there, or its arguments have to match a schema."""
        return self.must_call or any(tool.function.strict for tool in self.offered)

    @property
    def offered(self) -> list[FunctionTool]:
        """Tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def callable_tools(self) -> list[Tool]:
        """Tools that the answer may call, with the schemas that its arguments have to match."""
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        return [
            Tool(one.function.name, _schema(one.function, exact=one.function.strict or self.must_call))
            for one in self.offered
            if named in (None, one.function.name)
        ]

    def tool_grammar(self, notation: Notation, literal: TextLiteral) -> str:
        """Return the grammar of the answer, in Lark's notation."""
        made = notation.must_call if self.must_call else notation.may_call
        several = self.parallel_tool_calls and not isinstance(self.tool_choice, NamedTool)
        return made(self.callable_tools, literal, several=several)


def _schema(function: Function, *, exact: bool) -> dict[str, Any]:
    return function.parameters if exact and function.parameters else {"type": "object"}
