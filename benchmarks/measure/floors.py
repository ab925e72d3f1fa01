"""The least time that a step can take: bytes over the memory's measured rate, or operations over the measured rate of products."""

from collections.abc import Sequence
from dataclasses import dataclass

from measure.sizes import Size


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device was measured to do."""

    bytes_per_second: float
    """Read and written, of one large copy."""
    flops_per_second: float
    """Of one large product, in the dtype of the weights."""


def linear_parameters(size: Size) -> int:
    """Return the weights that each token is multiplied with, the head included; of an embedding only rows are read."""
    return size.layers * sum(inner * outer for inner, outer in modules(size)) + size.hidden * size.vocabulary


def modules(size: Size) -> list[tuple[int, int]]:
    """Return (in, out) of the linear modules of a layer."""
    kv = size.hidden * size.kv_heads // size.heads
    hidden, wide = size.hidden, size.intermediate
    return [
        (hidden, hidden),
        (hidden, kv),
        (hidden, kv),
        (hidden, hidden),
        (hidden, wide),
        (hidden, wide),
        (wide, hidden),
    ]


def kv_bytes_per_token(size: Size, itemsize: int) -> int:
    """Return the bytes of keys and values of one token."""
    return size.layers * 2 * (size.hidden * size.kv_heads // size.heads) * itemsize


def lora_bytes(size: Size, ranks: Sequence[int], itemsize: int) -> int:
    """Return the bytes of A and B of adapters on all linear modules: each once, by its true rank."""
    return sum(ranks) * size.layers * sum(inner + outer for inner, outer in modules(size)) * itemsize


def decode_seconds(
    size: Size, itemsize: int, ceilings: Ceilings, *, batch: int, context: int, ranks: Sequence[int]
) -> float:
    """Return the floor of a step of one token for each of `batch` sequences of `context` tokens.

    `ranks`: of the adapters in the step. Weights, keys, values, A and B are read once; what is small beside them is left out.
    """
    read = linear_parameters(size) * itemsize
    read += batch * context * kv_bytes_per_token(size, itemsize)
    read += lora_bytes(size, ranks, itemsize)
    return max(read / ceilings.bytes_per_second, 2 * linear_parameters(size) * batch / ceilings.flops_per_second)


def prefill_seconds(size: Size, itemsize: int, ceilings: Ceilings, *, tokens: int, rank: int) -> float:
    """Return the floor of the step of one prompt; logits are of its last token alone. `rank`: 0 without an adapter."""
    head = size.hidden * size.vocabulary
    each = linear_parameters(size) - head
    each += rank * size.layers * sum(inner + outer for inner, outer in modules(size))
    attention = size.layers * 2 * size.hidden * tokens * tokens  # QK and PV, the lower triangle of each
    flops = 2 * each * tokens + attention + 2 * head
    return max(flops / ceilings.flops_per_second, linear_parameters(size) * itemsize / ceilings.bytes_per_second)
