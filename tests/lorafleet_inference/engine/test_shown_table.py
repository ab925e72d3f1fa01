"""The page on what was shown says what tests run and what the loader refuses."""

from support.shown_table import PAGE, rendered


def test_the_page_is_what_tests_and_loader_say() -> None:
    assert PAGE.read_text() == rendered(), "run: PYTHONPATH=tests .venv/bin/python -m support.shown_table"
