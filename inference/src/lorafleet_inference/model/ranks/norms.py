"""Norms of queries and keys whose weights are of all heads: each rank has the part of its heads.

Where the mean is of each head by itself (Cohere), a rank needs nothing of the others. Where it is of all heads together (OLMo 2 and 3,
OLMoE, FlexOlmo, MiniMax-M2), the ranks' means of squares are summed, one number a token. Key-value heads that are repeated are all repeated
equally often, so the mean over ranks is the mean over heads all the same.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from lorafleet_inference.model.decoder.linear import Total
from lorafleet_inference.model.ranks.axes import Along, Splits
from lorafleet_inference.model.ranks.split import Shard

_UNITS = {"q_norm": "heads", "k_norm": "kv_heads", "q_layernorm": "heads", "k_layernorm": "kv_heads"}
"""Of which heads a norm is, by its last name."""
_OF_SQUARES = ("Olmo2RMSNorm", "Olmo3RMSNorm", "OlmoeRMSNorm", "FlexOlmoRMSNorm", "MiniMaxM2RMSNorm")
"""Classes that divide by the root of the mean of squares and `variance_epsilon`; others may take a mean of more."""


def is_norm_of_heads(name: str) -> bool:
    """Whether a module is a norm of queries or keys."""
    return name.rsplit(".", 1)[-1] in _UNITS


def norm_splits(model: PreTrainedModel, shard: Shard, head_width: int | None) -> Splits:
    """Return how the norms of a whole model are split whose weights are of all heads."""
    found: dict[str, tuple[Along, tuple[str, ...]]] = {}
    for name, module in model.named_modules():
        own = name.rsplit(".", 1)[-1]
        if own in _UNITS and head_width is not None and _is_of_all(module, own, shard, head_width):
            found[own] = Along.OUTPUTS, (_UNITS[own],)
    return found


def why_not_norm(name: str, module: torch.nn.Module, shard: Shard, head_width: int | None) -> str | None:
    """Return why a norm of queries or keys can be neither split nor whole on each rank; None: it can."""
    own = name.rsplit(".", 1)[-1]
    if shard.split_of(name) is not None:
        fits = head_width is not None and _is_of_all(module, own, shard, head_width)
        return None if fits else f"{name} is another norm than those of other layers"
    if sum(one.numel() for key, one in module.named_parameters() if key == "weight") == head_width:
        return None  # of each head by itself
    return f"{name} is a {type(module).__name__} of all heads together"


def _is_of_all(module: torch.nn.Module, own: str, shard: Shard, head_width: int) -> bool:
    shapes = {key: tuple(one.shape) for key, one in module.named_parameters()}
    number = shard.num_heads if _UNITS[own] == "heads" else shard.num_kv_heads
    is_apart = shapes == {"weight": (number, head_width)}
    return is_apart or (shapes == {"weight": (number * head_width,)} and type(module).__name__ in _OF_SQUARES)


def join_means(module: torch.nn.Module, total: Total, size: int) -> None:
    """Have a norm that is split take the mean over all heads, where it does not take one of each by itself."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if weight.ndim == 1:
        kind = type(module)
        module.__class__ = type(f"Joined{kind.__name__}", (_Joined, kind), {})
        module.sum_means, module.num_ranks = total, size  # type: ignore[assignment]


class _Joined(torch.nn.Module):
    """A norm of the family's own code, whose mean of squares is that of all ranks."""

    sum_means: Total
    """An adapter's own copy has it too: each copy takes a mean."""
    num_ranks: int
    variance_epsilon: Any

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states [.., part of the heads]; returns the like."""
        mean = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        of_all = self.sum_means(mean.clone()) / self.num_ranks
        epsilon = self.variance_epsilon
        self.variance_epsilon = of_all - mean + epsilon  # the code adds it to the mean of the part
        try:
            found: torch.Tensor = super().forward(hidden_states)
        finally:
            self.variance_epsilon = epsilon
        return found
