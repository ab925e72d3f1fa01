"""GPUs by the names that `lorafleet-inference plan` knows: what their makers say of memory and its rate."""

from dataclasses import dataclass

from lorafleet_inference.config import GIB


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU."""

    memory_bytes: int
    """As the driver reports it, rounded down; less than what the name says."""
    bytes_per_second: float
    """Of its memory, by its data sheet."""


CARDS = {
    "l4-24": Card(22 * GIB, 0.30e12),
    "a10g-24": Card(22 * GIB, 0.60e12),
    "l40s-48": Card(44 * GIB, 0.864e12),
    "a100-40": Card(39 * GIB, 1.555e12),
    "a100-80": Card(79 * GIB, 2.039e12),
    "h100-80": Card(79 * GIB, 3.35e12),
    "h200-141": Card(139 * GIB, 4.8e12),
    "b200-180": Card(178 * GIB, 8.0e12),
}
