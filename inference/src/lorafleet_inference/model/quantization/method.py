"""What a way of quantising has to say: which linear layers, how they lie in memory, and how they are read from files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from lorafleet_inference.model.quantization.weight import Layout, QuantizedWeight

FIELD = "quantization_config"
_Fields = TypeVar("_Fields", bound="Fields")
Shape = tuple[int, int]
"""(out, in) of a linear layer."""


class QuantizationError(ValueError):
    """Weights are quantised in a way that cannot be served; the message names the field or the tensor."""


class Fields(BaseModel):
    """What is read of a `quantization_config`. What has no field here does not change how weights are read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of one linear layer in the files."""

    module: str
    shape: Shape
    tensors: Mapping[str, torch.Tensor]
    """By what follows the module's name; on the device where the layer shall lie."""

    def take(self, suffix: str, *, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
        """Return a tensor that has to be there.

        Raises:
            QuantizationError: it is not, or is something else.
        """
        found = self.tensors.get(suffix)
        if found is None:
            raise QuantizationError(f"tensor {self.module}.{suffix} is missing")
        if tuple(found.shape) != shape:
            wanted = f"and {FIELD} says {list(shape)}"
            raise QuantizationError(f"tensor {self.module}.{suffix} has the shape {list(found.shape)}, {wanted}")
        if found.dtype not in dtypes:
            raise QuantizationError(f"tensor {self.module}.{suffix} is {_name(found.dtype)}, not {_name(dtypes[0])}")
        return found


class Method(Protocol):
    """A way of quantising, with its settings."""

    @property
    def name(self) -> str:
        """As logs and `plan` say it."""

    @property
    def suffixes(self) -> frozenset[str]:
        """What follows a module's name in the names of its tensors."""

    @property
    def markers(self) -> frozenset[str]:
        """Those of which each quantised layer has at least one, and no other layer."""

    def layout(self, module: str, shape: Shape) -> Layout | None:
        """Return how a linear layer that is not the head lies in memory by the config alone; None: as it is without quantisation.

        Raises:
            QuantizationError: it cannot.
        """

    def read(self, source: Source) -> QuantizedWeight:
        """Return the weight of a quantised layer.

        Raises:
            QuantizationError: the tensors are not what the config says.
        """


HALVES = (torch.float16, torch.bfloat16, torch.float32)
"""What scales may be."""


def parse(model: type[_Fields], fields: Mapping[str, Any]) -> _Fields:
    """Return the fields of a `quantization_config`.

    Raises:
        QuantizationError: names the first that is not supported, and what it is.
    """
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([FIELD, *map(str, first["loc"])])
        found = "" if first["type"] == "missing" else f" is {first['input']!r}, which is not supported"
        raise QuantizationError(f"{where}{found}: {first['msg']}") from error


def is_named(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a list of modules to leave out names a module: by its name, an ending or a part of it between dots."""
    dotted = f".{module}."
    return any(f".{pattern.strip('.')}." in dotted for pattern in patterns if pattern)


def whole_groups(group_size: int, width: int, module: str) -> int:
    """Return the columns of a group; -1 in a config is one group a row.

    Raises:
        QuantizationError: groups do not divide the row.
    """
    if group_size == -1:
        return width
    if width % group_size:
        raise QuantizationError(
            f"{FIELD}.group_size is {group_size}, which does not divide the {width} inputs of {module}"
        )
    return group_size


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the codes of int32 words [.., n] as uint8 [.., n * 32 / bits]; those of a word begin with its lowest bits."""
    per_byte = 8 // bits
    codes = words.contiguous().view(torch.uint8)  # little-endian, as safetensors is
    if per_byte == 1:
        return codes
    pairs = torch.stack((codes & 15, codes >> 4), -1)
    return pairs.view(*codes.shape[:-1], codes.shape[-1] * 2)


Reader = Callable[[Source], QuantizedWeight]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
