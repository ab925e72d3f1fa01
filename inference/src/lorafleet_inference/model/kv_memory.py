"""How much memory the KV cache of a device gets, and its pages."""

import logging

import msgspec
import torch

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import GIB, KV_BLOCK_TOKENS, EngineConfig, KvCacheDtype
from lorafleet_inference.device.interface import Device
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.memory import zeros
from lorafleet_inference.model.paged_step import LayerKV
from lorafleet_inference.model.sizing import DeviceMemory, kv_row_bytes, num_blocks_for, weight_bytes

logger = logging.getLogger(__name__)
CPU_KV_BYTES = GIB


def kv_layers(loaded: LoadedModel, num_blocks: int, kv_dtype: KvCacheDtype) -> list[LayerKV]:
    """Return pages of zeros for so many blocks, of each layer."""
    dtype = fp8_pages.DTYPE if kv_dtype == "fp8" else loaded.dtype

    def pages(num_heads: int, width: int) -> torch.Tensor:
        width = kv_row_bytes(width, dtype.itemsize, kv_dtype) // dtype.itemsize
        return zeros((num_blocks, num_heads, KV_BLOCK_TOKENS, width), dtype, loaded.device)

    return [
        LayerKV(pages(shape.num_kv_heads, shape.key_width), pages(shape.num_kv_heads, shape.value_width))
        for shape in loaded.shapes
    ]


def num_kv_blocks(num_bytes: int, block_bytes: int, config: EngineConfig, max_model_len: int) -> int:
    """Return the blocks that a KV cache of so many bytes has: no more than all requests of the largest step can fill.

    Raises:
        ConfigError: it holds none.
    """
    useful = config.max_batch_requests * num_blocks_for(max_model_len)
    num_blocks = min(num_bytes // block_bytes, useful)
    if num_blocks < 1:
        raise ConfigError(
            "--kv-cache-memory", f"{num_bytes} bytes hold no block of {block_bytes} bytes{_why(num_bytes)}"
        )
    return int(num_blocks)


def left_for_kv(on: Device, model: torch.nn.Module, *, adapters: int, activations: int, graphs: int) -> int:
    """Return the bytes of a device with memory of its own that KV gets; negative where the rest does not fit.

    `adapters`, `activations`, `graphs`: as `DeviceMemory` says.
    """
    found = on.bytes()
    assert found is not None, "a device without memory of its own is asked for none"
    weights = weight_bytes(model)
    memory = DeviceMemory(
        found.total, found.total - found.free - weights - adapters, weights, adapters, activations, graphs
    )
    logger.info("device memory: %s", memory.text())
    return memory.kv_cache


def cut_to(num_kv_tokens: int, facts: ModelFacts) -> ModelFacts:
    """Return the facts with a context that the KV cache can hold: a longer one is promised to nobody."""
    if num_kv_tokens >= facts.max_model_len:
        return facts
    logger.warning(
        "the KV cache holds %d tokens, so the context is cut from %d to that; --kv-cache-memory makes it larger",
        num_kv_tokens,
        facts.max_model_len,
    )
    return msgspec.structs.replace(facts, max_model_len=num_kv_tokens)


def _why(num_bytes: int) -> str:
    if num_bytes > 0:
        return ""
    return (
        ": weights, adapters and the largest step take all of the device; --adapter-memory and --max-batch-tokens make them "
        "smaller, and `lorafleet-inference plan` says what fits"
    )
