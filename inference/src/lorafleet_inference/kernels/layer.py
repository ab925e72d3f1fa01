"""The operations between the products of a layer, by the compiled kernels of the CPU; by plain torch what they do not read."""

from typing import Any

import numpy as np
import torch

from lorafleet_inference.kernels.cpu import CpuKernels
from lorafleet_inference.kernels.layer_ops import Activation, HeadSpec, TorchLayerOps

MAX_NUMBERS = 16
"""That a kernel is given."""


class CpuLayerOps(TorchLayerOps):
    """float32 by kernels, all else by torch."""

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels
        # one array for all calls, as making them costs more than a few rows do: the numbers of a call, then the next block
        self._numbers = np.zeros(MAX_NUMBERS + 1, dtype=np.int64)
        self._numbers[0] = self._numbers.ctypes.data + 8 * MAX_NUMBERS
        self._factors: dict[tuple[float, bool], tuple[np.ndarray[Any, np.dtype[np.float32]], int]] = {}
        """By eps and unit offset, what norms read of them, and its address."""

    def norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        residual: torch.Tensor | None = None,
        unit_offset: bool = False,
    ) -> torch.Tensor:
        """As `LayerOps`."""
        if x.dtype != torch.float32 or x.dim() != 2 or x.stride(1) != 1:
            return super().norm(x, weight, eps, residual=residual, unit_offset=unit_offset)
        assert residual is None or residual.is_contiguous()
        out = x.new_empty(x.shape)
        added = 0 if residual is None else residual.data_ptr()
        self._run("norm", x, out, weight.data_ptr(), added, self._factors_of(eps, unit_offset))
        return out

    def gate(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """As `LayerOps`."""
        if gate_up.dtype != torch.float32 or gate_up.stride(1) != 1:
            return super().gate(gate_up, activation)
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        self._run("gate", gate_up, out, int(activation is Activation.GELU_TANH))
        return out

    def rotate(self, qkv: torch.Tensor, heads: HeadSpec, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        if qkv.dtype != torch.float32 or cos.dtype != torch.float32 or qkv.stride(1) != 1:
            return super().rotate(qkv, heads, cos, sin)
        assert cos.stride() == sin.stride() == (cos.shape[1], 1)
        out = qkv.new_empty(qkv.shape)
        norms = [0 if one is None else one.data_ptr() for one in (heads.q_norm, heads.k_norm)]
        self._run(
            "rotate", qkv, out, heads.num_heads, heads.num_heads + heads.num_kv_heads, heads.num_rows, cos.shape[1],
            cos.data_ptr(), sin.data_ptr(), cos.stride(0), *norms, self._factors_of(heads.eps, heads.unit_offset),
            width=heads.width,
        )  # fmt: skip
        return out

    def _factors_of(self, eps: float, unit_offset: bool) -> int:
        found = self._factors.get((eps, unit_offset))
        if found is None:
            made = np.array([eps, float(unit_offset)], dtype=np.float32)
            found = self._factors[eps, unit_offset] = (made, made.ctypes.data)
        return found[1]

    def _run(self, name: str, x: torch.Tensor, out: torch.Tensor, *more: int, width: int | None = None) -> None:
        numbers = self._numbers
        numbers[MAX_NUMBERS] = 0
        common = (len(x), out.shape[1] if width is None else width, x.data_ptr(), x.stride(0), out.data_ptr())
        numbers[1 : 6 + len(more)] = (*common, *more)
        self._kernels.run(self._kernels.layer[name], numbers)
