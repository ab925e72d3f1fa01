"""How tensors of several adapters become one, as PEFT's `add_weighted_adapter` has it. Axis 0 of a stack: the parts."""

from collections.abc import Sequence

import torch

from lorafleet_inference.engine.merging import MajoritySign, Merge


def combined(
    tensors: Sequence[torch.Tensor], weights: Sequence[float], merge: Merge, generator: torch.Generator
) -> torch.Tensor:
    """Return one tensor made of tensors of one shape, float32, on the CPU, for a method that prunes.

    Pruning comes first, then the signs are elected, then the weights count: a weight below zero does not change which sign
    wins. `generator` is drawn from once for each tensor, in their order, where it is drawn which values are kept.
    """
    if merge.method.prunes_at_random:
        kept = [_drawn(tensor, merge.density, generator) for tensor in tensors]
    else:
        kept = [_largest(tensor, merge.density) for tensor in tensors]
    stack = torch.stack(kept)
    weighted = stack * torch.tensor(weights, dtype=stack.dtype).view(-1, *[1] * (stack.dim() - 1))
    if not merge.method.elects_signs:
        return weighted.sum(0)
    agrees = _has_majority_sign(stack, merge.majority_sign)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the part of the values that is largest without its sign."""
    if density >= 1:
        return tensor
    flat = tensor.flatten()
    places = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy_(0, places, flat[places]).view_as(tensor)


def _drawn(tensor: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """Keep a part of the values that is drawn, and make up for the others."""
    if density >= 1:
        return tensor
    return tensor * torch.bernoulli(torch.full_like(tensor, density), generator=generator) / density


def _has_majority_sign(stack: torch.Tensor, majority: MajoritySign) -> torch.Tensor:
    """Say of each value whether its sign wins; zero has none. Where neither does, it is the positive one."""
    signs = stack.sign()
    total = (stack if majority is MajoritySign.TOTAL else signs).sum(0)
    return signs == torch.where(total >= 0, 1, -1)
