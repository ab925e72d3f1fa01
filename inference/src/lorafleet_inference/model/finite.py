"""Weights of adapters have to be finite in the dtype in which they are computed."""

import torch

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError


def check_finite(tensor: torch.Tensor, what: str, how: str, first: int = 0) -> None:
    """Raise unless each value is finite. `what` names the tensor, of which this may be rows from the `first` on, `how` says what was done.

    Raises:
        AdapterError: ARTIFACT_INVALID; names the tensor, and the place of the first value that is not finite.
    """
    if tensor.numel() == 0:
        return
    least, largest = tensor.aminmax()  # both are NaN where any value is; no copy of the tensor is made
    if bool(least.isfinite() & largest.isfinite()):
        return
    place = (~tensor.isfinite()).nonzero()[0].tolist()
    value = tensor[tuple(place)].item()
    if place:
        place[0] += first
    raise AdapterError(Reason.ARTIFACT_INVALID, f"{what} is not finite: {value} at {place} {how}")


def applied(scale: float, dtype: torch.dtype) -> str:
    """Say what was done to a tensor, for `how` of `check_finite`."""
    name = str(dtype).removeprefix("torch.")
    return f"in {name}" if scale == 1.0 else f"times {scale:g} in {name}"
