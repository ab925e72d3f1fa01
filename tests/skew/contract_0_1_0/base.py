"""The two base classes of all wire types."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Wire(BaseModel):
    """What we send: snake_case in Python, camelCase on the wire, immutable, unknown keys refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Observed(Wire):
    """What another version of us may have sent: unknown keys are ignored, so that either side can be newer."""

    model_config = ConfigDict(extra="ignore")
