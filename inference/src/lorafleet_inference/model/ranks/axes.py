"""How an axis of a tensor is split among ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch


class Along(Enum):
    """What a layer is split by."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"


@dataclass(frozen=True, slots=True)
class Split:
    """How an axis is split among ranks: it is made of groups of equal units, and each rank has a share of each group."""

    along: Along
    num_units: tuple[int, ...]
    """Of each group: heads, or as many as there are ranks where the elements are alike."""
    rank: int
    size: int

    def slices(self, length: int) -> tuple[slice, ...]:
        """Return the rank's part of an axis of so many elements. A group of fewer units than ranks is repeated.

        Raises:
            ValueError: the axis is not made of such units.
        """
        unit, rest = divmod(length, sum(self.num_units))
        if rest:
            raise ValueError(f"{length} elements are not {sum(self.num_units)} equal units")
        found, begin = [], 0
        for number in self.num_units:
            parts = min(number, self.size)
            width = number // parts * unit
            at = begin + self.rank * parts // self.size * width
            found.append(slice(at, at + width))
            begin += number * unit
        return tuple(found)

    def take(self, tensor: Any, axis: int) -> torch.Tensor:
        """Return the rank's part of a tensor, or of a slice of a safetensors file, along an axis from the end (-1, -2)."""
        shape = shape_of(tensor)
        before = (slice(None),) * (len(shape) + axis)
        after = (slice(None),) * (-1 - axis)
        parts = [tensor[(*before, some, *after)] for some in self.slices(shape[axis])]
        return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


Splits = Mapping[str, tuple[Along, tuple[str, ...]]]
"""By the last name of a module: what its weight is split by, and the groups of that axis (`heads`, `kv_heads`, `elements`)."""


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, or of a slice of a safetensors file."""
    return tuple(tensor.get_shape()) if hasattr(tensor, "get_shape") else tuple(tensor.shape)
