"""What an adapter is, as validation found it and as the engine loads it."""

from dataclasses import dataclass
from pathlib import Path

from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.engine.merging import Merge
from lorafleet_inference.engine.vocabulary import Vocabulary


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
    magnitude_key: str | None = None
    """Of a weight-decomposed (DoRA) site: [out_features]; then each output is scaled to that norm of its row."""
    b_bias_key: str | None = None
    """Of a site with a bias on B: [out_features], scaled as B is."""


@dataclass(frozen=True, slots=True)
class OwnParameter:
    """A parameter that the adapter has a copy of its own of (modules_to_save, trained biases)."""

    module: str
    """As in `named_modules()` of the base model."""
    parameter: str
    """`weight` or `bias`."""
    key: str
    is_copy: bool = False
    """Of the base's, equal or not: one that was rounded to another dtype is the base's."""


@dataclass(frozen=True, slots=True)
class OwnRows:
    """Rows of the embedding or the head that the adapter has of its own."""

    module: str
    key: str
    token_ids: tuple[int, ...]
    is_packed: bool
    """Whether the tensor has these rows only, in this order; else those of all tokens."""


@dataclass(frozen=True, slots=True)
class ExpertTensors:
    """A and B of one linear map in one expert, or stacked for all: A [E * rank, in], B [out, rank * E] (expert-minor)."""

    a_key: str
    b_key: str
    expert: int | None
    """None: stacked."""
    part: int | None = None
    """Of a fused gate_up_proj whose halves were trained apart: 0 the gate, 1 the up half."""


@dataclass(frozen=True, slots=True)
class ExpertSite:
    """A changed stacked parameter of experts: `W[e] += scale * B[e] A[e]`."""

    module: str
    parameter: str
    """`gate_up_proj` or `down_proj`."""
    rank: int
    scale: float
    tensors: tuple[ExpertTensors, ...]
    """One of all experts, or one each (of a fused weight two: rank is the sum of theirs)."""


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """A validated adapter: everything in it is computed; what is not was refused."""

    directory: Path
    sites: tuple[LoraSite, ...]
    """Sorted by module name."""
    files: tuple[str, ...]
    """Safetensors files, relative to the directory."""
    facts: AdapterFacts
    vocabulary: Vocabulary
    """The token ids that it knows: the base's, or as many as it has rows of its own."""
    side_sites: tuple[LoraSite, ...] = ()
    """Of the input embedding, the output head and routers of experts."""
    own: tuple[OwnParameter, ...] = ()
    num_rows: int | None = None
    """Of embedding and head, where that is another number than the base's."""
    own_rows: tuple[OwnRows, ...] = ()
    """In the order in which they replace rows."""
    experts: tuple[ExpertSite, ...] = ()
    base_copies: tuple[OwnParameter, ...] = ()
    """Weights that have to be the base's own: the adapter is refused when it is loaded if one is not."""
    merged: "MergedParts | None" = None
    """Of a merge: what its tensors are made of; then it has no files."""

    @property
    def invocation(self) -> tuple[int, ...]:
        """Token ids from whose last occurrence in a prompt on the adapter is computed (aLoRA); empty: from the first token on."""
        return tuple(self.facts.invocation_tokens or ())

    @property
    def rank(self) -> int:
        """The largest rank of any of `sites`: how many rows it takes in adapter memory."""
        return max((site.rank for site in self.sites), default=0)


@dataclass(frozen=True, slots=True)
class MergedParts:
    """What a merge is made of."""

    merge: Merge
    plans: tuple[AdapterPlan, ...]
    """Of its parts, in their order, settled."""
