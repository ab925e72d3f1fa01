"""Sizes of the models that are measured."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of a Llama whose head is tied to its embedding."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(2, 64, 128, 2, 1, 512),
    "8m": Size(6, 256, 1024, 8, 4, 8192),
    "124m": Size(12, 768, 2048, 12, 12, 50257),
    "wide": Size(4, 2048, 8192, 32, 8, 8192),
    "1b": Size(16, 2048, 8192, 32, 8, 128256),
    "8b": Size(32, 4096, 14336, 32, 8, 128256),
}
