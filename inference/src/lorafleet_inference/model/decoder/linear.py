"""Linear layers of the decoder: one product for the modules that read the same input.

Adapters, hooks and files know modules by transformers' names (`q_proj`), and go on finding them there: each is a `Part`, which has
its columns of what the product gives and no weight of its own.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.base_rows import Stored, StoresRows

Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums over the ranks of a model."""


class Linear(torch.nn.Linear):
    """The product x W + b of several modules at once, W [sum of their outputs, in]."""

    total: Total | None = None
    """Sums what the ranks of a model give, where each has some of the inputs. Hooks see what is to be summed."""

    def __init__(self, modules: Sequence[torch.nn.Linear]) -> None:
        """Takes the weights over: `modules` are left without, one after the other, so that few exist twice at any time."""
        first = modules[0].weight
        widths = [module.out_features for module in modules]
        super().__init__(modules[0].in_features, sum(widths), bias=False, device="meta")
        weight = first
        bias: torch.nn.Parameter | None = modules[0].bias
        if len(modules) > 1:
            weight = torch.nn.Parameter(first.new_empty(sum(widths), self.in_features), requires_grad=False)
            has_bias = any(module.bias is not None for module in modules)
            bias = torch.nn.Parameter(first.new_zeros(sum(widths)), requires_grad=False) if has_bias else None
        self.weight = weight
        self.register_parameter("bias", bias)
        self.columns: list[slice] = []
        """Of each module."""
        end = 0
        for module, width in zip(modules, widths, strict=True):
            columns = slice(end, end := end + width)
            self.columns.append(columns)
            if len(modules) > 1:
                weight.detach()[columns] = module.weight.detach()
                if module.bias is not None and bias is not None:
                    bias.detach()[columns] = module.bias.detach()
            module.weight = torch.nn.Parameter(first.new_empty(0), requires_grad=False)
        has_biases = [module.bias is not None for module in modules]
        self.parts = [Part(self, columns, has_bias) for columns, has_bias in zip(self.columns, has_biases, strict=True)]
        """One for each module, where there are several; else this is the module itself."""
        if len(modules) == 1:
            self.parts = []

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in]; returns [T, sum of the outputs], with what hooks of the parts do to their columns."""
        y: torch.Tensor = self(x)
        for part, columns in zip(self.parts, self.columns, strict=False):
            part(x, y[:, columns])
        return y if self.total is None else self.total(y)


class Part(torch.nn.Module):
    """Stands where a module was whose product a `Linear` computes: hooks see its input and its output [T, out], a view."""

    def __init__(self, whole: Linear, columns: slice, has_bias: bool) -> None:
        super().__init__()
        self._whole = (whole,)  # a tuple: it is no child
        self._columns = columns
        self.in_features, self.out_features = whole.in_features, columns.stop - columns.start
        # a buffer, as the parameter is the whole's
        self.register_buffer("bias", whole.bias[columns].detach() if has_bias else None, persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Return y, which is computed already; without it x [.., in] times this copy's own weight (`extras.py`)."""
        if y is not None:
            return y
        weight = self._parameters["weight"]
        assert weight is not None
        bias = self._parameters.get("bias", self._buffers["bias"])
        return F.linear(x, weight, bias)

    def plain_weight(self) -> torch.Tensor:
        """Return its weight [out, in]; a copy where that of the whole is packed."""
        return plain_weight(self._whole[0])[self._columns]

    def stored(self) -> list[tuple[Stored, slice]]:
        """As `StoresRows`."""
        whole = self._whole[0]
        all_rows = (
            whole.stored() if isinstance(whole, StoresRows) else [(plain_weight(whole), slice(0, whole.out_features))]
        )
        found, first = [], 0
        for one, rows in all_rows:
            begin = max(rows.start, rows.start + self._columns.start - first)
            end = min(rows.stop, rows.start + self._columns.stop - first)
            if begin < end:
                found.append((one, slice(begin, end)))
            first += rows.stop - rows.start
        return found
