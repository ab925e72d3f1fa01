"""Weights of adapters have to be finite in the dtype in which they are computed."""

import torch

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError


def check_finite(tensor: torch.Tensor, what: str, how: str) -> None:
    """Raise unless each value is finite. `what` names the tensor, `how` says what was done to it.

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
    raise AdapterError(Reason.ARTIFACT_INVALID, f"{what} is not finite: {value} at {place} {how}")


def applied(scale: float, dtype: torch.dtype) -> str:
    """Say what was done to a tensor, for `how` of `check_finite`."""
    name = str(dtype).removeprefix("torch.")
    return f"in {name}" if scale == 1.0 else f"times {scale:g} in {name}"
