"""Text for people: tables, marks, and colour where a terminal shows it."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, TextIO

MAX_CELL: Final = 120
"""Characters of a message in a table; `-o json` has all of them."""


class Colour(StrEnum):
    """What is said of something by its colour, always beside a word."""

    GOOD = "32"
    BAD = "31"
    WAITING = "33"
    FAINT = "2"
    STRONG = "1"


def has_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a stream is a terminal whose user did not forbid colour (https://no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


class Painter:
    """Colours words, or leaves them as they are."""

    def __init__(self, *, is_coloured: bool) -> None:
        self._is_coloured = is_coloured

    def paint(self, text: str, colour: Colour | None) -> str:
        """Return a text in a colour."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self._is_coloured and colour is not None and text else text

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str | tuple[str, Colour | None]]]) -> list[str]:
        """Return the lines of a table; a cell may have a colour."""
        cells = [[(cell, None) if isinstance(cell, str) else cell for cell in row] for row in rows]
        widths = [max([len(column), *(len(row[at][0]) for row in cells)]) for at, column in enumerate(columns)]
        head = "   ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()
        lines = [self.paint(head, Colour.FAINT)]
        for row in cells:
            padded = [
                self.paint(text, colour) + " " * (width - len(text))
                for (text, colour), width in zip(row, widths, strict=True)
            ]
            lines.append("   ".join(padded).rstrip())
        return lines


def plain(text: str, limit: int | None = None) -> str:
    """Return a text on one line, without characters that a terminal would obey; cut where it is too long."""
    words = "".join(c if c.isprintable() else " " for c in text)
    return words if limit is None or len(words) <= limit else f"{words[: limit - 1]}…"
