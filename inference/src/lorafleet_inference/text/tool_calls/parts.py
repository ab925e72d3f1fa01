"""Parts of an answer in which tools may be called, and what the parsers of all notations share."""

import json
import re
from dataclasses import dataclass
from enum import Enum, auto

ARGUMENTS = ("arguments", "parameters")
_IN_STRING = re.compile(r'["\\]')
_BARE_END = re.compile(r'["{}\[\],\s]')
_STRUCTURE = re.compile(r'["{}\[\]]')


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """A call's arguments go on: JSON as the model wrote it."""

    index: int
    text: str


Part = Said | Called | Argued


class _At(Enum):
    OPEN = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()


class ValueReader:
    """Reads one JSON value, as far as finding its end needs. Each character costs the same, however long the value is."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.first = ""
        """Its first character; empty before it has begun."""
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        """What was taken so far."""
        return "".join(self._pieces)

    def push(self, text: str, begin: int = 0) -> int:
        """Take in a text from `begin` on, up to the value's end; return where that is, or the text's end."""
        at = begin
        while at < len(text) and not self.done:
            if self._in_string:
                at = self._through_string(text, at)
            elif self._depth == 0 and (self.first or at > begin) and (text[at] in ",}]" or text[at].isspace()):
                self.done = True
            else:
                at = self._through_structure(text, at)
        if at > begin:
            self.first = self.first or text[begin]
            self._pieces.append(text[begin:at])
        return at

    def _through_string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        if found[0] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.done = self._depth == 0
        return found.end()

    def _through_structure(self, text: str, at: int) -> int:
        char = text[at]
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.done = self._depth <= 0
        else:
            found = (_STRUCTURE if self._depth else _BARE_END).search(text, at + 1)
            return len(text) if found is None else found.start()
        return at + 1


class CallReader:
    """Reads one `{"name": …, "arguments": …}`, in either order, and hands its arguments on as they come."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._at = _At.OPEN
        self._key = ValueReader()
        self._key_name: str | None = None
        self._value = ValueReader()
        self._name: str | None = None
        self._held: list[str] = []
        """Arguments that came before the name, or are a text whose end is not there yet."""
        self._pieces: list[str] = []
        self.done = False
        self.failed = False
        """It is no call. What is in `raw` was meant as text, unless a part was returned."""

    @property
    def raw(self) -> str:
        """What was taken so far."""
        return "".join(self._pieces)

    @property
    def has_begun(self) -> bool:
        """Whether the call was told of."""
        return self._name is not None

    def push(self, text: str) -> tuple[list[Part], int]:
        """Take in text up to the call's end; return parts, and how many characters were taken."""
        parts: list[Part] = []
        at = 0
        while at < len(text) and not (self.done or self.failed):
            at = self._push(text, at, parts)
        self._pieces.append(text[:at])
        return _joined(parts), at

    def _push(self, text: str, at: int, parts: list[Part]) -> int:
        """Take in some characters from `at` on; return where they end."""
        char = text[at]
        match self._at:
            case _At.OPEN:
                if char == "{":
                    self._at = _At.KEY
                else:
                    self.failed = not char.isspace()
            case _At.KEY:
                if char == '"':
                    self._at, self._key = _At.IN_KEY, ValueReader()
                    self._key.push(char)
                elif char == "}":
                    self._end()
                else:
                    self.failed = not (char.isspace() or char == ",")
            case _At.IN_KEY:
                at = self._key.push(text, at)
                if self._key.done:
                    self._at, self._key_name = _At.COLON, _text_of(self._key.text)
                return at
            case _At.COLON:
                if char == ":":
                    self._at, self._value = _At.VALUE, ValueReader()
                else:
                    self.failed = not char.isspace()
            case _At.VALUE if char.isspace():
                pass
            case _At.VALUE | _At.IN_VALUE:
                self._at = _At.IN_VALUE
                return self._push_value(text, at, parts)
        return at + 1

    def _push_value(self, text: str, at: int, parts: list[Part]) -> int:
        end = self._value.push(text, at)
        key, is_text = self._key_name, self._value.first == '"'
        if end > at and key in ARGUMENTS:
            if self._name is None or is_text:
                self._held.append(text[at:end])
            else:
                parts.append(Argued(self._index, text[at:end]))
        if not self._value.done:
            return end
        self._at = _At.KEY
        if key == "name":
            name = _text_of(self._value.text)
            if name is None or self._name is not None:
                self.failed = True
                return end
            self._name = name
            parts.append(Called(self._index, name))
        if self._held and self._name is not None and (key == "name" or is_text):
            held = "".join(self._held)
            # some models write the arguments as a text that holds JSON
            inner = _text_of(held) if held[0] == '"' else None
            parts.append(Argued(self._index, held if inner is None else inner))
            self._held = []
        return end

    def _end(self) -> None:
        self.done = self._name is not None
        self.failed = self._name is None


def _text_of(literal: str) -> str | None:
    if not literal.startswith('"'):
        return None  # a model may nest lists without end
    try:
        return str(json.loads(literal))
    except ValueError:
        return None


def _joined(parts: list[Part]) -> list[Part]:
    """Return them with neighbouring arguments of one call in one part."""
    joined: list[Part] = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, Argued) and isinstance(before, Argued) and before.index == part.index:
            joined[-1] = Argued(part.index, before.text + part.text)
        else:
            joined.append(part)
    return joined


def num_kept(text: str, marker: str) -> int:
    """Return how many characters at the end of a text may begin a marker that is not complete yet."""
    most = min(len(text), len(marker) - 1)
    return next((count for count in range(most, 0, -1) if text.endswith(marker[:count])), 0)
