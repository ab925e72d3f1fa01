"""Tiles so small that tiny shapes have edges within them."""

from lorafleet_inference.kernels.triton.blocks import Blocks, LoraBlocks, PrefillBlocks

_PREFILL = PrefillBlocks(256, rows=32, keys=16, warps=4)
SMALL = Blocks(
    few=LoraBlocks(
        tokens=16, step=32, split=64, shrink_warps=4, width=32, columns=2 * 32, expand_warps=4, expand_stages=2
    ),
    many=LoraBlocks(
        tokens=32, step=64, split=64, shrink_warps=4, width=64, columns=2 * 64, expand_warps=4, expand_stages=2
    ),
    decode_keys=16,
    decode_keys_float32=16,
    prefill=(_PREFILL,),
    prefill_float32=_PREFILL,
    shared_bytes=96 << 10,
    programs=8,
)
