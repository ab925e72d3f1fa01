"""How large the tiles are that one program computes: tables by architecture, chosen at the start and never tuned.

The sizes keep each kernel without spilled registers and within the shared memory of its architecture, which the compile
tests check.
"""

from dataclasses import dataclass, replace

import torch

from lorafleet_inference.device import cuda

MIN_DOT = 16
"""Tensor cores take products of at least so many rows, columns and sums."""
STAGES = 2
"""Tiles of keys and values that are on their way at the same time."""


@dataclass(frozen=True, slots=True)
class LoraBlocks:
    """For items of up to `tokens` rows."""

    tokens: int
    step: int
    """Elements of x and A in one round of `shrink`."""
    split: int
    """`shrink` cuts its sum into parts of about so many elements."""
    shrink_warps: int
    width: int
    """Columns in one round of `expand`."""
    columns: int
    """Columns of one of its programs, at most."""
    expand_warps: int
    expand_stages: int


@dataclass(frozen=True, slots=True)
class PrefillBlocks:
    """For heads of up to `width` elements."""

    width: int
    rows: int
    keys: int
    warps: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sizes for one architecture."""

    few: LoraBlocks
    """Where no adapter has many tokens in the step."""
    many: LoraBlocks
    decode_keys: int
    decode_keys_float32: int
    """Products of float32 do not use tensor cores, and take registers for each of their terms."""
    prefill: tuple[PrefillBlocks, ...]
    """By width, ascending."""
    prefill_float32: PrefillBlocks
    shared_bytes: int
    """Shared memory that one program may take."""
    programs: int
    """So many programs of `decode` keep the memory busy."""
    dependent_launch: bool = False
    """Whether kernels that can begin before the launch ahead of them is done (`dependent.py`)."""

    def keys_of(self, keys: int, key_bytes: int) -> int:
        """Return the keys of a round, at most `keys`, that fit into shared memory at `key_bytes` a key and its value."""
        while keys > MIN_DOT and keys * key_bytes * STAGES > self.shared_bytes:
            keys //= 2
        return keys


_FEW = LoraBlocks(
    tokens=16, step=128, split=1024, shrink_warps=4, width=128, columns=512, expand_warps=4, expand_stages=3
)
_FEW_HOPPER = LoraBlocks(
    tokens=16, step=256, split=1024, shrink_warps=2, width=128, columns=512, expand_warps=4, expand_stages=3
)
_MANY = LoraBlocks(
    tokens=64, step=64, split=1024, shrink_warps=4, width=128, columns=512, expand_warps=8, expand_stages=2
)
_FLOAT32 = PrefillBlocks(width=256, rows=16, keys=16, warps=4)
AMPERE = Blocks(
    few=_FEW,
    many=_MANY,
    decode_keys=64,
    decode_keys_float32=16,
    prefill=(PrefillBlocks(128, rows=64, keys=32, warps=4), PrefillBlocks(256, rows=64, keys=32, warps=8)),
    prefill_float32=_FLOAT32,
    shared_bytes=96 << 10,  # of a GPU of this family with the least, as the L4 and the A10
    programs=5 * 108,
)
HOPPER = Blocks(
    few=_FEW_HOPPER,
    many=_MANY,
    decode_keys=64,
    decode_keys_float32=16,
    prefill=(PrefillBlocks(128, rows=128, keys=64, warps=8), PrefillBlocks(256, rows=128, keys=32, warps=8)),
    prefill_float32=_FLOAT32,
    shared_bytes=160 << 10,
    programs=5 * 132,
)


DEPENDENT_LAUNCH = 9
"""Compute capability from which on a launch may depend on another one by program."""


def blocks_of(device: torch.device, *, dependent_launch: bool = False) -> Blocks | None:
    """Return the sizes for a CUDA device; None for one older than Ampere.

    `dependent_launch`: where the device has it.
    """
    major, _minor = cuda.capability(device)
    if major < 8:
        return None
    sizes = HOPPER if major in {9, 10, 11} else AMPERE
    return replace(sizes, dependent_launch=dependent_launch and major >= DEPENDENT_LAUNCH)
