"""Which device stands behind a device of torch's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch

from lorafleet_inference.device.cuda import CudaDevice
from lorafleet_inference.device.host import HostDevice
from lorafleet_inference.device.interface import Device

_stand_ins: list[Mapping[torch.device, Device]] = []


def device_at(device: torch.device) -> Device:
    """Return the device behind one of torch's, the same each time."""
    for some in reversed(_stand_ins):
        if device in some:
            return some[device]
    return _made(device)


@cache
def _made(device: torch.device) -> Device:
    return CudaDevice(device) if device.type == "cuda" else HostDevice()


@contextmanager
def standing_in(devices: Mapping[torch.device, Device]) -> Iterator[None]:
    """While this is open, these stand behind some of torch's devices, for all threads: to count, or to simulate."""
    _stand_ins.append(devices)
    try:
        yield
    finally:
        _stand_ins.pop()
