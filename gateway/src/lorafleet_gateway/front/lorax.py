"""What LoRAX's routes ask for: their requests have no `model`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorafleet_common.keys.guard import Caller
from lorafleet_contract.lorax import ADAPTER_PATHS, INFO, MAX_MERGED
from lorafleet_gateway.errors import InvalidRequest, ModelForbidden, NoReadyPod
from lorafleet_gateway.front.body import read_model

TOKENIZE: Final = "/tokenize"
PATHS: Final = ADAPTER_PATHS | {INFO}
ADAPTER_FIELD: Final = "parameters.adapter_id"
MERGED_FIELD: Final = "parameters.merged_adapters"
MERGED_IDS: Final = f"{MERGED_FIELD}.ids"
Name = Annotated[str, Field(max_length=512)]


class _Merged(BaseModel):
    model_config = ConfigDict(strict=True)

    ids: Annotated[list[Name], Field(min_length=1, max_length=MAX_MERGED)]


class _Parameters(BaseModel):
    model_config = ConfigDict(strict=True)

    adapter_id: Name | None = None
    adapter_source: Any = None
    merged_adapters: _Merged | None = None


class _Generation(BaseModel):
    model_config = ConfigDict(strict=True)

    parameters: _Parameters | None = None


class _Tokens(BaseModel):
    model_config = ConfigDict(strict=True)

    inputs: Any = None


def is_tokenize(path: str, body: bytes | bytearray) -> bool:
    """Whether a request to tokenise has LoRAX's form; vLLM's has no `inputs`."""
    if path != TOKENIZE:
        return False
    try:
        return _Tokens.model_validate_json(body).inputs is not None
    except ValidationError:
        return False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request means by names: one model, or adapters that it wants merged."""

    names: tuple[str, ...]
    is_merge: bool = False
    says_source: bool = False
    """Whether it says where the adapter is found if nothing of the name is known."""


def asked_of(path: str, body: bytes | bytearray) -> Asked | None:
    """Return what a request of LoRAX's means; None: the base.

    Raises:
        InvalidRequest: the body cannot be read, or names both.
    """
    if path not in ADAPTER_PATHS:
        return None
    parameters = read_model(_Generation, body).parameters
    if parameters is None:
        return None
    if parameters.merged_adapters is None:
        if not parameters.adapter_id:
            return None
        return Asked((parameters.adapter_id,), says_source=parameters.adapter_source is not None)
    if parameters.adapter_id:
        raise InvalidRequest(
            "merged_adapters: one of adapter_id and merged_adapters says which adapter is meant", param=MERGED_FIELD
        )
    return Asked(tuple(parameters.merged_adapters.ids), is_merge=True)


def base_of(caller: Caller, names: Sequence[str]) -> str:
    """Return the base that a caller means who names none: the only one of these that he may use.

    Raises:
        ModelForbidden: he may use none.
        InvalidRequest: he may use several.
        NoReadyPod: there is none.
    """
    if not names:
        raise NoReadyPod("no base model is known")
    allowed = [name for name in names if caller.may_use(name)]
    if not allowed:
        raise ModelForbidden(f"the key {caller.name} does not have access to a base model", param=ADAPTER_FIELD)
    if len(allowed) > 1:
        raise InvalidRequest(
            f"there are {len(allowed)} base models: name one of them, or an adapter", param=ADAPTER_FIELD
        )
    return allowed[0]
