"""Graphs on a CPU: what a capture computes is recorded as operations on memory, and replayed without the Python around it.

So what is baked into a capture, a number or another tensor, stays what it was, as it would on a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lorafleet_inference.device.interface import Captured, Graphs
from lorafleet_inference.kernels.triton.launch import launching


def _tensors(values: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


class _Operations(TorchDispatchMode):
    def __init__(self, calls: list[Callable[[], None]]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
        made = _tensors(out)
        if func.is_view and all(one.untyped_storage().data_ptr() in given for one in made):
            return out

        def again() -> None:
            for old, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)

        self._calls.append(again)
        return out


@dataclass
class RecordedGraphs(Graphs):
    """Records on the CPU, where kernels run in the interpreter. Rows of padding hold anything, so that they may overflow."""

    num_captured: int = 0

    def capture(self, compute: Callable[[], torch.Tensor]) -> Captured:
        calls: list[Callable[[], None]] = []

        def launch(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
            def run() -> None:
                with _disable_current_modes(), np.errstate(over="ignore", invalid="ignore"):
                    kernel[grid](*args, **constants)

            run()
            calls.append(run)

        with launching(launch), _Operations(calls):
            output = compute()
        self.num_captured += 1
        return _Recorded(output, calls)


@dataclass
class _Recorded(Captured):
    output: torch.Tensor
    calls: list[Callable[[], None]] = field(default_factory=list)

    def replay(self) -> None:
        for call in self.calls:
            call()
