"""The page on adapter support says what the exactness suite runs."""

from support.adapter_table import PAGE, rendered


def test_the_page_is_what_the_suite_says() -> None:
    assert PAGE.read_text() == rendered(), (
        "run: PYTHONPATH=tests:inference/src:common/src:contract/src python -m support.adapter_table"
    )
