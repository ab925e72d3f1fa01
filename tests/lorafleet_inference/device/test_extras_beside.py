"""What loads of adapters take on the device beside what stays there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorafleet_inference.model.extras import Extra
from lorafleet_inference.model.extras_files import _as_linear, _bias

ROWS, WIDTH = 64, 32


class OnDevice(TorchDispatchMode):
    """Notes the dtypes of all that is made on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
        self.dtypes += [one.dtype for one in tensors if one.device.type == "cuda"]
        return made


def test_a_weight_that_dora_is_made_of_is_widened_on_the_host() -> None:
    """Of an embedding or a head of a large vocabulary a copy in float32 would be gigabytes of the device."""
    with FakeTensorMode():
        module = torch.nn.Linear(WIDTH, ROWS, device="cuda", dtype=torch.bfloat16)
        a, b = torch.empty(4, WIDTH), torch.empty(ROWS, 4)
        with OnDevice() as device:
            weight, bias = _as_linear(module, Extra(), a, b), _bias(module)
    assert isinstance(bias, torch.Tensor)
    for made in (weight, bias):
        assert (made.device.type, made.dtype) == ("cpu", torch.float32)
    assert torch.float32 not in device.dtypes
