"""The generated tables of the reference pages are those of the code."""

from pathlib import Path

import openapi_documents
import pytest
import reference_docs


@pytest.mark.parametrize("page", sorted(reference_docs.TABLES))
def test_the_page_is_up_to_date(page: str) -> None:
    written = (reference_docs.REFERENCE / page).read_text()
    assert written == reference_docs.rendered(page), "run: python tools/reference_docs.py"


@pytest.mark.parametrize("path", [openapi_documents.POD, openapi_documents.GATEWAY], ids=["pod", "gateway"])
def test_the_openapi_documents_are_up_to_date(path: Path) -> None:
    assert path.read_text() == openapi_documents.texts()[path], "run: python tools/reference_docs.py"


def test_every_error_code_is_explained() -> None:
    from lorafleet_contract.openai import ErrorCode

    text = (reference_docs.REFERENCE / "api.md").read_text()
    assert not [code for code in ErrorCode if f"`{code}`" not in text]


def test_every_reason_is_explained() -> None:
    from lorafleet_contract.reasons import RETRYABLE, Reason

    rows = [
        line for line in (reference_docs.REFERENCE / "reasons.md").read_text().splitlines() if line.startswith("| `")
    ]
    by_reason = {line.split("`")[1]: line for line in rows}
    assert set(by_reason) == {reason.value for reason in Reason}
    assert {name for name, line in by_reason.items() if "| yes |" in line} == {reason.value for reason in RETRYABLE}


def test_every_file_of_an_adapter_is_named() -> None:
    from lorafleet_inference.adapters.files import FILES

    text = (reference_docs.REFERENCE / "adapters.md").read_text()
    assert not [name for name in FILES if f"`{name}`" not in text]
