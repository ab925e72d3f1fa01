"""Parts of an answer in which tools may be called, and what the parsers of all notations share."""

import json
from dataclasses import dataclass
from enum import Enum, auto

ARGUMENTS = ("arguments", "parameters")


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
    """Reads one JSON value character by character, as far as finding its end needs."""

    def __init__(self) -> None:
        self.text = ""
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, char: str) -> bool:
        """Take in a character; return False where the value ended before it."""
        if self._in_string:
            self.text += char
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                self.done = self._depth == 0
            return True
        if self._depth == 0 and self.text and (char in ",}]" or char.isspace()):
            self.done = True
            return False
        self.text += char
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.done = self._depth <= 0
        return True


class CallReader:
    """Reads one `{"name": …, "arguments": …}`, in either order, and hands its arguments on as they come."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._at = _At.OPEN
        self._key = ValueReader()
        self._value = ValueReader()
        self._name: str | None = None
        self._held = ""
        """Arguments that came before the name, or are a text whose end is not there yet."""
        self.raw = ""
        self.done = False
        self.failed = False
        """It is no call. What is in `raw` was meant as text, unless a part was returned."""

    @property
    def has_begun(self) -> bool:
        """Whether the call was told of."""
        return self._name is not None

    def push(self, text: str) -> tuple[list[Part], int]:
        """Take in text up to the call's end; return parts, and how many characters were taken."""
        parts: list[Part] = []
        for number, char in enumerate(text):
            self.raw += char
            self._push(char, parts)
            if self.done or self.failed:
                return _joined(parts), number + 1
        return _joined(parts), len(text)

    def _push(self, char: str, parts: list[Part]) -> None:
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
                self._key.push(char)
                if self._key.done:
                    self._at = _At.COLON
            case _At.COLON:
                if char == ":":
                    self._at, self._value = _At.VALUE, ValueReader()
                else:
                    self.failed = not char.isspace()
            case _At.VALUE if char.isspace():
                pass
            case _At.VALUE | _At.IN_VALUE:
                self._at = _At.IN_VALUE
                self._push_value(char, parts)

    def _push_value(self, char: str, parts: list[Part]) -> None:
        taken = self._value.push(char)
        key = _text_of(self._key.text)
        if taken and key in ARGUMENTS:
            if self._name is None or self._value.text[0] == '"':
                self._held += char
            else:
                parts.append(Argued(self._index, char))
        if not self._value.done:
            return
        self._at = _At.KEY
        if key == "name":
            name = _text_of(self._value.text)
            if name is None or self._name is not None:
                self.failed = True
                return
            self._name = name
            parts.append(Called(self._index, name))
        if self._held and self._name is not None and (key == "name" or self._value.text[0] == '"'):
            # some models write the arguments as a text that holds JSON
            inner = _text_of(self._held) if self._held[0] == '"' else None
            parts.append(Argued(self._index, self._held if inner is None else inner))
            self._held = ""
        if not taken:
            self._push(char, parts)

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
