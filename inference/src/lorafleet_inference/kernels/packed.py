"""Linear layers with weights laid out for the CPU.

oneDNN multiplies faster by a weight that lies in its own blocked order: twice as fast for a few tokens, by a sixth for
many. The order is made once, at load, and the plain weight is given up for it: `plain_weight` brings it back.
"""

import torch

PACKED_FOR_TOKENS = 64
"""oneDNN chooses the order for a number of tokens; this one serves all numbers well."""


def can_pack() -> bool:
    """Whether this torch has oneDNN and its operation on packed weights."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@torch.no_grad()
def pack_linears(model: torch.nn.Module) -> int:
    """Pack the float32 weights of all plain linear layers whose weight nobody shares; return how many.

    A tied output head keeps its plain weight for the embedding and gets a packed copy.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    count = 0
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or type(module).forward is not torch.nn.Linear.forward:
            continue
        if module.weight.dtype == torch.float32:
            _pack(module, shared=owners[id(module.weight)] > 1)
            count += 1
    return count


def plain_weight(module: torch.nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer in its usual order; a copy where it is packed, or lies in that of a larger layer."""
    made = getattr(module, "plain_weight", None)
    if made is not None:
        whole: torch.Tensor = made()
        return whole
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.to_dense() if weight.is_mkldnn else weight


def _pack(module: torch.nn.Linear, *, shared: bool) -> None:
    packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), PACKED_FOR_TOKENS)  # noqa: SLF001
    bias = module.bias
    multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001  what torch.compile itself emits

    def forward(x: torch.Tensor) -> torch.Tensor:
        return multiply(x, packed, bias, "none", [], "")

    if not shared:
        module.weight = torch.nn.Parameter(packed, requires_grad=False)
    module.forward = forward  # type: ignore[method-assign, assignment]
