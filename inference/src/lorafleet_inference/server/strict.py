"""What all JSON objects of requests have in common."""

from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import from_json

_ItemT = TypeVar("_ItemT")
Listed = Annotated[list[_ItemT], Field(fail_fast=True)]
"""The first item that is wrong is enough: a client may send millions."""


def parsed(text: str) -> JsonValue:
    """Return what a JSON text inside a request says.

    Raises:
        ValueError: it is none, or is nested deeper than a body may be.
    """
    found: JsonValue = from_json(text)
    return found


def has_field(body: bytes, form: type[msgspec.Struct]) -> bool:
    """Whether a body has the one field of `form`, which is optional; False where it is no JSON object."""
    (name,) = form.__struct_fields__
    try:
        return getattr(msgspec.json.decode(body, type=form), name) is not msgspec.UNSET
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False  # whoever reads the body says what is wrong


class NullIsAbsent(BaseModel):
    """A JSON object in which a field that is null is not there."""

    model_config = ConfigDict(frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class Strict(NullIsAbsent):
    """One that may have other fields; whoever reads it judges them."""

    model_config = ConfigDict(extra="allow")

    @property
    def others(self) -> dict[str, JsonValue]:
        """Fields that this model does not know."""
        return self.model_extra or {}
