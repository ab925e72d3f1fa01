"""JSON schemas of bodies: of requests from what reads them, of answers from what writes them."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from lorafleet_contract.base import Observed
from lorafleet_contract.lorax import LoraxError
from lorafleet_inference.server.openapi.others import BORROWED, others_of
from lorafleet_inference.server.openapi.structs import Structs
from lorafleet_inference.server.strict import NullIsAbsent

Schema = dict[str, Any]
REFS: Final = "#/components/schemas/"
_WITHOUT_NULLS: Final = (Observed, LoraxError)
"""Written without fields that are None."""


class Components:
    """Schemas of `components`, and how each type is referred to."""

    def __init__(
        self, requests: Iterable[type[BaseModel]], models: Iterable[type[BaseModel]], structs: Iterable[Any]
    ) -> None:
        """`requests` are read, `models` and `structs` written.

        Raises:
            ValueError: two of them have the same name.
        """
        self.schemas: dict[str, Schema] = {}
        self._refs: dict[Any, Schema] = {}
        self._add_models([(one, "validation") for one in requests])
        self._add_models([(one, "serialization") for one in models])
        described = Structs(REFS)
        self._refs |= {kind: described.schema(kind) for kind in structs}
        self._put(described.defined)

    def of(self, kind: Any) -> Schema:
        """Return the schema of a type, as a reference where it has a name."""
        return self._refs[kind]

    def _add_models(self, wanted: list[tuple[type[BaseModel], JsonSchemaMode]]) -> None:
        made, whole = models_json_schema(wanted, ref_template=f"{REFS}{{model}}", schema_generator=_Generator)
        self._refs |= {kind: schema for (kind, _), schema in made.items()}
        self._put(whole.get("$defs", {}))
        for kind, (lender, names) in BORROWED.items():
            if (kind, "validation") in made:
                lent = self.schemas[lender.__name__]["properties"]
                own = self.schemas[kind.__name__]["properties"]
                own |= {name: lent[name] for name in sorted(names) if name not in own}

    def _put(self, schemas: Mapping[str, Schema]) -> None:
        if twice := set(schemas) & set(self.schemas):
            raise ValueError(f"two schemas have the name {min(twice)}")
        self.schemas |= schemas


class _Generator(GenerateJsonSchema):
    """Pydantic's, with what our models do that it does not see."""

    def field_title_should_be_set(self, _: Any) -> bool:
        """The name says it."""
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Return the schema of an object whose names have a pattern: others are refused."""
        made = super().dict_schema(schema)
        return {**made, "additionalProperties": False} if "patternProperties" in made else made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of a model."""
        made = super().model_schema(schema)
        made.pop("title", None)
        kind, properties = schema["cls"], made.get("properties", {})
        required = set(made.get("required", ()))
        if issubclass(kind, NullIsAbsent):
            properties |= {name: _or_null(one) for name, one in properties.items() if name not in required}
            passed, further = others_of(kind, frozenset(properties))
            properties |= passed
            if further is not True:
                made["additionalProperties"] = further
        if self.mode == "serialization" and issubclass(kind, _WITHOUT_NULLS):
            made["required"] = [name for name in made.get("required", ()) if not _is_nullable(properties[name])]
        return made


def _or_null(schema: Schema) -> Schema:
    """Return a schema that takes null too."""
    if _is_nullable(schema):
        return schema
    outer: Schema = {name: schema[name] for name in ("default", "description") if name in schema}
    inner = {name: value for name, value in schema.items() if name not in outer}
    return {"anyOf": [*inner.get("anyOf", [inner]), {"type": "null"}], **outer}


def _is_nullable(schema: Schema) -> bool:
    return not set(schema) - {"default", "description"} or {"type": "null"} in schema.get("anyOf", ())
