"""The generated tables of the reference pages are those of the code."""

import pytest
import reference_docs


@pytest.mark.parametrize("page", sorted(reference_docs.TABLES))
def test_the_page_is_up_to_date(page: str) -> None:
    written = (reference_docs.REFERENCE / page).read_text()
    assert written == reference_docs.rendered(page), "run: python tools/reference_docs.py"


def test_every_error_code_is_explained() -> None:
    from lorafleet_contract.openai import ErrorCode

    text = (reference_docs.REFERENCE / "api.md").read_text()
    assert not [code for code in ErrorCode if f"`{code}`" not in text]
