"""Which kernels compute a model's steps: those of the CPU, Triton's, or neither, where plain torch does."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.kernels.cpu import CpuKernels, load_kernels
from lorafleet_inference.kernels.layer import CpuLayerOps
from lorafleet_inference.model.decoder import Decoder

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.backend import TritonKernels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepKernels:
    """Those that are there."""

    cpu: CpuKernels | None
    triton: "TritonKernels | None"

    @classmethod
    def of(cls, device: torch.device, config: EngineConfig, triton: "TritonKernels | None" = None) -> "StepKernels":
        """Load what a device computes with. `triton`: instead of the kernels that it would get."""
        cpu = load_kernels(config.kernel_cache) if config.cpu_kernels and device.type == "cpu" else None
        return cls(cpu, _triton_of(device, config) if triton is None else triton)

    def use_in(self, model: torch.nn.Module) -> None:
        """Have a model's layers computed by them, and its quantised weights where there are kernels for these."""
        if self.cpu is not None and isinstance(model, Decoder):
            model.ops = CpuLayerOps(self.cpu)
        if self.triton is not None and isinstance(model, Decoder):
            model.ops = self.triton.layer_ops
        if self.triton is not None:
            _quantised_by_kernels(model)


def _triton_of(device: torch.device, config: EngineConfig) -> "TritonKernels | None":
    if device.type != "cuda" or not config.gpu_kernels:
        return None
    from lorafleet_inference.kernels.triton.backend import load_triton  # noqa: PLC0415  there on Linux alone

    return load_triton(device, config.kernel_cache, dependent_launch=config.dependent_launch)


def _quantised_by_kernels(model: torch.nn.Module) -> None:
    from lorafleet_inference.model.quantization.on_gpu import use_kernels  # noqa: PLC0415  Triton is there on Linux alone

    done, left = use_kernels(model)
    if done or left:
        logger.info("quantised weights: %d by Triton kernels, %d brought back by torch", done, left)
