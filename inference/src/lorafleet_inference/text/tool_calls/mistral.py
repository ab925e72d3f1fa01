"""Calls as Mistral's models write them: `[TOOL_CALLS][{"name": …, "arguments": …}, …]`, and since 2025
`[TOOL_CALLS]name[ARGS]{…}` for each call, with `[CALL_ID]…` before the arguments in some.
"""

import re
import secrets
import string
from collections.abc import Sequence

from lorafleet_inference.text.tool_calls.notation import CallParser, Literal, Notation, Tool, call_rules
from lorafleet_inference.text.tool_calls.parts import Argued, Called, CallReader, Part, Said, ValueReader, num_kept

MARKER, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_ID_CHARS = string.ascii_letters + string.digits
_HEAD = re.compile(r"(?P<name>[\w.-]++)\s*+(\[CALL_ID\]\w*+)?+(\[ARGS\])?+\s*+(?=\{)")
MAX_HEAD_CHARS = 512
"""Of what stands before the arguments of a call. More is none, and is not looked through again with each token."""


class Mistral(Notation):
    """A control token, then calls."""

    name = "mistral"
    marker = MARKER

    def call_id(self) -> str:
        """Nine letters and digits: the templates of this family refuse others."""
        return "".join(secrets.choice(_ID_CHARS) for _ in range(9))

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
        return rule + call_rules(tools, "arguments")


class _MistralParser(CallParser):
    def __init__(self) -> None:
        self._text = ""
        self._raw = ""
        """What was passed over behind the text and before the first call: if none follows, it was text too."""
        self._in_calls = False
        self._in_list = False
        self._is_list_over = False
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
        reader = self._reader
        text = self._raw + (reader.raw if reader is not None else "") + self._text
        if self._num_calls or self._arguments is not None or (reader is not None and reader.has_begun):
            text = ""
        self._text, self._raw, self._reader = "", "", None
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
        self._in_calls, self._raw = bool(found), found
        self._text = after if found else before[len(shown) :]
        return bool(found)

    def _next(self) -> bool:
        """Find where the next call begins."""
        bare = self._text.lstrip(", \n\t" if self._in_list else None)
        if self._in_list:
            self._is_list_over = self._is_list_over or bare.startswith("]")
            if self._is_list_over:
                self._pass_over(len(self._text))
                return False
            if bare.startswith("{"):
                self._pass_over(len(self._text) - len(bare))
                self._reader = CallReader(self._num_calls)
                return True
            return False
        if bare.startswith(MARKER):
            self._pass_over(len(self._text) - len(bare) + len(MARKER))
            return True
        if MARKER.startswith(bare):
            return False  # not complete yet
        if not self._num_calls and bare.startswith("["):
            self._pass_over(len(self._text) - len(bare) + 1)
            self._in_list = True
            return True
        head = _HEAD.match(bare, 0, MAX_HEAD_CHARS)
        if head is None:
            return False
        self._called = Called(self._num_calls, head["name"])
        self._pass_over(len(self._text) - len(bare) + head.end())
        self._arguments = ValueReader()
        return True

    def _pass_over(self, num_chars: int) -> None:
        self._raw += self._text[:num_chars]
        self._text = self._text[num_chars:]

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
        if not value.first:
            parts.append(self._called)
        taken = value.push(self._text)
        parts.append(Argued(self._num_calls, self._text[:taken]))
        self._text = self._text[taken:]
        if value.done:
            self._num_calls += 1
            self._arguments = None
        return bool(self._text)
