"""Names are model names as people write them, the same in the contract and the CRDs; paths are those of object stores."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from lorafleet_contract.admin import ServedName
from lorafleet_contract.names import MAX_SERVED_NAME, SERVED_NAME, split_model
from lorafleet_contract.sources import SourceRef

CRDS = Path(__file__).resolve().parents[3] / "crds"
NAMES = ["a", "sql_lora", "acme/Llama-3_sql:v2.1", "org/team/x", "A.B", "-x", "0", "a" * 253, "v1..2", "a/b-c_d:e.f"]
NO_NAMES = [
    "",
    "a@b",
    "a b",
    "a" * 254,
    "..",
    ".",
    "../etc",
    "a/../b",
    "/a",
    "a/",
    "a//b",
    "a/.b",
    "ü",
    "a\n",
    "a,b",
    "a=b",
]
PATHS = ["a", "epoch=1-step=100", "dt=2026-01-01/run 7/a+b@c", "a_b/c.d-e"]
NO_PATHS = ["", "..", "a/../b", "/a", "a//b", "a/./b", " a", "=a", "a\n", "a\0b", "a\\b", "a*"]


def is_name(text: str) -> bool:
    try:
        TypeAdapter(ServedName).validate_python(text)
    except ValidationError:
        return False
    return True


def is_path(text: str) -> bool:
    try:
        SourceRef(name="x", path=text)
    except ValidationError:
        return False
    return True


def properties(file: str) -> Any:
    spec = yaml.safe_load((CRDS / file).read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return spec["properties"]["spec"]["properties"]


def test_served_names() -> None:
    assert [name for name in NAMES if not is_name(name)] == []
    assert [name for name in NO_NAMES if is_name(name)] == []


def test_paths_of_sources() -> None:
    assert [path for path in PATHS if not is_path(path)] == []
    assert [path for path in NO_PATHS if is_path(path)] == []


@pytest.mark.parametrize("file", ["basemodeldeployments.yaml", "loraadapters.yaml"])
def test_the_crds_say_the_same_of_names(file: str) -> None:
    name = properties(file)["servedName"]
    assert (name["pattern"], name["minLength"], name["maxLength"]) == (SERVED_NAME, 1, MAX_SERVED_NAME)


def test_the_crds_say_the_same_of_paths() -> None:
    base, adapter = properties("basemodeldeployments.yaml"), properties("loraadapters.yaml")
    place = base["adapterSources"]["items"]["properties"]
    for field in (adapter["source"]["properties"]["path"], base["model"]["properties"]["volume"]["properties"]["path"],
                  place["s3"]["properties"]["prefix"], place["volume"]["properties"]["path"]):  # fmt: skip
        assert [path for path in PATHS if not re.search(field["pattern"], path)] == []
        for path in ("/a", " a", "=a", "a\0b", "a\\b", "a*"):
            assert not re.search(field["pattern"], path)


def test_a_model_in_a_request_may_name_a_revision() -> None:
    assert split_model("acme/sql") == ("acme/sql", None)
    assert split_model("acme/sql@0123456789ab") == ("acme/sql", "0123456789ab")
    assert split_model("acme/sql@") == ("acme/sql", "")
