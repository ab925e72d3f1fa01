"""What all JSON objects of requests have in common."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

_ItemT = TypeVar("_ItemT")
Listed = Annotated[list[_ItemT], Field(fail_fast=True)]
"""The first item that is wrong is enough: a client may send millions."""


class Strict(BaseModel):
    """A JSON object in which null means absent."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @property
    def others(self) -> dict[str, JsonValue]:
        """Fields that this model does not know."""
        return self.model_extra or {}
