"""Kernels of the CPU are compiled, by one process for all, before a file of these tests imports them."""

from collections.abc import Iterator

import pytest
import torch
from support.cpu_kernels import compiled

from lorafleet_inference.kernels.cpu import CpuKernels, load_kernels

compiled()


@pytest.fixture(scope="session")
def kernels() -> CpuKernels:
    loaded = load_kernels(None)
    assert loaded is not None
    return loaded


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
