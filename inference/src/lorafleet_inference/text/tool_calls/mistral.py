"""Calls as Mistral's models write them: `[TOOL_CALLS][{"name": …, "arguments": …}, …]`, and since 2025
`[TOOL_CALLS]name[ARGS]{…}` for each call, with `[CALL_ID]…` before the arguments in some.
"""

import re
from collections.abc import Sequence

from lorafleet_inference.text.tool_calls.notation import CallParser, Literal, Notation, Tool, call_schema, json_rule
from lorafleet_inference.text.tool_calls.parts import Argued, Called, CallReader, Part, Said, ValueReader, num_kept

MARKER, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_HEAD = re.compile(r"\s*(?P<name>[\w.-]+)\s*(\[CALL_ID\]\w*)?(\[ARGS\])?\s*(?=\{)")


class Mistral(Notation):
    """A control token, then calls."""

    name = "mistral"
    marker = MARKER

    def is_of(self, template: str) -> bool:
        """The template writes earlier calls behind the token."""
        return MARKER in template

    def parser(self) -> CallParser:
        """Return who reads one answer."""
        return _MistralParser()

    def calls(self, tools: Sequence[Tool], _: Literal, *, several: bool) -> str:
        """The older form, which the newer models read as well."""
        more = ' (", " call)*' if several else ""
        rule = f'calls: "[" call{more} "]"\n'
        return rule + json_rule("call", [call_schema(tool, "arguments") for tool in tools])


class _MistralParser(CallParser):
    def __init__(self) -> None:
        self._text = ""
        self._in_calls = False
        self._in_list = False
        self._reader: CallReader | None = None
        self._arguments: ValueReader | None = None
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        self._text += text
        parts: list[Part] = []
        while self._text and self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        text, reader = self._text, self._reader
        self._text, self._reader = "", None
        if reader is not None and not reader.has_begun:
            text = reader.raw + text
        elif reader is not None or self._arguments is not None or self._num_calls:
            text = ""
        if self._in_calls and not self._num_calls and self._arguments is None and (reader is None or text):
            text = MARKER + ("[" if self._in_list else "") + text
        return [Said(text)] if text else []

    def _step(self, parts: list[Part]) -> bool:
        if self._reader is not None:
            return self._read(parts, self._reader)
        if self._arguments is not None:
            return self._read_arguments(parts, self._arguments)
        if self._in_calls:
            return self._next()
        before, found, after = self._text.partition(MARKER)
        kept = 0 if found else num_kept(before, MARKER)
        shown = before[: len(before) - kept]
        if shown:
            parts.append(Said(shown))
        self._in_calls = bool(found)
        self._text = after if found else before[len(shown) :]
        return bool(found)

    def _next(self) -> bool:
        """Find where the next call begins."""
        bare = self._text.lstrip()
        if not self._in_list and bare.startswith(MARKER):
            self._text = bare[len(MARKER) :]
            return True
        if not self._in_list and not self._num_calls and bare.startswith("["):
            if MARKER.startswith(bare) and len(bare) > 1:
                return False
            self._in_list, self._text = True, bare[1:]
            return True
        if self._in_list:
            bare = bare.lstrip(", \n\t")
            if bare.startswith("{"):
                self._text, self._reader = bare, CallReader(self._num_calls)
                return True
            self._text = "" if bare.startswith("]") else bare
            return False
        head = _HEAD.match(self._text)
        if head is None:
            return False
        self._called = Called(self._num_calls, head["name"])
        self._text, self._arguments = self._text[head.end() :], ValueReader()
        return True

    def _read(self, parts: list[Part], reader: CallReader) -> bool:
        found, num_taken = reader.push(self._text)
        parts += found
        self._text = self._text[num_taken:]
        if reader.done or (reader.failed and reader.has_begun):
            self._num_calls += 1
            self._reader = None
        elif reader.failed:
            return False
        return bool(self._text)

    def _read_arguments(self, parts: list[Part], value: ValueReader) -> bool:
        if not value.text:
            parts.append(self._called)
        taken = 0
        while taken < len(self._text) and not value.done:
            value.push(self._text[taken])
            taken += 1
        parts.append(Argued(self._num_calls, self._text[:taken]))
        self._text = self._text[taken:]
        if value.done:
            self._num_calls += 1
            self._arguments = None
        return bool(self._text)
