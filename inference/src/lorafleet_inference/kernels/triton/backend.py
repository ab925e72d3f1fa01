"""The Triton backend of a model on a CUDA device."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from lorafleet_inference.kernels.triton.blocks import Blocks, blocks_of
from lorafleet_inference.kernels.triton.paged import AttentionStep
from lorafleet_inference.kernels.triton.rows import LoraStep
from lorafleet_inference.kernels.triton.step import StepBlock

logger = logging.getLogger(__name__)


class TritonKernels:
    """Makes what a step needs; the tables of all its kernels go to the device in one copy."""

    def __init__(self, device: torch.device, blocks: Blocks) -> None:
        self._device, self._blocks = device, blocks
        self._block = StepBlock(device)

    def begin_step(self) -> None:
        """Begin the tables of the next step; those of the last one stay as they are until its kernels have run."""
        self._block = StepBlock(self._device)

    def attention(self, spans: Sequence[tuple[int, int, int, Sequence[int]]], slots: torch.Tensor) -> AttentionStep:
        """Prepare the attention of the step."""
        return AttentionStep(self._blocks, self._block, spans, slots)

    def lora(
        self, segments: Sequence[tuple[int, int]], pages: Sequence[Sequence[int]], ranks: Sequence[np.ndarray]
    ) -> LoraStep:
        """Prepare the LoRA of the step."""
        return LoraStep(self._blocks, self._block, segments, pages, ranks)


def load_triton(device: torch.device) -> TritonKernels | None:
    """Return the kernels for a device; None, with one warning, where it is too old for them."""
    blocks = blocks_of(device)
    if blocks is None:
        logger.warning("the GPU is older than the Triton kernels can use, plain torch computes instead")
        return None
    return TritonKernels(device, blocks)
