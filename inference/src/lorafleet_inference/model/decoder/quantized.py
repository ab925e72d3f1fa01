"""Products of the decoder whose weights are quantised: of those that lie alike one, of the others one after the other."""

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.model.base_rows import Stored
from lorafleet_inference.model.decoder.linear import Linear, Part
from lorafleet_inference.model.quantization.linear import QuantizedLinear
from lorafleet_inference.model.quantization.weight import QuantizedWeight, merged


class QuantizedProduct(Linear):
    """As a `Linear` of the same modules, of which some or all are quantised."""

    def __init__(self, modules: Sequence[torch.nn.Linear]) -> None:
        """Takes the weights over."""
        widths = [module.out_features for module in modules]
        torch.nn.Linear.__init__(self, modules[0].in_features, sum(widths), bias=False, device="meta")
        self.register_parameter("weight", None)
        self.dtype, device = _kind_of(modules)
        bias: torch.nn.Parameter | None = modules[0].bias
        if len(modules) > 1:
            has_bias = any(module.bias is not None for module in modules)
            whole = torch.zeros(sum(widths), dtype=self.dtype, device=device) if has_bias else None
            bias = None if whole is None else torch.nn.Parameter(whole, requires_grad=False)
        self.register_parameter("bias", bias)
        self.columns = []
        self.pieces = torch.nn.ModuleList()
        end = 0
        for module, width in zip(modules, widths, strict=True):
            columns = slice(end, end := end + width)
            self.columns.append(columns)
            if len(modules) > 1 and module.bias is not None and bias is not None:
                bias.detach()[columns] = module.bias.detach()
        self.pieces.extend(_pieces(modules))
        self._columns = self.columns if len(self.pieces) > 1 else [slice(0, end)]
        """Of each piece."""
        self.parts = []
        if len(modules) > 1:
            pairs = zip(self.columns, modules, strict=True)
            self.parts = [Part(self, columns, module.bias is not None) for columns, module in pairs]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in]; returns [T, sum of the outputs]. A copy with a weight of its own (`extras.py`) computes with that."""
        weight = self._parameters["weight"]
        if weight is not None:
            return F.linear(x, weight, self.bias)
        made = []
        for one, columns in zip(self.pieces, self._columns, strict=True):
            assert isinstance(one, QuantizedWeight | _Plain)
            made.append(one.product(x, None if self.bias is None else self.bias[columns], self.dtype))
        return made[0] if len(made) == 1 else torch.cat(made, -1)

    def plain_weight(self) -> torch.Tensor:
        """Return the weight [sum of the outputs, in]; a copy."""
        made = []
        for one in self.pieces:
            assert isinstance(one, QuantizedWeight | _Plain)
            made.append(one.dequantized(self.dtype))
        return made[0] if len(made) == 1 else torch.cat(made)

    def stored(self) -> list[tuple[Stored, slice]]:
        """As `StoresRows`."""
        found: list[tuple[Stored, slice]] = []
        for one, columns in zip(self.pieces, self._columns, strict=True):
            assert isinstance(one, QuantizedWeight | _Plain)
            stored = one.weight if isinstance(one, _Plain) else one
            found.append((stored, slice(0, columns.stop - columns.start)))
        return found


class _Plain(torch.nn.Module):
    """The weight of a module that is not quantised, beside some that are."""

    def __init__(self, module: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = module.weight
        module.weight = torch.nn.Parameter(module.weight.new_empty(0), requires_grad=False)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return it; it is of this dtype."""
        assert self.weight.dtype == dtype
        return self.weight

    def product(self, x: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Return x W + bias."""
        return F.linear(x, self.dequantized(dtype), bias)


def _pieces(modules: Sequence[torch.nn.Linear]) -> Iterator[torch.nn.Module]:
    """Take the weights from modules: one where they lie alike, else one of each."""
    weights = [module.quantized for module in modules if isinstance(module, QuantizedLinear)]
    found = [weight for weight in weights if weight is not None]
    whole = merged(found) if len(found) == len(modules) else None
    for module in modules:
        if not isinstance(module, QuantizedLinear):
            yield _Plain(module)
            continue
        weight, module.quantized = module.quantized, None
        assert weight is not None, "it was filled at load"
        if whole is None or len(modules) == 1:
            yield weight
    if whole is not None and len(modules) > 1:
        yield whole


def _kind_of(modules: Sequence[torch.nn.Linear]) -> tuple[torch.dtype, torch.device]:
    """Return the dtype that a product computes with, and where it lies."""
    for module in modules:
        if isinstance(module, QuantizedLinear):
            assert module.quantized is not None, "it was filled at load"
            return module.dtype, module.quantized.codes.device
    raise AssertionError("none is quantised")


def product_of(modules: Sequence[torch.nn.Linear]) -> Linear:
    """Return what computes the product of some modules at once, whose weights it takes over."""
    if any(isinstance(module, QuantizedLinear) for module in modules):
        return QuantizedProduct(modules)
    return Linear(modules)
