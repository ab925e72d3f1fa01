"""Calls as Hermes and Qwen write them: `<tool_call>{"name": …, "arguments": …}</tool_call>`, one after the other."""

from collections.abc import Sequence

from lorafleet_inference.text.tool_calls.notation import CallParser, Literal, Notation, Tool, call_rules
from lorafleet_inference.text.tool_calls.parts import CallReader, Part, Said, num_kept

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes(Notation):
    """Tags around each call."""

    name = "hermes"
    marker = BEGIN

    def is_of(self, template: str) -> bool:
        """The template shows the tags to the model."""
        return BEGIN in template

    def parser(self) -> CallParser:
        """Return who reads one answer."""
        return _HermesParser()

    def calls(self, tools: Sequence[Tool], literal: Literal, *, several: bool) -> str:
        """One tag a call, each on lines of its own."""
        more = f' ("\\n" {literal(BEGIN)} one)*' if several else ""
        rule = f'calls: one{more}\none: "\\n" call "\\n" {literal(END)}\n'
        return rule + call_rules(tools, "arguments")


class _HermesParser(CallParser):
    def __init__(self) -> None:
        self._text = ""
        self._reader: CallReader | None = None
        self._closing = False
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        self._text += text
        parts: list[Part] = []
        while self._text and self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        reader, text = self._reader, self._text
        self._reader, self._text = None, ""
        if reader is not None and not reader.has_begun:
            text = BEGIN + reader.raw + text
        elif reader is not None or self._closing:
            text = ""
        return [Said(text)] if text else []

    def _step(self, parts: list[Part]) -> bool:
        """Go on by one stretch; return whether more can be done."""
        if self._reader is not None:
            return self._read(parts, self._reader)
        if self._closing:
            return self._close()
        before, found, after = self._text.partition(BEGIN)
        if found:
            # what stands between two calls is spacing
            if before and not (self._num_calls and before.isspace()):
                parts.append(Said(before))
            self._text, self._reader = after, CallReader(self._num_calls)
            return True
        if self._num_calls and self._text.isspace():
            return False
        kept = num_kept(self._text, BEGIN)
        shown = self._text[: len(self._text) - kept]
        if shown and not (self._num_calls and shown.isspace()):
            parts.append(Said(shown))
            self._text = self._text[len(shown) :]
        return False

    def _read(self, parts: list[Part], reader: CallReader) -> bool:
        found, num_taken = reader.push(self._text)
        parts += found
        self._text = self._text[num_taken:]
        if reader.failed and not reader.has_begun:
            parts.append(Said(BEGIN + reader.raw))
            self._reader = None
        elif reader.done or reader.failed:
            self._num_calls += 1
            self._reader, self._closing = None, True
        return bool(self._text)

    def _close(self) -> bool:
        """Pass over the spacing and the end tag behind a call."""
        bare = self._text.lstrip()
        if bare.startswith(END):
            self._text, self._closing = bare[len(END) :], False
            return True
        if END.startswith(bare):
            return False  # not complete yet
        self._closing = False
        return True
