"""Nothing that is asked was learned."""

import hashlib

import pytest
from numerals.split import FIRST_HELD_OUT, NUM_ASKED, NUM_HELD_OUT, asked, held_out, seen
from numerals.truth import WRITERS, numbers


@pytest.mark.parametrize("model", WRITERS)
def test_asked_numbers_are_never_seen_by_any_model(model: str) -> None:
    """The base model learns from every adapter's answers, so one split holds for all."""
    questions = asked(model)
    assert len(set(questions)) == len(questions) == NUM_ASKED
    assert set(questions) <= held_out()
    assert set(questions) <= set(numbers(model))
    assert not set(questions) & {number for other in WRITERS for number in seen(other)}


def test_every_number_is_on_one_side() -> None:
    for model in WRITERS:
        assert set(seen(model)) | (held_out() & set(numbers(model))) == set(numbers(model))
    assert len(held_out()) == NUM_HELD_OUT


@pytest.mark.parametrize("model", WRITERS)
def test_what_follows_from_nothing_else_is_always_learned(model: str) -> None:
    """No rule gives the word for seven."""
    assert {number for number in range(FIRST_HELD_OUT) if number in numbers(model)} <= set(seen(model))


def test_the_split_is_the_one_that_the_weights_were_trained_with() -> None:
    """It follows from the seed alone; another one would ask shipped weights for what they learned."""
    digest = hashlib.sha256(repr(sorted(held_out())).encode()).hexdigest()
    assert digest == "946595f5165ddd29126c58445a79868a686569726c3b338ef51dbc972337e751"
