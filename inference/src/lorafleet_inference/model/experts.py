"""Fused experts with LoRA on their stacked weights, as an experts implementation of transformers.

Axes: T tokens of the step, K experts of a token, E experts, r ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "lorafleet_experts"


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """One adapter's A and B of the two stacked weights of an experts module; None where it does not change one."""

    up_a: torch.Tensor | None
    """[E, r, hidden], of gate_up_proj."""
    up_b: torch.Tensor | None
    """[E, r, 2 * intermediate], times the scale."""
    down_a: torch.Tensor | None
    """[E, r, intermediate]"""
    down_b: torch.Tensor | None
    """[E, r, hidden], times the scale."""


@dataclass(frozen=True, slots=True)
class ExpertChange:
    """Tokens `begin` to `end` of the step use this adapter."""

    begin: int
    end: int
    lora: ExpertLora


changes: dict[torch.nn.Module, list[ExpertChange]] = {}
"""What the running step changes, by experts module."""


def register() -> None:
    """Make the name known to transformers; more than once does no harm."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)


def can_adapt(module: torch.nn.Module) -> bool:
    """Whether `experts` computes this module's LoRA: stacked gate_up and down weights [E, out, in] without bias."""
    stacked = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    plain = not any(getattr(module, flag, False) for flag in ("is_transposed", "has_bias", "has_post_expert_norm"))
    return plain and hasattr(module, "_apply_gate") and all(getattr(one, "ndim", 0) == 3 for one in stacked)


def experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden_states [T, hidden], top_k_index and top_k_weights [T, K]; returns [T, hidden]."""
    own = changes.get(module)
    if not own:
        return grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    out = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        if expert == module.num_experts:  # a token that chose fewer
            continue
        tokens, places = torch.where(top_k_index == expert)
        state = hidden_states[tokens]
        parts = _parts(tokens, own)
        hidden = F.linear(state, module.gate_up_proj[expert])
        for begin, end, lora in parts:
            _add(hidden[begin:end], state[begin:end], lora.up_a, lora.up_b, expert)
        hidden = module._apply_gate(hidden)  # noqa: SLF001  transformers' own hook
        done = F.linear(hidden, module.down_proj[expert])
        for begin, end, lora in parts:
            _add(done[begin:end], hidden[begin:end], lora.down_a, lora.down_b, expert)
        out.index_add_(0, tokens, done * top_k_weights[tokens, places, None].to(done.dtype))
    return out


def _parts(tokens: torch.Tensor, own: Sequence[ExpertChange]) -> list[tuple[int, int, ExpertLora]]:
    """Which rows of an expert's tokens, which come in ascending order, belong to which change."""
    bounds = torch.tensor([[one.begin, one.end] for one in own], device=tokens.device)
    places = torch.searchsorted(tokens, bounds).tolist()
    return [(begin, end, one.lora) for (begin, end), one in zip(places, own, strict=True) if begin < end]


def _add(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor | None, expert: int) -> None:
    if a is not None and b is not None:
        y += (x @ a[expert].t()) @ b[expert]
