"""The arrays of a step on their way to the device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


class StepBuffer:
    """Takes arrays to the device. `packed`: in one copy, of int32, from pinned memory where the device is CUDA."""

    def __init__(self, device: torch.device, *, packed: bool) -> None:
        self._device = device
        self._packed = packed
        self.num_copies = 0

    def to_device(self, arrays: Sequence[npt.NDArray[np.integer]]) -> tuple[torch.Tensor, ...]:
        """Return each array, of one axis, as int64 on the device. Waits for nothing that runs there."""
        if not self._packed:
            return tuple(torch.from_numpy(one.astype(np.int64, copy=False)) for one in arrays)
        lengths = [len(one) for one in arrays]
        # torch keeps a pinned buffer until the copy from it is done, also when nothing refers to it any more
        host = torch.empty(sum(lengths), dtype=torch.int32, pin_memory=self._device.type == "cuda")
        np.concatenate(arrays, out=host.numpy(), casting="same_kind")
        self.num_copies += 1
        return host.to(self._device, non_blocking=True).long().split(lengths)
