"""Quantised experts: in the place of a stacked weight of an experts module, a matrix in few bits for each expert.

Files hold the maps of each expert apart, as they were before transformers stacked them, in the names of one of `_NAMES`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from lorafleet_inference.model import experts
from lorafleet_inference.model.quantization.method import Shape
from lorafleet_inference.model.quantization.weight import QuantizedWeight, merged

_NAMES = (
    (None, ("gate_proj", "up_proj", "down_proj")),
    ("block_sparse_moe", ("w1", "w3", "w2")),
    (None, ("w1", "w3", "w2")),
)
"""In files: the module that has experts, where that is not named as in the model, and the gate, up and down map of each."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stacked weight of the model, and where its parts are in the files."""

    module: str
    parameter: str
    pieces: tuple[tuple[str, ...], ...]
    """By expert: the maps in the files whose outputs follow each other."""
    shape: Shape
    """Of a piece, in the whole model."""

    @property
    def names(self) -> Iterator[str]:
        """All pieces."""
        return (name for of_expert in self.pieces for name in of_expert)


class GroupedProducts(Protocol):
    """What multiplies by the experts that rows chose."""

    def grouped(self, x: torch.Tensor, experts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Return [pairs, out] of x [pairs, in]; `experts` and `ends` as `experts.Sorted` has them."""


class StackedWeight(experts.Stacked):
    """Quantised weights [experts, out, in]. Without them until it is filled."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.ndim = shape, len(shape)
        self.pieces = torch.nn.ModuleList()
        """By expert: of weights whose outputs follow each other."""
        self.dtype = torch.float32
        """Of the numbers that it computes with."""
        self.kernels: GroupedProducts | None = None

    def append(self, pieces: Sequence[QuantizedWeight], dtype: torch.dtype) -> None:
        """Add the next expert: the weights that follow each other, as one where they lie alike."""
        assert sum(one.shape[0] for one in pieces) == self.shape[1]
        whole = merged(pieces) if len(pieces) > 1 else None
        self.pieces.append(torch.nn.ModuleList(pieces if whole is None else [whole]))
        self.dtype = dtype

    def __getitem__(self, expert: int) -> torch.Tensor:
        """Return the weight [out, in] of an expert; a copy."""
        return torch.cat([one.dequantized(self.dtype) for one in self._of(expert)])

    @property
    def waits(self) -> bool:
        """See `experts.Stacked`."""
        return self.kernels is None

    def grouped(self, x: torch.Tensor, pairs: experts.Sorted) -> torch.Tensor:
        """See `experts.Stacked`."""
        assert self.kernels is not None, "else it waits"
        return self.kernels.grouped(x, pairs.experts, pairs.ends)

    def one_of_each(self) -> Sequence[QuantizedWeight] | None:
        """Return the matrix of each expert; None where some have several."""
        weights = [one for expert in range(len(self.pieces)) for one in self._of(expert)]
        return weights if len(weights) == len(self.pieces) else None

    def product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """Return x W of x [.., in]."""
        parts = [one.product(x, None, self.dtype) for one in self._of(expert)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _of(self, expert: int) -> Iterator[QuantizedWeight]:
        pieces = self.pieces[expert]
        assert isinstance(pieces, torch.nn.ModuleList)
        for one in pieces:
            assert isinstance(one, QuantizedWeight)
            yield one


def stacks_of(model: PreTrainedModel, held: Collection[str] | None = None) -> list[Stack]:
    """Return the stacked weights of a model without weights. `held`: what the files hold, which says how they name it."""
    found = []
    for name, module in model.named_modules():
        if experts.can_adapt(module):
            first, *others = (_stacks(name, module, owner, parts) for owner, parts in _NAMES)
            named = (one for one in (first, *others) if held is not None and any(map(held.__contains__, one[0].names)))
            found += next(named, first if "mixtral" not in model.config.model_type else others[0])
    return found


def _stacks(name: str, module: torch.nn.Module, owner: str | None, parts: tuple[str, str, str]) -> list[Stack]:
    layer, _, own = name.removesuffix(".experts").rpartition(".")
    gate, up, down = parts
    stacked: Mapping[str, tuple[str, ...]] = {experts.UP: (gate, up), experts.DOWN: (down,)}
    made = []
    for parameter, maps in stacked.items():
        num_experts, num_out, num_in = getattr(module, parameter).shape
        pieces = tuple(
            tuple(f"{layer}.{owner or own}.experts.{expert}.{one}" for one in maps) for expert in range(num_experts)
        )
        made.append(Stack(name, parameter, pieces, (num_out // len(maps), num_in)))
    return made


def replace_stack(model: torch.nn.Module, name: str, parameter: str) -> StackedWeight:
    """Put quantised weights, none yet, in the place of a stacked weight."""
    module = model.get_submodule(name)
    num_experts, num_out, num_in = module.get_parameter(parameter).shape
    made = StackedWeight((num_experts, num_out, num_in))
    delattr(module, parameter)
    module.add_module(parameter, made)
    module._is_hf_initialized = True  # type: ignore[assignment]  # noqa: SLF001  for transformers, which else would draw a weight
    return made
