"""The walk through the code names files and functions that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "common/src/lorafleet_common/": ROOT / "common/src/lorafleet_common",
    "gateway/src/lorafleet_gateway/": ROOT / "gateway/src/lorafleet_gateway",
    "inference/src/lorafleet_inference/": ROOT / "inference/src/lorafleet_inference",
    "operator/src/lorafleet_operator/": ROOT / "operator/src/lorafleet_operator",
}
NAMED = re.compile(r"`([a-z_/]+\.py)(?:::([\w.]+))?`")


def places() -> list[tuple[Path, str]]:
    """Return (file, name in it or '') in the order of the page; a package holds until another is named in bold."""
    found, package = [], None
    for line in (ROOT / "docs/walkthrough.md").read_text().splitlines():
        package = next((path for name, path in PACKAGES.items() if name in line), package)
        for file, name in NAMED.findall(line):
            assert package is not None, line
            found.append((package / file, name))
    return found


def names_in(file: Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            members = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{member.name}" for member in members}
    return names


def test_the_walk_is_long_enough_to_be_one() -> None:
    assert len(places()) > 40


@pytest.mark.parametrize(("file", "name"), places(), ids=lambda value: getattr(value, "name", value))
def test_what_the_walk_names_is_there(file: Path, name: str) -> None:
    assert file.is_file()
    assert not name or name in names_in(file)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(map(str, Path("docs").rglob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
