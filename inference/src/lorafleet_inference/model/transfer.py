"""Numbers on their way between host and device, so that neither waits for what the other still does."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch


def on_device(
    values: Sequence[float] | npt.NDArray[Any] | torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return numbers of the host on the device. Waits for nothing that runs there."""
    host = torch.as_tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    # torch keeps a pinned buffer until the copy from it is done, also when nothing refers to it any more
    return host.pin_memory().to(device, non_blocking=True)


class HostCopies:
    """Copies to the host of what a device is still to compute: `take` each, then `send`, and read them after `wait`."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the host that has these numbers after `wait`; a tensor of the host is returned as it is."""
        if tensor.device.type != "cuda":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def send(self, device: torch.device) -> None:
        """Mark the end of the copies."""
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait for the copies, and for nothing that was submitted after them."""
        if self._event is not None:
            self._event.synchronize()
