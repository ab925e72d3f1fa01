"""What a pod's memory is for, from shapes alone: a pod at its start and `lorafleet-inference plan` reckon by this."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorafleet_common.errors import ConfigError
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.config import GIB, KV_BLOCK_TOKENS, EngineConfig, KvCacheDtype
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.model.attention import LayerShape
from lorafleet_inference.model.quantization.weight import QuantizedWeight

ADAPTER_PART = 0.25
"""Part of what the weights leave of a CUDA device that adapters get, where nobody says how much."""
GRAPH_BYTES = 4 << 20
"""What CUDA keeps of one captured step, about: none of it is known here before it is captured."""
RESERVE = 0.08
"""Part of a device's memory that is left free: what allocators lose, and steps that are larger than the measured one."""


def kv_row_bytes(width: int, itemsize: int, kv_dtype: KvCacheDtype) -> int:
    """Return the bytes that a token's key or value of one head takes."""
    return fp8_pages.row_bytes(width) if kv_dtype == "fp8" else width * itemsize


def kv_token_bytes(shape: LayerShape, itemsize: int, kv_dtype: KvCacheDtype) -> int:
    """Return the bytes that a token takes in a layer."""
    rows = (kv_row_bytes(width, itemsize, kv_dtype) for width in (shape.key_width, shape.value_width))
    return shape.num_kv_heads * sum(rows)


def kv_block_bytes(shapes: Sequence[LayerShape], itemsize: int, kv_dtype: KvCacheDtype) -> int:
    """Return the bytes of a KV block in all layers."""
    return KV_BLOCK_TOKENS * sum(kv_token_bytes(shape, itemsize, kv_dtype) for shape in shapes)


def pool_pages(config: EngineConfig, layout: RowLayout, itemsize: int, free_bytes: int | None) -> int:
    """Return how many pages adapters get on a device.

    free_bytes: of the device beside the weights, None where it is not known. As many as were asked for are not bounded by
    what adapters of the largest rank take: some have whole modules of their own.

    Raises:
        ConfigError: an adapter of the largest rank does not fit.
    """
    page_bytes = layout.page * itemsize
    largest = layout.num_pages(config.max_rank)
    pages = config.max_resident_adapters * largest
    if config.adapter_memory_bytes is None:
        room = pages * page_bytes if free_bytes is None else max(int(free_bytes * ADAPTER_PART), largest * page_bytes)
        return min(pages, room // page_bytes)
    room = config.adapter_memory_bytes
    if room < largest * page_bytes:
        raise ConfigError(
            "--adapter-memory",
            f"{room} bytes hold no adapter of rank {config.max_rank}, which takes {largest * page_bytes}; "
            "--max-rank makes that smaller",
        )
    return room // page_bytes


def num_blocks_for(num_tokens: int) -> int:
    """Return the KV blocks that a sequence of so many tokens takes."""
    return math.ceil(num_tokens / KV_BLOCK_TOKENS)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and quantised weights; those that are tied count once."""
    plain = sum(one.numel() * one.element_size() for one in model.parameters())
    return plain + sum(one.num_bytes for one in model.modules() if isinstance(one, QuantizedWeight))


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory in bytes, by what it is for."""

    total: int
    other: int
    """What the device's driver, or who else uses it, takes."""
    weights: int
    adapters: int
    activations: int
    """Of the largest step, its logits included."""
    graphs: int = 0
    """Of steps that are captured, about."""

    @property
    def reserve(self) -> int:
        """What is left free."""
        return int(self.total * RESERVE)

    @property
    def kv_cache(self) -> int:
        """What is left for KV; negative where the rest does not fit."""
        taken = self.other + self.weights + self.adapters + self.activations + self.graphs
        return self.total - taken - self.reserve

    def text(self) -> str:
        """Return one line for the log."""
        parts = {
            "weights": self.weights,
            "adapters": self.adapters,
            "activations": self.activations,
            "captured steps": self.graphs,
            "others": self.other,
            "left free": self.reserve,
            "KV cache": self.kv_cache,
        }
        shown = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return f"{shown} of {self.total / GIB:.2f} GiB"
