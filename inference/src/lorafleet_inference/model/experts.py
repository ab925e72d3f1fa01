"""Fused experts with LoRA on their stacked weights, as an experts implementation of transformers.

Axes: T tokens of the step, K experts of a token, E experts, r ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F  # noqa: N812
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_linear, grouped_mm_experts_forward

from lorafleet_inference.kernels.few_tokens import MAX_GROUPED_TOKENS
from lorafleet_inference.model.laid_tensor import LaidTensor

NAME = "lorafleet_experts"
SIZED = "lorafleet_experts_sized"
"""`sized`, for quantised experts where only memory is asked for."""
UP: Final = "gate_up_proj"
DOWN: Final = "down_proj"


ByExpert = torch.Tensor | LaidTensor
"""What has a matrix for each expert."""


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """One adapter's A and B of the two stacked weights of an experts module; None where it does not change one."""

    up_a: ByExpert | None
    """[E, r, hidden], of gate_up_proj."""
    up_b: ByExpert | None
    """[E, r, 2 * intermediate], times the scale."""
    down_a: ByExpert | None
    """[E, r, intermediate]"""
    down_b: ByExpert | None
    """[E, r, hidden], times the scale."""


@dataclass(frozen=True, slots=True)
class ExpertChange:
    """Tokens `begin` to `end` of the step use this adapter."""

    begin: int
    end: int
    lora: ExpertLora


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs (token, k) of a step, sorted by expert."""

    chosen: torch.Tensor
    """[T, K] int64, contiguous: the expert of each."""
    places: torch.Tensor
    """[T, K] int64, contiguous: where each lies among the sorted ones."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """Pairs by expert, as products of experts need them."""

    experts: torch.Tensor
    """[pairs] int64, ascending: the expert of each; E for none."""
    ends: torch.Tensor
    """[E] int32: where the pairs of each end."""
    num_choices: int
    """Pairs of a token."""


class Stacked(torch.nn.Module, ABC):
    """Weights [E, out, in] in few bits, in the place of a stacked weight."""

    shape: tuple[int, int, int]
    ndim: int

    @property
    @abstractmethod
    def waits(self) -> bool:
        """Whether products of few tokens wait for the device too: `grouped` cannot be asked then."""

    @abstractmethod
    def grouped(self, x: torch.Tensor, pairs: Sorted) -> torch.Tensor:
        """Return the products [pairs, out] of rows x [pairs, in] of a step of few tokens."""

    @abstractmethod
    def product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """Return x W of x [.., in] for one expert."""


class ExpertKernels(Protocol):
    """Adds LoRA by kernels, which look for the pairs of each adapter and expert by themselves."""

    def are_wanted(self) -> bool:
        """Whether an adapter of the step changes these experts."""

    def add_up(self, x: torch.Tensor, y: torch.Tensor, pairs: Pairs) -> None:
        """Add to y [pairs, 2 * intermediate] that of gate_up_proj, for x [pairs, hidden]."""

    def add_down(self, x: torch.Tensor, y: torch.Tensor, pairs: Pairs) -> None:
        """Add to y [pairs, hidden] that of down_proj, for x [pairs, intermediate]."""


changes: dict[torch.nn.Module, list[ExpertChange]] = {}
"""What the running step changes, by experts module."""
kernels: MutableMapping[torch.nn.Module, ExpertKernels] = WeakKeyDictionary()
"""By experts module, where there are any."""


def register() -> None:
    """Make the name known to transformers; more than once does no harm."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
    ALL_EXPERTS_FUNCTIONS.register(SIZED, sized)


def wait_for_device(model: torch.nn.Module) -> bool:
    """Whether experts of a model have also steps of few tokens wait for the device, so that none can be captured."""
    return any(isinstance(module, Stacked) and module.waits for module in model.modules())


def can_adapt(module: torch.nn.Module) -> bool:
    """Whether `experts` computes this module's LoRA: stacked gate_up and down weights [E, out, in] without bias."""
    stacked = [getattr(module, name, None) for name in (UP, DOWN)]
    plain = not any(getattr(module, flag, False) for flag in ("is_transposed", "has_bias", "has_post_expert_norm"))
    return plain and hasattr(module, "_apply_gate") and all(getattr(one, "ndim", 0) == 3 for one in stacked)


def experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden_states [T, hidden], top_k_index and top_k_weights [T, K]; returns [T, hidden]."""
    by_kernels = kernels.get(module)
    if by_kernels is not None and by_kernels.are_wanted():
        return _sorted(module, hidden_states, top_k_index, top_k_weights, by_kernels)
    own = changes.get(module)
    if not own and any(isinstance(getattr(module, name), Stacked) for name in (UP, DOWN)):
        return _sorted(module, hidden_states, top_k_index, top_k_weights, None)
    if not own:
        return grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    out = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        if expert == module.num_experts:  # a token that chose fewer
            continue
        tokens, places = torch.where(top_k_index == expert)
        state = hidden_states[tokens]
        parts = _parts(tokens, own)
        hidden = _product(module.gate_up_proj, expert, state)
        for begin, end, lora in parts:
            _add(hidden[begin:end], state[begin:end], lora.up_a, lora.up_b, expert)
        hidden = module._apply_gate(hidden)  # noqa: SLF001  transformers' own hook
        done = _product(module.down_proj, expert, hidden)
        for begin, end, lora in parts:
            _add(done[begin:end], hidden[begin:end], lora.down_a, lora.down_b, expert)
        out.index_add_(0, tokens, done * top_k_weights[tokens, places, None].to(done.dtype))
    return out


def sized(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """As `experts` in what it takes of memory, whoever the tokens choose."""

    def of_first(x: torch.Tensor, weight: Any, _: Sorted) -> torch.Tensor:
        return _product(weight, 0, x)

    return _sorted(module, hidden_states, top_k_index, top_k_weights, None, product=of_first)


def _product(weight: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    return weight.product(expert, x) if isinstance(weight, Stacked) else F.linear(x, weight[expert])


def _grouped(x: torch.Tensor, weight: Any, pairs: Sorted) -> torch.Tensor:
    """Return the products of rows x [pairs, in] that are sorted by expert.

    Quantised weights that no kernel multiplies by, and those of a large step, have the device waited for: those of experts that no
    token chose are not brought back.
    """
    if not isinstance(weight, Stacked):
        return _grouped_linear(x, weight, pairs.ends)
    if not weight.waits and len(x) <= MAX_GROUPED_TOKENS * pairs.num_choices:
        return weight.grouped(x, pairs)
    out = x.new_zeros(len(x), weight.shape[1])
    begin = 0
    for expert, end in enumerate(pairs.ends.tolist()):
        if begin < end:
            out[begin:end] = weight.product(expert, x[begin:end])
        begin = end
    return out


def _sorted(
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    lora: ExpertKernels | None,
    *,
    product: Callable[[torch.Tensor, Any, Sorted], torch.Tensor] = _grouped,
) -> torch.Tensor:
    """As `experts`, all pairs of an expert at once; without anything that waits for the device but some quantised weights."""
    num_tokens, num_choices = top_k_index.shape
    of_pairs, order = torch.sort(top_k_index.reshape(-1))
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    pairs = Pairs(top_k_index.contiguous(), places.view(num_tokens, num_choices))
    counted = of_pairs.int() if of_pairs.is_cuda else of_pairs.float()  # what each device counts
    counts = torch.histc(counted, bins=module.num_experts, min=0, max=module.num_experts - 1)
    by_expert = Sorted(of_pairs, counts.cumsum(0, dtype=torch.int32), num_choices)
    x = hidden_states[order // num_choices]
    hidden = product(x, module.gate_up_proj, by_expert)
    if lora is not None:
        lora.add_up(x, hidden, pairs)
    hidden = module._apply_gate(hidden)  # noqa: SLF001  transformers' own hook
    done = product(hidden, module.down_proj, by_expert)
    if lora is not None:
        lora.add_down(hidden, done, pairs)
    done = done * top_k_weights.reshape(-1)[order, None].to(done.dtype)
    done.masked_fill_((of_pairs >= module.num_experts)[:, None], 0.0)  # a token that chose fewer
    out: torch.Tensor = done[places].view(num_tokens, num_choices, -1).sum(1)
    return out.to(hidden_states.dtype)


def _parts(tokens: torch.Tensor, own: Sequence[ExpertChange]) -> list[tuple[int, int, ExpertLora]]:
    """Which rows of an expert's tokens, which come in ascending order, belong to which change."""
    bounds = torch.tensor([[one.begin, one.end] for one in own], device=tokens.device)
    places = torch.searchsorted(tokens, bounds).tolist()
    return [(begin, end, one.lora) for (begin, end), one in zip(places, own, strict=True) if begin < end]


def _add(y: torch.Tensor, x: torch.Tensor, a: ByExpert | None, b: ByExpert | None, expert: int) -> None:
    if a is not None and b is not None:
        y += (x @ a[expert].t()) @ b[expert]
