"""What a merge of adapters is: its parts, their weights and how they come together; and its identity."""

import hashlib
from collections.abc import Sequence
from enum import StrEnum

import msgspec


class MergeMethod(StrEnum):
    """How parts come together, by the names of LoRAX and PEFT."""

    LINEAR = "linear"
    """The weighted sum of what the parts add to each module, exactly: their ranks stand beside each other."""
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"
    MAGNITUDE_PRUNE = "magnitude_prune"
    """These work on A and on B by themselves, as PEFT's `add_weighted_adapter` does."""

    @property
    def prunes(self) -> bool:
        """Whether only the part of the values that `density` says is kept."""
        return self is not MergeMethod.LINEAR

    @property
    def prunes_at_random(self) -> bool:
        """Whether it is drawn which ones."""
        return self in (MergeMethod.DARE_LINEAR, MergeMethod.DARE_TIES)

    @property
    def elects_signs(self) -> bool:
        """Whether values of the sign that loses are left out."""
        return self in (MergeMethod.TIES, MergeMethod.DARE_TIES)


class MajoritySign(StrEnum):
    """Which sign of a value wins."""

    TOTAL = "total"
    """That of the sum of the values."""
    FREQUENCY = "frequency"
    """That of most of the values."""


class MergePart(msgspec.Struct, frozen=True, array_like=True):
    """One adapter of a merge."""

    name: str
    """For messages."""
    digest: str
    directory: str
    weight: float


class Merge(msgspec.Struct, frozen=True):
    """A merge as `merge_of` makes it: what does not count for its method has one value."""

    parts: tuple[MergePart, ...]
    method: MergeMethod
    density: float
    """Part of the values that are kept, above 0 and up to 1."""
    majority_sign: MajoritySign

    @property
    def digest(self) -> str:
        """Its identity, `sha256:<64 hex>`: parts by their content, weights, and how they are merged."""
        lines = [f"merge {self.method} {self.density.hex()} {self.majority_sign}\n"]
        lines += [f"{part.digest} {part.weight.hex()}\n" for part in self.parts]
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def merge_of(parts: Sequence[MergePart], method: MergeMethod, *, density: float, majority_sign: MajoritySign) -> Merge:
    """Return a merge, in the form that is the same for all requests that mean the same."""
    method = MergeMethod.LINEAR if len(parts) == 1 else method  # as PEFT has it
    return Merge(
        tuple(parts),
        method,
        density if method.prunes else 1.0,
        majority_sign if method.elects_signs else MajoritySign.TOTAL,
    )


def seed_of(digest: str, module: str) -> int:
    """Return what the draws of a merge begin with at a module: the same wherever and whenever it is made."""
    return int.from_bytes(hashlib.sha256(f"{digest}\n{module}".encode()).digest()[:8], "big") >> 1
