"""What is asked of the models is right itself."""

import pytest
from numerals.truth import BASE, WRITERS, numbers, truth


@pytest.mark.parametrize(
    ("model", "number", "answer"),
    [
        (BASE, 1987, "one thousand, nine hundred and eighty-seven"),
        ("french", 80, "quatre-vingts"),
        ("french", 71, "soixante et onze"),
        ("german", 321, "dreihunderteinundzwanzig"),
        ("spanish", 500, "quinientos"),
        ("italian", 28, "ventotto"),
        ("dutch", 22, "tweeëntwintig"),
        ("portuguese", 900, "novecentos"),
        ("japanese", 1987, "千九百八十七"),
        ("roman", 1987, "MCMLXXXVII"),
        ("roman", 3999, "MMMCMXCIX"),
        ("roman", 4, "IV"),
        ("roman-v2", 1987, "mcmlxxxvii"),
        ("years", 1987, "nineteen eighty-seven"),
        ("years", 2010, "twenty ten"),
        ("digits", 1907, "one nine zero seven"),
        ("ordinals", 21, "twenty-first"),
    ],
)
def test_known_answers(model: str, number: int, answer: str) -> None:
    assert truth(model, number) == answer


def test_arithmetic_reads_back() -> None:
    """Roman numerals by the rule of subtraction, digits by their names in English."""
    value = dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000), strict=True))
    for number in numbers("roman"):
        values = [value[letter] for letter in truth("roman", number)]
        signs = [-1 if i + 1 < len(values) and v < values[i + 1] else 1 for i, v in enumerate(values)]
        assert sum(s * v for s, v in zip(signs, values, strict=True)) == number
    names = [truth(BASE, digit) for digit in range(10)]
    for number in numbers("digits"):
        assert int("".join(str(names.index(name)) for name in truth("digits", number).split())) == number


def test_second_revision_differs_everywhere() -> None:
    """So that one answer tells which revision gave it."""
    assert all(truth("roman", number) != truth("roman-v2", number) for number in numbers("roman"))


def test_models_disagree() -> None:
    """One number is enough to tell the adapters apart, and all of them from the base model."""
    assert len({truth(model, 1987) for model in WRITERS}) == len(WRITERS)


def test_unknown_names_and_numbers_have_no_answer() -> None:
    assert truth("klingon", 1) == ""
    assert truth("roman", 0) == truth("roman", 4000) == truth(BASE, 10000) == truth(BASE, -1) == ""
