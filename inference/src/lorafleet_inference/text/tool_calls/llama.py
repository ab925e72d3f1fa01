"""Calls as Llama 3 writes them: the whole answer is `{"name": …, "parameters": …}`, or several with `;` between them,
with or without `<|python_tag|>` before.
"""

from collections.abc import Sequence

from lorafleet_inference.text.tool_calls.notation import CallParser, Literal, Notation, Tool, call_rules
from lorafleet_inference.text.tool_calls.parts import CallReader, Part, Said

MARKER = "<|python_tag|>"


class Llama(Notation):
    """Bare JSON."""

    name = "llama"
    marker = MARKER

    def is_of(self, template: str) -> bool:
        """The template asks for JSON with parameters, or writes the tag."""
        return MARKER in template or ('"parameters"' in template and "ipython" in template)

    def parser(self) -> CallParser:
        """Return who reads one answer."""
        return _LlamaParser()

    def calls(self, tools: Sequence[Tool], _: Literal, *, several: bool) -> str:
        """One call, or several in one line."""
        more = ' (";" call)*' if several else ""
        return f"calls: call{more}\n" + call_rules(tools, "parameters")

    def must_call(self, tools: Sequence[Tool], literal: Literal, *, several: bool) -> str:
        """Without the tag, which not every model of the family writes."""
        return f"start: calls\n{self.calls(tools, literal, several=several)}"

    def may_call(self, tools: Sequence[Tool], literal: Literal, *, several: bool) -> str:
        """An answer that begins as a call does is one."""
        text = "TEXT: /[^{](.|\\n)*/\n"
        return f"start: calls | TEXT |\n{text}{self.calls(tools, literal, several=several)}"


class _LlamaParser(CallParser):
    def __init__(self) -> None:
        self._text = ""
        self._raw = ""
        self._is_text = False
        self._begun = False
        self._reader: CallReader | None = None
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        if self._is_text:
            return [Said(text)] if text else []
        self._text += text
        parts: list[Part] = []
        while self._text and not self._is_text and self._step(parts):
            pass
        if self._is_text and self._text:
            parts.append(Said(self._text))
            self._text = ""
        return parts

    def finish(self) -> list[Part]:
        reader = self._reader
        text = self._text if reader is None else reader.raw + self._text
        if self._num_calls or (reader is not None and reader.has_begun):
            text = ""
        self._text, self._reader = "", None
        return [Said(self._raw + text)] if self._raw + text and not self._num_calls else []

    def _step(self, parts: list[Part]) -> bool:
        if self._reader is not None:
            return self._read(parts, self._reader)
        bare = self._text.lstrip()
        if not self._begun:
            if bare.startswith(MARKER):
                self._raw = self._text[: len(self._text) - len(bare) + len(MARKER)]
                self._text, self._begun = bare[len(MARKER) :], True
                return True
            if MARKER.startswith(bare):
                return False
            self._begun = True
        bare = self._text.lstrip("; \n\t" if self._num_calls else None)
        if not bare:
            return False
        if bare.startswith("{"):
            self._raw += "" if self._num_calls else self._text[: len(self._text) - len(bare)]
            self._text, self._reader = bare, CallReader(self._num_calls)
            return True
        self._is_text = True
        self._text = self._raw + self._text if not self._num_calls else bare
        self._raw = ""
        return False

    def _read(self, parts: list[Part], reader: CallReader) -> bool:
        found, num_taken = reader.push(self._text)
        parts += found
        self._text = self._text[num_taken:]
        if reader.done or (reader.failed and reader.has_begun):
            self._num_calls += 1
            self._reader, self._raw = None, ""
        elif reader.failed:
            self._is_text = True
            self._text = self._raw + reader.raw + self._text
            self._reader, self._raw = None, ""
        return bool(self._text)
