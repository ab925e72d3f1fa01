"""Writes what of the charts is made from elsewhere: `make charts`; a test keeps it true.

The CRD chart's templates come from crds/, the tables of docs/reference/chart.md from the comments of both values.yaml.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CRDS = ROOT / "crds"
CRD_TEMPLATES = ROOT / "charts" / "lorafleet-crds" / "templates"
VALUES = ROOT / "charts" / "lorafleet" / "values.yaml"
PAGE = ROOT / "docs" / "reference" / "chart.md"

PAGE_TABLES = {"values": VALUES, "crd-values": CRD_TEMPLATES.parent / "values.yaml"}
"""Name of a table in the page -> what it is made from."""
ANNOTATIONS = """\
  {{- if or .Values.keep .Values.annotations }}
  annotations:
    {{- if .Values.keep }}
    helm.sh/resource-policy: keep
    {{- end }}
    {{- with .Values.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
"""
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: (.*))?$")


def crd_template(text: str) -> str:
    """Return a definition as a template: the same text with annotations by the chart's values."""
    head, separator, tail = text.partition("metadata:\n")
    assert separator
    assert "annotations:" not in tail.partition("spec:\n")[0]
    assert "{{" not in text, "a definition would need escapes"
    return f"{head}metadata:\n{ANNOTATIONS}{tail}"


def crd_templates() -> dict[Path, str]:
    """Return the templates of the CRD chart by their paths."""
    return {CRD_TEMPLATES / path.name: crd_template(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))}


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the chart, named as in `--set`; `description` is the comment above it."""

    name: str
    default: Any
    description: str


def values(path: Path = VALUES) -> Iterator[Value]:
    """Yield the values that a user may set: those with a comment of their own.

    Raises:
        ValueError: a value has no comment, nor has one that holds it.
    """
    text = path.read_text()
    document = yaml.safe_load(text)
    parents: list[str] = []
    described_depth: int | None = None
    comment: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        match = _KEY.match(line)
        if match is None:
            comment = []
            continue
        depth = len(match[1]) // 2
        parents[depth:] = [match[2]]
        if described_depth is not None and depth > described_depth:
            continue
        described_depth = None
        name = ".".join(parents)
        if comment:
            described_depth = depth
            yield Value(name, _lookup(document, parents), " ".join(comment))
        elif match[3]:
            raise ValueError(f"{path.name}: {name} has no comment")
        comment = []


def _lookup(document: Any, keys: list[str]) -> Any:
    for key in keys:
        document = document[key]
    return document


def values_table(path: Path) -> str:
    """Return the table of all values in Markdown."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    lines += [f"| `{value.name}` | `{json.dumps(value.default)}` | {value.description} |" for value in values(path)]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return docs/reference/chart.md with its tables as they should be."""
    text = PAGE.read_text()
    for name, path in PAGE_TABLES.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        head, rest = text.split(begin, 1)
        _, tail = rest.split(end, 1)
        text = f"{head}{begin}\n{values_table(path)}\n{end}{tail}"
    return text


def main() -> None:
    """Write everything."""
    for path, text in crd_templates().items():
        path.write_text(text)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
