"""LoRA on the routers of mixtures of experts.

transformers' routers are no plain linear layers: one module multiplies by its weight and chooses the experts. What LoRA adds
belongs between the two, so the product is changed inside of the module's own forward.
Axes: T tokens of the step, E experts.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

Change = Callable[[torch.Tensor, torch.Tensor], None]
"""Called with the router's input [T, hidden] and its logits [T, E], which it changes in place."""


class _Product(TorchFunctionMode):
    """While this is open, `change` is called on each product with one weight."""

    def __init__(self, weight: torch.Tensor, change: Change) -> None:
        super().__init__()
        self._weight = weight
        self._change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, then change what is the router's."""
        out = func(*args, **(kwargs or {}))
        if func is F.linear and len(args) > 1 and args[1] is self._weight:
            self._change(args[0], out)
        return out


def is_router(module: torch.nn.Module) -> bool:
    """Whether a module chooses experts; some are linear layers that return more than their product."""
    return "Router" in type(module).__name__


def can_adapt(module: torch.nn.Module) -> bool:
    """Whether this is a router whose logits are the plain product of its input and its weight [E, hidden], in any dtype."""
    parameters = dict(module.named_parameters())
    if not is_router(module) or parameters.keys() != {"weight"}:
        return False
    num_experts, hidden = parameters["weight"].shape
    # 16 bit: some routers cast the weight, which in 32 bit is no other tensor
    weight = torch.nn.Parameter(
        torch.empty(num_experts, hidden, dtype=torch.bfloat16, device="meta"), requires_grad=False
    )
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, "weight": weight}  # noqa: SLF001  a copy shares them with the module's
    seen: list[tuple[torch.Size, torch.Size]] = []
    try:
        with _Product(weight, lambda x, logits: seen.append((x.shape, logits.shape))):
            twin(torch.empty(1, hidden, dtype=torch.bfloat16, device="meta"))
    except Exception:  # noqa: BLE001  a router of somebody else's may need anything; then it is not adapted
        return False
    return seen == [((1, hidden), (1, num_experts))]


def adapt(module: torch.nn.Module, change: Change, is_changed: Callable[[], bool]) -> None:
    """Have `change` called in each forward pass of a router for which `is_changed`."""
    plain = module.forward
    weight = module.get_parameter("weight")

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not is_changed():
            return plain(*args, **kwargs)
        with _Product(weight, change):
            return plain(*args, **kwargs)

    module.forward = forward
