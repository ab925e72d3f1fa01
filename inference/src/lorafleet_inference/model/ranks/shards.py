"""Reads a rank's part of a base model, and no more, from its safetensors files."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lorafleet_inference.model.base_files import INDEX, WEIGHTS
from lorafleet_inference.model.ranks.split import Shard


@dataclass(frozen=True, slots=True)
class LazyPart:
    """The rank's part of a tensor in a file, read when it is indexed with `...`: all that transformers' loader asks of one."""

    stored: Any
    """A slice of safetensors."""
    module: str
    parameter: str
    shard: Shard

    def __getitem__(self, _: Any) -> torch.Tensor:
        """Read it."""
        return self.shard.stored(self.module, self.parameter, self.stored)

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers in the file."""
        return self.stored[:0].dtype

    def is_floating_point(self) -> bool:
        """Whether these are."""
        return self.dtype.is_floating_point


@contextmanager
def parts_of(folder: Path, shard: Shard, without: Collection[str] = frozenset()) -> Iterator[dict[str, LazyPart]]:
    """Yield the rank's part of each tensor of a base model by its name, to be read while this is open, but of those `without`."""
    with ExitStack() as files:
        found: dict[str, LazyPart] = {}
        for name, keys in _files(folder).items():
            file = files.enter_context(safe_open(folder / name, framework="pt"))
            for key in file.keys() if keys is None else keys:
                if key in without:
                    continue
                module, parameter = _owner(key)
                found[key] = LazyPart(file.get_slice(key), module, parameter, shard)
        yield found


def _files(folder: Path) -> Mapping[str, list[str] | None]:
    """Return the files of the weights with the names of their tensors; None: all that the file has."""
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    files: dict[str, list[str] | None] = {}
    for name in json.loads((folder / INDEX).read_bytes())["weight_map"].values():
        files[name] = None
    return files


def _owner(key: str) -> tuple[str, str]:
    """Return the module and the parameter of a tensor; a stacked weight of experts is a module's by its own name."""
    module, _, parameter = key.rpartition(".")
    return (module, parameter) if parameter in ("weight", "bias") else (key, "weight")
