"""What LoRAX's routes ask for: their requests have no `model`. Pure."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorafleet_contract.lorax import GENERATION_PATHS, INFO
from lorafleet_gateway.cluster.directory import Directory
from lorafleet_gateway.errors import InvalidRequest, NoReadyPod
from lorafleet_gateway.front.body import read_model

TOKENIZE: Final = "/tokenize"
PATHS: Final = GENERATION_PATHS | {INFO}
Name = Annotated[str, Field(max_length=512)]


class _Parameters(BaseModel):
    model_config = ConfigDict(strict=True)

    adapter_id: Name | None = None


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


def name_of(path: str, body: bytes | bytearray, directory: Directory) -> str:
    """Return the served name that a request of LoRAX's means: its adapter, or the only base.

    Raises:
        InvalidRequest: it names no adapter, and there are several bases; or the body cannot be read.
        NoReadyPod: it names no adapter, and no base is known.
    """
    if path in GENERATION_PATHS:
        parameters = read_model(_Generation, body).parameters
        if parameters is not None and parameters.adapter_id:
            return parameters.adapter_id
    names = directory.base_names()
    if not names:
        raise NoReadyPod("no base model is known")
    if len(names) > 1:
        raise InvalidRequest(
            f"there are {len(names)} base models: name one of them, or an adapter", param="parameters.adapter_id"
        )
    return names[0]
