"""What an adapter is, as validation found it and as the engine loads it."""

from dataclasses import dataclass
from pathlib import Path

from lorafleet_contract.sources import AdapterFacts


@dataclass(frozen=True, slots=True)
class LoraSite:
    """One changed module: `y += scale * B (A x)` with A [rank, in_features] and B [out_features, rank]."""

    module: str
    """As in `named_modules()` of the base model."""
    rank: int
    scale: float
    a_key: str
    b_key: str
    """Tensor names in the adapter's safetensors files. Of an embedding: A [rank, vocabulary], B [hidden, rank]."""


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """A validated adapter: everything in it is computed; what is not was refused."""

    directory: Path
    sites: tuple[LoraSite, ...]
    """Sorted by module name."""
    files: tuple[str, ...]
    """Safetensors files, relative to the directory."""
    facts: AdapterFacts

    @property
    def rank(self) -> int:
        """The largest rank of any site."""
        return max((site.rank for site in self.sites), default=0)
