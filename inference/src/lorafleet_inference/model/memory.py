"""Large tensors that fill slowly."""

import math

import numpy as np
import torch


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros: a value that nobody wrote must not be NaN, because nothing times NaN is NaN.

    On the CPU by way of numpy: the system hands out the memory when it is first touched, in large pages where it can.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
