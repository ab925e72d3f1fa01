"""Large tensors of zeros. No step reads what nobody wrote; that it is zero is a second guard.

On the CPU they come from numpy, which asks the system for large pages.
"""

import math

import numpy as np
import torch


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros whose memory is there from the start: a step that is the first to touch it would wait for it."""
    return lazy_zeros(shape, dtype, device).zero_()


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros; on a CPU the system hands out the memory when it is first touched."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)
