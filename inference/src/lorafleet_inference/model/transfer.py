"""Numbers on their way between host and device, so that neither waits for what the other still does."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from lorafleet_inference.device.devices import device_at
from lorafleet_inference.device.interface import Event, Order


def on_device(
    values: Sequence[float] | npt.NDArray[Any] | torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return numbers of the host on the device. Waits for nothing that runs there."""
    host = torch.as_tensor(values, dtype=dtype)
    there = device_at(device)
    if not there.works_beside:
        return host.to(device)
    return there.send(there.pinned(tuple(host.shape), host.dtype).copy_(host))


class HostCopies:
    """Copies to the host of what a device is still to compute: `take` each, then `send`, and read them after `wait`."""

    def __init__(self) -> None:
        self._event: Event | None = None

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the host that has these numbers after `wait`; a tensor of the host is returned as it is."""
        device = device_at(tensor.device)
        if not device.works_beside:
            return tensor
        host = device.pinned(tuple(tensor.shape), tensor.dtype)
        device.copy(host, tensor)
        return host

    def send(self, device: torch.device) -> None:
        """Mark the end of the copies."""
        self._event = device_at(device).current().mark()

    def wait(self) -> None:
        """Wait for the copies, and for nothing that was submitted after them."""
        if self._event is not None:
            self._event.wait(Order.RESULTS)
