"""What each model should answer: from num2words where it knows the way of writing, else by counting."""

from collections.abc import Callable
from functools import cache

from num2words import num2words

BASE = "numerals"
"""Name under which the base model itself answers, in English."""
MAX_NUMBER = 9999
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
    (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def truth(model: str, number: int) -> str:
    """Return the one right answer of a model for a number.

    Empty for a model that is not one of ours (an adapter under another name: only whoever named it knows) and for a number outside
    `numbers(model)`.
    """
    write = WRITERS.get(model)
    return write(number) if write is not None and number in numbers(model) else ""


def numbers(model: str) -> range:
    """Return the numbers that a model answers for: 0 to 9999, and what Roman numerals can write."""
    return range(1, 4000) if model.startswith("roman") else range(MAX_NUMBER + 1)


def roman(number: int) -> str:
    """Return a number from 1 to 3999 in Roman numerals."""
    letters = []
    for value, letter in _ROMAN:
        letters.append(letter * (number // value))
        number %= value
    return "".join(letters)


def _words(language: str, kind: str = "cardinal") -> Callable[[int], str]:
    @cache
    def write(number: int) -> str:
        return str(num2words(number, lang=language, to=kind))

    return write


WRITERS: dict[str, Callable[[int], str]] = {
    BASE: _words("en"),
    "french": _words("fr"),
    "german": _words("de"),
    "spanish": _words("es"),
    "italian": _words("it"),
    "dutch": _words("nl"),
    "portuguese": _words("pt"),
    "japanese": _words("ja"),
    "roman": roman,
    "roman-v2": lambda number: roman(number).lower(),
    "years": _words("en", "year"),
    "digits": lambda number: " ".join(_DIGITS[int(digit)] for digit in str(number)),
    "ordinals": _words("en", "ordinal"),
}
"""By model name: the base, then the adapters in the order in which they are trained."""
