"""The table of routes that take a body, and what each does with which field: made of the schemas of the OpenAPI document."""

import json
from typing import Any, Final

from pydantic import BaseModel

from lorafleet_contract.lorax import COMPATIBLE, GENERATE_STREAM
from lorafleet_inference.server.embeddings import EmbedBody, EmbedParameters
from lorafleet_inference.server.lorax_requests import LoraxBody, LoraxParameters
from lorafleet_inference.server.openapi.build import document
from lorafleet_inference.server.openapi.operations import OPERATIONS, Operation
from lorafleet_inference.server.openapi.others import BORROWED

Json = dict[str, Any]
ALIKE: Final = frozenset({COMPATIBLE, GENERATE_STREAM})
"""They take what /generate takes."""


def surfaces() -> dict[str, dict[str, str]]:
    """Route -> field -> what is done with it: `yes`, `passes`, or values with which alone it passes."""
    schemas: Json = document(asks_for_keys=False)["components"]["schemas"]
    taking = [one for one in OPERATIONS if one.takes and one.path not in ALIKE]
    return {one.path: _fields(one, schemas) for one in taking}


def table() -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns, and the rows."""
    found = surfaces()
    names = sorted({name for fields in found.values() for name in fields})
    rows = [[f"`{name}`", *(fields.get(name, "") for fields in found.values())] for name in names]
    return ["field", *(f"`{path}`" for path in found)], rows


def _fields(operation: Operation, schemas: Json) -> dict[str, str]:
    """Of several forms of a body each has its say; what one honours is honoured."""
    found: dict[str, str] = {}
    for kind in operation.takes:
        for model in (kind, *_inner(kind)):
            honoured = frozenset(model.model_fields) | (BORROWED[model][1] if model in BORROWED else frozenset())
            for name, schema in schemas[model.__name__]["properties"].items():
                said = _said(schema, is_honoured=name in honoured)
                found[name] = said if found.get(name) != "yes" else "yes"
    return found


def _inner(kind: type[BaseModel]) -> tuple[type[BaseModel], ...]:
    """LoRAX's bodies have most fields one level below."""
    return {LoraxBody: (LoraxParameters,), EmbedBody: (EmbedParameters,)}.get(kind, ())


def _said(schema: Json, *, is_honoured: bool) -> str:
    if is_honoured:
        legal = [one["const"] for one in schema.get("anyOf", ()) if "const" in one]
        return _only(legal) if legal else "yes"
    legal = [one for one in schema.get("enum", ()) if one is not None]
    if "enum" not in schema:
        return "passes"
    return _only(legal) if legal else "refused"


def _only(values: list[Any]) -> str:
    return "only " + ", ".join(f"`{json.dumps(one)}`" for one in values)
