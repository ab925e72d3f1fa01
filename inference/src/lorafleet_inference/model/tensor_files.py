"""Reads tensors of adapters: from their files, or of a merge from those of its parts."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.base_rows import PIECE_ELEMENTS
from lorafleet_inference.model.finite import applied, check_finite
from lorafleet_inference.model.merge_tensors import MergeReader, Read


def reader_of(plan: AdapterPlan) -> Read:
    """Return what reads the tensors that a settled plan names; it raises AdapterError where one cannot be read."""
    if plan.merged is None:
        return _reader(plan.directory, plan.files)
    return MergeReader(plan.merged, [_reader(part.directory, part.files) for part in plan.merged.plans])


def _reader(directory: Path, files: Iterable[str]) -> Read:
    place: Mapping[str, Path] = {key: directory / name for name in files for key in _keys(directory / name)}

    def read(key: str) -> torch.Tensor:
        if key not in place:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {key} is missing")
        try:
            with safe_open(place[key], framework="pt") as file:
                tensor = file.get_tensor(key).float()
        except (SafetensorError, OSError) as error:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{place[key].name} cannot be read: {error}") from error
        check_finite(tensor, f"tensor {key}", applied(1.0, torch.float32))
        return tensor

    return read


def pieces_of(plan: AdapterPlan, key: str) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first row and rows in float32 of pieces of a tensor of a settled plan that is no merge; else as `reader_of`."""
    name = next((one for one in plan.files if key in _keys(plan.directory / one)), None)
    if name is None:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {key} is missing")
    try:
        with safe_open(plan.directory / name, framework="pt") as file:
            rows = file.get_slice(key)
            num_rows, *width = rows.get_shape()
            step = max(1, PIECE_ELEMENTS // max(1, prod(width)))
            for at in range(0, num_rows, step):
                tensor = rows[at : at + step].float()
                check_finite(tensor, f"tensor {key}", applied(1.0, torch.float32), at)
                yield at, tensor
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{name} cannot be read: {error}") from error


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{path.name} cannot be read: {error}") from error
