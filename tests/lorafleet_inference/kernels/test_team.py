"""Kernels run on torch's threads, and a thread that computes alone disturbs no other."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from lorafleet_inference.kernels.cpu import CpuKernels, LoraRows, RowTable
from lorafleet_inference.kernels.team import on_one_thread


def test_one_thread_is_one_thread_only_here_and_only_now(threads: int) -> None:
    with on_one_thread():
        assert torch.get_num_threads() == 1
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == threads
    assert torch.get_num_threads() == threads


def test_kernels_bring_no_threads_of_their_own(kernels: CpuKernels) -> None:
    def system_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    weight = torch.randn(400, 400)
    assert (weight @ weight).isfinite().all()  # torch's team is there from now on
    before = system_threads()
    table = RowTable.of(np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int32))
    LoraRows(kernels, [(0, 2)], [table]).add([0], torch.ones(1, 8), torch.ones(2, 4), torch.zeros(2, 4))
    assert system_threads() == before
