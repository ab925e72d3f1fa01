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

    def to_device(
        self, arrays: Sequence[npt.NDArray[np.integer]], floats: npt.NDArray[np.float64] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return each array, of one axis, as int64 on the device, and last `floats`, if there are any, as they are.

        Waits for nothing that runs there.
        """
        if not self._packed:
            ints = tuple(torch.from_numpy(one.astype(np.int64, copy=False)) for one in arrays)
            return ints if floats is None else (*ints, torch.from_numpy(floats))
        lengths = [len(one) for one in arrays]
        begin = 0 if floats is None else 2 * floats.size
        # torch keeps a pinned buffer until the copy from it is done, also when nothing refers to it any more
        host = torch.empty(begin + sum(lengths), dtype=torch.int32, pin_memory=self._device.type == "cuda")
        there = host.numpy()
        np.concatenate(arrays, out=there[begin:], casting="same_kind")
        if floats is not None:
            there[:begin] = floats.reshape(-1).view(np.int32)
        self.num_copies += 1
        sent = host.to(self._device, non_blocking=True)
        ints = sent[begin:].long().split(lengths)
        return ints if floats is None else (*ints, sent[:begin].view(torch.float64).view(floats.shape))
