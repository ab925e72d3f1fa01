"""Linear layers whose weight is quantised: it is brought back for each product, and is never kept."""

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.model.quantization.weight import QuantizedWeight


class QuantizedLinear(torch.nn.Linear):
    """x W + b, as of the layer that it stands for. Without a weight until `quantized` is set."""

    def __init__(self, source: torch.nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=False, device="meta")
        self.register_parameter("weight", None)
        self.register_parameter("bias", source.bias)
        self.quantized: QuantizedWeight | None = None
        self.dtype = torch.float32
        """Of the numbers that it computes with."""
        self._is_hf_initialized = True
        """For transformers, which else would draw a weight."""

    def fill(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        """Set the weight, [out, in]."""
        assert weight.shape == (self.out_features, self.in_features)
        self.quantized, self.dtype = weight, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [.., in]; returns [.., out]. A copy with a weight of its own (`extras.py`) computes with that."""
        weight = self._parameters["weight"]
        if weight is not None:
            return F.linear(x, weight, self.bias)
        assert self.quantized is not None, "it was filled at load"
        return self.quantized.product(x, self.bias, self.dtype)

    def plain_weight(self) -> torch.Tensor:
        """Return its weight [out, in]; a copy."""
        assert self.quantized is not None, "it was filled at load"
        return self.quantized.dequantized(self.dtype)

    def stored(self) -> list[tuple[QuantizedWeight, slice]]:
        """As `StoresRows` of `base_rows.py`."""
        assert self.quantized is not None, "it was filled at load"
        return [(self.quantized, slice(0, self.out_features))]
