"""The kernels run on a GPU where there is one, marked `gpu`; elsewhere in the checked interpreter."""

from importlib import import_module

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    import_module("support.checked_triton")  # before any kernel
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(autouse=True)
def threads() -> int:
    """In place of the one for compiled kernels of the CPU: these do not use torch's threads."""
    return torch.get_num_threads()


@pytest.fixture(params=[GPU if HAS_GPU else pytest.param("cpu", id="interpreter")])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run."""
    return torch.device(request.param)
