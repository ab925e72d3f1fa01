"""The operations of `kernels/layer_ops.py` by the kernels of `layer.py`."""

from typing import Final

import torch

from lorafleet_inference.kernels.fp8_pages import is_fp8
from lorafleet_inference.kernels.layer_ops import Activation, HeadSpec, TorchLayerOps
from lorafleet_inference.kernels.triton import dependent, layer
from lorafleet_inference.kernels.triton.launch import launch

ELEMENTS_A_WARP: Final = 512
"""Of a row of a norm."""
MAX_WARPS: Final = 16
MAX_NORM_WIDTH: Final = 32768
"""One program holds a row."""
GATE_BLOCK: Final = 1024
HEADS_A_PROGRAM: Final = 8


class TritonLayerOps(TorchLayerOps):
    """One launch each. Where KV is written, `rotate_write` takes the place of `rotate`."""

    def __init__(self, *, is_dependent: bool = False) -> None:
        """`is_dependent`: norm and gate begin before the launch ahead of them is done."""
        self._constants = dependent.constants(is_dependent=is_dependent)

    def begin_early(self, is_dependent: bool) -> None:
        """Say it from now on."""
        self._constants = dependent.constants(is_dependent=is_dependent)

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
        rows, width = x.shape[-2:]
        if x.dim() != 2 or width > MAX_NORM_WIDTH:
            return super().norm(x, weight, eps, residual=residual, unit_offset=unit_offset)
        assert residual is None or residual.is_contiguous()
        if x.stride(1) != 1:
            x = x.contiguous()
        out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
        pad = 1 << (width - 1).bit_length()
        launch(
            layer.add_norm,
            (rows,),
            (out, x, x.stride(0), x if residual is None else residual, weight, width, eps),
            {
                "ADD": residual is not None, "UNIT": unit_offset, "PAD": pad,
                "num_warps": min(MAX_WARPS, max(1, pad // ELEMENTS_A_WARP)), **self._constants,
            },
        )  # fmt: skip
        return out

    def gate(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """As `LayerOps`."""
        if gate_up.stride(1) != 1:
            gate_up = gate_up.contiguous()
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
        launch(
            layer.gate,
            (rows, -(-width // GATE_BLOCK)),
            (out, gate_up, gate_up.stride(0), width),
            {"GELU": activation is Activation.GELU_TANH, "BLOCK": GATE_BLOCK, "num_warps": 4, **self._constants},
        )
        return out


def rotate_write(
    qkv: torch.Tensor,
    heads: HeadSpec,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Rotate qkv [T, (H + 2 G) D], put keys and values into their pages, and return the queries [T, H, D].

    keys and values [num_blocks, G, block, D], or in 8 bits, as `fp8_pages` says; cos and sin [T, R]; slots [T] int64: block *
    tokens of a block + offset, -1 for padding.
    """
    qkv, cos, sin = (one if one.stride(1) == 1 else one.contiguous() for one in (qkv, cos, sin))
    tokens, half = len(qkv), cos.shape[1] // 2
    query = torch.empty((tokens, heads.num_heads, heads.width), dtype=qkv.dtype, device=qkv.device)
    is_normed = heads.q_norm is not None and heads.k_norm is not None
    norms = (heads.q_norm, heads.k_norm) if is_normed else (qkv, qkv)  # pointers that are not read
    launch(
        layer.rotate_write,
        (tokens, -(-heads.num_rows // HEADS_A_PROGRAM)),
        (query, keys, values, qkv, qkv.stride(0), cos, cos.stride(0), sin, sin.stride(0), slots, *norms, heads.eps),
        {
            "H": heads.num_heads, "G": heads.num_kv_heads, "BLOCK": keys.shape[2], "WIDTH": heads.width, "HALF": half,
            "HALF_PAD": _padded(half), "REST_PAD": _padded(heads.width - 2 * half), "HEADS": HEADS_A_PROGRAM,
            "NORM": is_normed, "UNIT": heads.unit_offset, "FP8": is_fp8(keys), "num_warps": 4,
        },
    )  # fmt: skip
    return query


def _padded(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
