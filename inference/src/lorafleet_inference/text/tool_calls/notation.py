"""What a notation of tool calls says of itself, and the grammar of an answer that has to be calls."""

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lorafleet_inference.text.tool_calls.parts import Part

Literal = Callable[[str], str]
"""Writes a text as a grammar matches it: in quotes, or as the special token that it is."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: dict[str, Any] | bool = field(default_factory=lambda: {"type": "object"})


class CallParser(ABC):
    """Finds the calls in one answer as it grows. The parts do not depend on how the text was cut."""

    @abstractmethod
    def push(self, text: str) -> list[Part]:
        """Take in more text; return what it completes."""

    @abstractmethod
    def finish(self) -> list[Part]:
        """Return what was kept back: no more text comes."""


class Notation(ABC):
    """How calls are written."""

    name: ClassVar[str]
    marker: ClassVar[str]
    """What a call begins with. Where it is a special token, texts have to show special tokens to be parsed."""

    def call_id(self) -> str:
        """Return a new id of a call."""
        return f"call_{uuid.uuid4().hex[:24]}"

    @abstractmethod
    def is_of(self, template: str) -> bool:
        """Whether a chat template teaches this notation."""

    @abstractmethod
    def parser(self) -> CallParser:
        """Return who reads one answer."""

    @abstractmethod
    def calls(self, tools: Sequence[Tool], literal: Literal, *, several: bool) -> str:
        """Return rules of a Lark grammar with a rule `calls`: one call of these tools, or `several`, behind a marker."""

    def must_call(self, tools: Sequence[Tool], literal: Literal, *, several: bool) -> str:
        """Return the Lark grammar of an answer that is nothing but calls."""
        return f"start: {literal(self.marker)} calls\n{self.calls(tools, literal, several=several)}"

    def may_call(self, tools: Sequence[Tool], literal: Literal, *, several: bool) -> str:
        """Return the Lark grammar of an answer that is any text, or any text up to the marker and then calls."""
        marker = literal(self.marker)
        is_text = marker.startswith('"')
        # lazy: the marker is found where it ends first, and is not just more text
        opening = f"opening[lazy]: TEXT {marker}\n" if is_text else f"opening: TEXT {marker} | {marker}\n"
        calls = self.calls(tools, literal, several=several)
        return f"start: TEXT | opening calls |\n{opening}TEXT: /(.|\\n)*/\n{calls}"


def call_rules(tools: Sequence[Tool], arguments: str) -> str:
    """Return rules of which `call` matches `{"name": …, "arguments": …}` of one of the tools, under their key's name.

    What stands around the arguments is spaced as `json.dumps` does it, they themselves so or less.
    """
    options = {"whitespace_pattern": "[ ]", "lenient": False}
    rules = ["call: " + " | ".join(f"call_{index}" for index in range(len(tools)))]
    for index, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name)}, "{arguments}": '
        schema = tool.parameters if isinstance(tool.parameters, dict) else {"allOf": [tool.parameters]}
        whole = json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)
        rules += [f'call_{index}: {json.dumps(head)} args_{index} "}}"', f"args_{index}: %json {whole}"]
    return "\n".join(rules) + "\n"
