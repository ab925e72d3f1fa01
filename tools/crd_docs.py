"""Tables of the custom resources' fields, from the definitions in crds/; tools/reference_docs.py puts them into the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).resolve().parents[1] / "crds"
Json = dict[str, Any]


def schema(plural: str) -> Json:
    """The schema of a definition."""
    definition = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    found: Json = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def fields(node: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Paths below a node with what stands there, depth first; list items are `[]`."""
    for name, inner in node.get("properties", {}).items():
        yield f"{path}.{name}", inner
        yield from fields(inner, f"{path}.{name}")
        if "items" in inner:
            yield f"{path}.{name}[]", inner["items"]
            yield from fields(inner["items"], f"{path}.{name}[]")


def table(plural: str, part: str) -> str:
    """Markdown rows of `spec` or `status`."""
    root = schema(plural)["properties"][part]
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    rows = ((path, node) for path, node in fields(root, part) if not path.endswith("[]"))
    lines += [f"| `{path}` | {_type(node)} | {_default(node)} | {_meaning(node)} |" for path, node in rows]
    return "\n".join(lines) + "\n"


def rules(plural: str) -> str:
    """What the API server checks beyond each field's own type, as it words it."""
    root = schema(plural)
    lines = [
        f"* {f'`{path[1:]}`: ' if path else ''}{rule['message']}"
        for path, node in (("", root), *fields(root, ""))
        for rule in node.get("x-kubernetes-validations", [])
    ]
    return "\n".join(lines) + "\n"


def _type(node: Json) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if node["type"] == "array":
        inner = node["items"]["type"]
        return f"list of {inner}s"
    if node["type"] == "string" and node.get("format") == "date-time":
        return "time"
    return str(node["type"])


def _default(node: Json) -> str:
    default = node.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _meaning(node: Json) -> str:
    said = [node["description"].rstrip(".") + "."]
    if "enum" in node:
        said.append(f"One of {', '.join(f'`{value}`' for value in node['enum'])}.")
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        said.append(f"{low} to {high}.")
    elif low is not None:
        said.append(f"At least {low}.")
    return " ".join(said).replace("|", "\\|")
