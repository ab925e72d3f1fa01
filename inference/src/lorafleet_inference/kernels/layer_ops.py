"""Operations between the products of a layer, each as one step of its own: norm with residual, rotary, gate.

By plain torch here, the reference; `triton/layer_ops.py` has them by one launch each.
Axes: T tokens of the step, H query heads, G key-value heads, D head width, R rotated elements of a head.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch.nn import functional as F  # noqa: N812


class Activation(Enum):
    """What a gate goes through."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The heads of an attention whose values are as wide as its keys."""

    num_heads: int
    num_kv_heads: int
    width: int
    q_norm: torch.Tensor | None = None
    """[D]: weight of an RMS norm of each query head before it is rotated; None: there is none."""
    k_norm: torch.Tensor | None = None
    """[D]: likewise, of the key heads; there are both or none."""
    eps: float = 0.0
    """Of these norms."""
    unit_offset: bool = False
    """Whether their weights count from one."""

    @property
    def num_rows(self) -> int:
        """Heads of a token: queries, then keys, then values."""
        return self.num_heads + 2 * self.num_kv_heads


class LayerOps(Protocol):
    """What is computed between products. Sums are float32, each result is rounded once."""

    def norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        residual: torch.Tensor | None = None,
        unit_offset: bool = False,
    ) -> torch.Tensor:
        """Return the RMS norm of rows, [T, width]. x [T, width], weight [width]; the last stride of each is 1.

        `residual` [T, width], contiguous: x is added to it, in place and rounded, and the sum is what the norm is of.
        `unit_offset`: the weight counts from one.
        """

    def gate(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return act(gate) * up [T, width], of [T, 2 width] whose rows are gate, then up."""

    def rotate(self, qkv: torch.Tensor, heads: HeadSpec, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return qkv [T, (H + 2 G) D] with its query and key heads normed, where they are, and rotated.

        cos and sin [T, R], R even and at most D, whose second half repeats the first: the first R elements of a head are
        rotated, by halves.
        """


class TorchLayerOps(LayerOps):
    """By plain torch, on any device."""

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
        if residual is not None:
            x = residual.add_(x)
        if not unit_offset and x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), weight, eps)
        wide = weight.float() + 1.0 if unit_offset else weight.float()
        return F.rms_norm(x.float(), (x.shape[-1],), wide, eps).to(x.dtype)

    def gate(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """As `LayerOps`."""
        gate, up = gate_up.float().chunk(2, -1)
        gate = F.silu(gate) if activation is Activation.SILU else F.gelu(gate, approximate="tanh")
        return (gate * up).to(gate_up.dtype)

    def rotate(self, qkv: torch.Tensor, heads: HeadSpec, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        rows = qkv.reshape(len(qkv), heads.num_rows, heads.width)
        parts = rows.split((heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), 1)
        turned = [
            _rotated(self._normed(part, weight, heads), cos, sin).to(qkv.dtype)
            for part, weight in zip(parts[:2], (heads.q_norm, heads.k_norm), strict=True)
        ]
        return torch.cat((*turned, parts[2]), 1).view(len(qkv), -1)

    def _normed(self, rows: torch.Tensor, weight: torch.Tensor | None, heads: HeadSpec) -> torch.Tensor:
        """Return rows [T, some heads, D] float32, with the norm of heads where there is one."""
        wide = rows.float()
        if weight is None:
            return wide
        return self.norm(wide, weight.float(), heads.eps, unit_offset=heads.unit_offset)


def _rotated(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """rows [T, some heads, D] float32."""
    width = cos.shape[-1]
    turning, rest = rows[..., :width], rows[..., width:]
    low, high = turning.chunk(2, -1)
    turned = turning * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]
    return torch.cat((turned, rest), -1)
