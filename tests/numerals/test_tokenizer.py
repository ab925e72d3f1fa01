"""The model's tokenizer holds every script, and lays digits out in groups."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numerals.tokenizer import make_tokenizer
from numerals.truth import WRITERS, numbers, truth
from support.pod import NUMERALS
from tokenizers import Tokenizer

SHIPPED = Tokenizer.from_file(str(NUMERALS / "tokenizer.json"))


def pieces(text: str) -> list[str]:
    return [SHIPPED.decode([token]) for token in SHIPPED.encode(text, add_special_tokens=False).ids]


@pytest.mark.parametrize("model", WRITERS)
def test_answers_come_back_as_written(model: str) -> None:
    for number in list(numbers(model))[::17]:
        answer = truth(model, number)
        assert SHIPPED.decode(SHIPPED.encode(answer, add_special_tokens=False).ids) == answer


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    """Bytes are the alphabet; only the text of special tokens is taken for these tokens."""
    if "<" not in text:
        assert SHIPPED.decode(SHIPPED.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", ["7"]),
        ("1987", ["19", "87"]),
        ("987", ["9", "87"]),
        ("12345", ["1", "23", "45"]),
    ],
)
def test_digits_go_in_groups(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_shipped_one_is_the_one_that_is_made() -> None:
    assert make_tokenizer().to_str() == SHIPPED.to_str()
