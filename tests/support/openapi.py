"""Objects judged by a CRD's schema as the API server would, except for its CEL rules; those need a real one."""

import re
from pathlib import Path
from typing import Any

import yaml

from lorafleet_contract.names import GROUP

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
KNOWN = {
    *("type", "description", "default", "properties", "required", "items", "enum", "pattern", "format"),
    *("minimum", "maximum", "minLength", "maxLength", "maxItems"),
    *(
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    ),
}


def schemas() -> dict[str, Json]:
    """Kind -> schema of its only version."""
    found = {}
    for path in (ROOT / "crds").glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        assert spec["group"] == GROUP
        found[spec["names"]["kind"]] = spec["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def problems(value: Any, schema: Json, where: str = "") -> list[str]:
    """Return what is wrong, each with its place; nothing when all is well."""
    assert set(schema) <= KNOWN, f"a schema keyword that is not judged here: {set(schema) - KNOWN}"
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return [f"{where}: is no {schema['type']}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if isinstance(value, str):
        found += _text_problems(value, schema, where)
    elif isinstance(value, int):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            found.append(f"{where}: {value} is out of bounds")
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            found.append(f"{where}: too many items")
        for number, item in enumerate(value):
            found += problems(item, schema["items"], f"{where}[{number}]")
    elif isinstance(value, dict) and "properties" in schema:
        found += [f"{where}.{key}: is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            if key in schema["properties"]:
                found += problems(item, schema["properties"][key], f"{where}.{key}")
            elif not schema.get("x-kubernetes-preserve-unknown-fields"):
                found.append(f"{where}.{key}: is no field")
    return found


def _text_problems(value: str, schema: Json, where: str) -> list[str]:
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return [f"{where}: {value!r} does not match {schema['pattern']}"]
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return [f"{where}: has a bad length"]
    return []
