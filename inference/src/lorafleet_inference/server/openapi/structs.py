"""JSON schemas of structs as they are written. msgspec's own are of what it reads, and it reads no unions of them."""

from inspect import cleandoc
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec

from lorafleet_inference.server import lorax_wire, responses_wire

Schema = dict[str, Any]
_PREFIXES: Final = {lorax_wire.__name__: "Lorax", responses_wire.__name__: "Response"}
"""Modules whose structs have names that mean something there only."""
_PLAIN: Final = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
_ANYTHING: Final = (Any, msgspec.Raw)


class Structs:
    """Gathers the schemas of structs by name."""

    def __init__(self, refs: str) -> None:
        """`refs`: what comes before a name in a reference."""
        self._refs = refs
        self.defined: dict[str, Schema] = {}

    def schema(self, kind: Any) -> Schema:
        """Return the schema of a type, and gather those that it refers to.

        Raises:
            TypeError: it is of a kind that no answer has had yet.
        """
        if kind in _ANYTHING:
            return {}
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind)
        arguments = get_args(kind)
        match get_origin(kind):
            case origin if origin is Literal:
                return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}
            case origin if origin in (Union, UnionType):
                return {"anyOf": [self.schema(one) for one in arguments if one is not msgspec.UnsetType]}
            case origin if origin is list:
                return {"type": "array", "items": self.schema(arguments[0])}
            case origin if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
                return {"type": "array", "items": self.schema(arguments[0])}
            case origin if origin is tuple and not arguments:
                return {"type": "array", "maxItems": 0}
            case origin if origin is dict:
                return {"type": "object", "additionalProperties": self.schema(arguments[1])}
        raise TypeError(f"no schema is known of {kind}")

    def _struct(self, kind: type[msgspec.Struct]) -> Schema:
        prefix = _PREFIXES.get(kind.__module__, "")
        name = kind.__name__ if kind.__name__.startswith(prefix) else prefix + kind.__name__
        if name not in self.defined:
            made = self.defined[name] = {"type": "object", "description": cleandoc(kind.__doc__ or "")}
            fields = msgspec.structs.fields(kind)
            made["properties"] = {one.encode_name: _single(self.schema(one.type)) for one in fields}
            made["required"] = [one.encode_name for one in fields if _is_always_there(kind, one)]
        return {"$ref": self._refs + name}


def _is_always_there(kind: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> bool:
    return field.required or (not kind.__struct_config__.omit_defaults and field.default is not msgspec.UNSET)


def _single(schema: Schema) -> Schema:
    """A union may have one member left."""
    members = schema.get("anyOf", ())
    return members[0] if len(members) == 1 else schema
