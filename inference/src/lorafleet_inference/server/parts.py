"""From the text of one choice of a chat to reasoning, content and calls of tools, whole or as it grows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from lorafleet_inference.server.wire import (
    CalledFunctionDelta,
    ChatDelta,
    ChatMessage,
    Finish,
    FunctionCall,
    MessageCall,
    MessageCallDelta,
)
from lorafleet_inference.text.reasoning import ReasoningSplitter, Tags, Thought
from lorafleet_inference.text.tool_calls import Notation
from lorafleet_inference.text.tool_calls.parts import Argued, Called, Part, Said

PIECE_CHARS: Final = 1024
"""Read at a time: parsers copy what they have not read yet, once a call."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an answer may have beside content, and what it is read with. By default it is content alone."""

    notation: Notation | None = None
    """Of calls of tools."""
    tags: Tags | None = None
    """Of reasoning."""
    is_reasoning: bool = False
    """Whether the prompt ends inside of reasoning."""
    is_call_named: bool = False
    """Whether the request names the tool that is called: OpenAI's answer says `stop` then."""

    def __bool__(self) -> bool:
        """Whether there is anything to tell apart."""
        return self.notation is not None or self.tags is not None

    def reader(self) -> "PartReader":
        """Return who reads one choice."""
        return PartReader(self)

    def message(self, text: str, finish: Finish) -> tuple[ChatMessage, Finish]:
        """Return the message that a whole text is, and why it ended."""
        if not self:
            return ChatMessage(text), finish
        reader = self.reader()
        said, thought, calls = list[str](), list[str](), list[tuple[str, str, list[str]]]()
        for part in (*reader.push(text), *reader.finish()):
            match part:
                case Said(some):
                    said.append(some)
                case Thought(some):
                    thought.append(some)
                case Called(_, name):
                    calls.append((reader.call_id(len(calls)), name, []))
                case Argued(index, some):
                    calls[index][2].append(some)
        message = ChatMessage(
            "".join(said) or (None if calls else ""),
            reasoning_content="".join(thought) or msgspec.UNSET,
            tool_calls=[MessageCall(call_id, FunctionCall(name, "".join(pieces))) for call_id, name, pieces in calls]
            or msgspec.UNSET,
        )
        return message, reader.finish_of(finish)


class PartReader:
    """Reads one choice as it grows."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._calls = parts.notation.parser() if parts.notation is not None else None
        self._reasoning = ReasoningSplitter(parts.tags, inside=parts.is_reasoning) if parts.tags is not None else None
        self._ids: list[str] = []

    def push(self, text: str) -> list[Thought | Part]:
        """Take in more text; return what it completes."""
        parts: list[Thought | Part] = []
        for begin in range(0, len(text), PIECE_CHARS):
            parts += self._push(text[begin : begin + PIECE_CHARS])
        return parts

    def _push(self, text: str) -> list[Thought | Part]:
        first: Sequence[Thought | Part] = self._reasoning.push(text) if self._reasoning else [Said(text)]
        return self._through_calls(first)

    def finish(self) -> list[Thought | Part]:
        """Return what was kept back: no more text comes."""
        parts = self._through_calls(self._reasoning.finish() if self._reasoning else [])
        return [*parts, *(self._calls.finish() if self._calls is not None else [])]

    def _through_calls(self, parts: Iterable[Thought | Part]) -> list[Thought | Part]:
        if self._calls is None:
            return [part for part in parts if not isinstance(part, Said) or part.text]
        found: list[Thought | Part] = []
        for part in parts:
            found += self._calls.push(part.text) if isinstance(part, Said) else [part]
        self._ids += [
            self._parts.notation.call_id() for part in found if isinstance(part, Called) and self._parts.notation
        ]
        return found

    def call_id(self, index: int) -> str:
        """Return the id of a call that was told of."""
        while len(self._ids) <= index and self._parts.notation is not None:
            self._ids.append(self._parts.notation.call_id())
        return self._ids[index]

    def finish_of(self, finish: Finish) -> Finish:
        """Return why the choice ended, as clients are told."""
        return "tool_calls" if finish == "stop" and self._ids and not self._parts.is_call_named else finish

    def deltas(self, parts: Iterable[Thought | Part]) -> list[ChatDelta]:
        """Return what a stream shows of parts."""
        return [self._delta(part) for part in parts]

    def _delta(self, part: Thought | Part) -> ChatDelta:
        match part:
            case Said(text):
                return ChatDelta(content=text)
            case Thought(text):
                return ChatDelta(reasoning_content=text)
            case Called(index, name):
                opened: Any = {"id": self.call_id(index), "type": "function"}
                return ChatDelta(tool_calls=[MessageCallDelta(index, CalledFunctionDelta("", name), **opened)])
            case Argued(index, text):
                return ChatDelta(tool_calls=[MessageCallDelta(index, CalledFunctionDelta(text))])


CONTENT_ALONE = Parts()
