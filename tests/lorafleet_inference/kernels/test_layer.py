"""What the CPU's kernels compute between products equals plain torch."""

import pytest
import torch

from lorafleet_inference.kernels.cpu import CpuKernels
from lorafleet_inference.kernels.layer import CpuLayerOps
from lorafleet_inference.kernels.layer_ops import Activation, HeadSpec, TorchLayerOps

ROWS = (1, 7, 8, 65)
TORCH = TorchLayerOps()


def close(ours: torch.Tensor, right: torch.Tensor) -> bool:
    return ours.dtype == right.dtype and torch.allclose(ours, right, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.parametrize("unit_offset", [False, True])
def test_norm(kernels: CpuKernels, rows: int, width: int, unit_offset: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, width + 3)[:, :width], torch.randn(width)
    ops = CpuLayerOps(kernels)
    right = TORCH.norm(x, weight, 1e-5, unit_offset=unit_offset)
    assert close(ops.norm(x, weight, 1e-5, unit_offset=unit_offset), right)
    residual = torch.randn(rows, width)
    other = residual.clone()
    right = TORCH.norm(x, weight, 1e-6, residual=other, unit_offset=unit_offset)
    assert close(ops.norm(x, weight, 1e-6, residual=residual, unit_offset=unit_offset), right)
    assert torch.equal(residual, other)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("activation", Activation)
def test_gate(kernels: CpuKernels, rows: int, activation: Activation) -> None:
    torch.manual_seed(rows)
    gate_up = torch.randn(rows, 2 * 33) * 20
    if rows > 1:
        gate_up[1, 3], gate_up[1, 4], gate_up[1, 5] = 1e4, -1e4, float("nan")
    assert close(CpuLayerOps(kernels).gate(gate_up, activation), TORCH.gate(gate_up, activation))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("rotary", [8, 16])
@pytest.mark.parametrize("has_norms", [False, True])
def test_rotate(kernels: CpuKernels, rows: int, rotary: int, has_norms: bool) -> None:
    torch.manual_seed(rows)
    norms = (torch.randn(16), torch.randn(16), 1e-5, True) if has_norms else ()
    heads = HeadSpec(4, 2, 16, *norms)
    qkv, cos, sin = torch.randn(rows, 8 * 16), torch.randn(rows, rotary), torch.randn(rows, rotary)
    before = qkv.clone()
    assert close(CpuLayerOps(kernels).rotate(qkv, heads, cos, sin), TORCH.rotate(qkv, heads, cos, sin))
    assert torch.equal(qkv, before), "nobody changed what came in"


def test_other_dtypes_are_left_to_torch(kernels: CpuKernels) -> None:
    ops = CpuLayerOps(kernels)
    x, weight = torch.randn(3, 64, dtype=torch.bfloat16), torch.randn(64, dtype=torch.bfloat16)
    cos = torch.randn(3, 16, dtype=torch.bfloat16)
    heads = HeadSpec(2, 1, 16)
    assert torch.equal(ops.norm(x, weight, 1e-5), TORCH.norm(x, weight, 1e-5))
    assert torch.equal(ops.gate(x, Activation.SILU), TORCH.gate(x, Activation.SILU))
    assert torch.equal(ops.rotate(x, heads, cos, cos), TORCH.rotate(x, heads, cos, cos))
