"""Which part of each tensor a rank of a model on several ranks holds.

Column-parallel layers (queries, keys, values, gate, up) are split by their outputs: of LoRA, A is whole and B split with them.
Row-parallel layers (the output of attention, down) are split by their inputs: A is split with them and B is whole, so what LoRA
adds to a rank's partial sum is summed with it. Experts are split inside, each like a gated layer, so that every rank has the
same work whatever experts the tokens choose. Embedding and head are split by the vocabulary (`decoder/words.py`), and what adapters hold
of them is whole. All else is whole on every rank: norms and routers. Families that transformers computes are split likewise, by its own
plans (`plans.py`).
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from lorafleet_inference.model.decoder.words import Words
from lorafleet_inference.model.quantization.cut import Cut
from lorafleet_inference.model.ranks.axes import Along, Split, Splits, shape_of


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of a model: its part of each module's tensors, by the module's name."""

    rank: int
    size: int
    num_heads: int
    num_kv_heads: int
    """Of the whole model, as the heads before."""
    num_tokens: int = 0
    """Of its vocabulary."""
    splits: Splits = field(default_factory=lambda: _SPLITS, hash=False)
    by_plan: bool = False
    """Whether transformers' code computes it, split by its plan (`narrow.py`); else the decoder of our own does."""

    @property
    def splits_heads(self) -> bool:
        """Whether each rank has a part of the heads, and not all of them."""
        return any("heads" in groups for _, groups in self.splits.values())

    @property
    def words(self) -> Words:
        """Which rows of embedding and head are here."""
        return Words(self.num_tokens, self.rank, self.size)

    def stored(self, module: str, name: str, tensor: Any) -> torch.Tensor:
        """Return the rank's part of a parameter of the base, in a file."""
        is_of_words = module.rsplit(".", 1)[-1] in _OF_WORDS
        return self.words.rows(tensor) if is_of_words and self.size > 1 else self.parameter(module, name, tensor)

    def split_of(self, module: str) -> Split | None:
        """Return how a module's weight is split; None: it is whole on every rank. `module`: any name that ends with the module's."""
        along, groups = self.splits.get(module.rsplit(".", 1)[-1], (None, ()))
        if along is None or self.size == 1:
            return None
        units = {"heads": self.num_heads, "kv_heads": self.num_kv_heads, "elements": self.size}
        return Split(along, tuple(units[one] for one in groups), self.rank, self.size)

    def weight(self, module: str, tensor: Any) -> torch.Tensor:
        """Return the rank's part of a weight [.., out, in], or of a norm's [out]."""
        split = self.split_of(module)
        if split is None:
            return tensor[...]
        return split.take(tensor, -2 if split.along is Along.OUTPUTS and len(shape_of(tensor)) > 1 else -1)

    def cut(self, module: str, shape: tuple[int, int]) -> Cut:
        """Return the rank's part of a weight of this shape (out, in)."""
        rows: tuple[slice, ...] = (slice(0, shape[0]),)
        columns: tuple[slice, ...] = (slice(0, shape[1]),)
        split = self.split_of(module)
        if split is not None and split.along is Along.OUTPUTS:
            rows = split.slices(shape[0])
        elif split is not None:
            columns = split.slices(shape[1])
        return Cut(shape, rows, columns)

    def bias(self, module: str, tensor: Any) -> torch.Tensor:
        """Return the rank's part of what is added to the outputs [out]; of partial sums only the first rank adds it."""
        split = self.split_of(module)
        if split is None:
            return tensor[...]
        if split.along is Along.OUTPUTS:
            return split.take(tensor, -1)
        return tensor[...] if self.rank == 0 else torch.zeros_like(tensor[...])

    def parameter(self, module: str, name: str, tensor: Any) -> torch.Tensor:
        """Return the rank's part of a parameter of a module; what adapters hold of embedding and head is whole on every rank."""
        return self.bias(module, tensor) if name == "bias" else self.weight(module, tensor)

    def factor(self, module: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rank's part of what the outputs [out] are multiplied with; partial sums are all multiplied."""
        split = self.split_of(module)
        return split.take(tensor, -1) if split is not None and split.along is Along.OUTPUTS else tensor

    def lora_a(self, module: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rank's part of A [.., r, in]."""
        split = self.split_of(module)
        return split.take(tensor, -1) if split is not None and split.along is Along.INPUTS else tensor

    def lora_b(self, module: str, tensor: torch.Tensor, axis: int = -2) -> torch.Tensor:
        """Return the rank's part of B, whose outputs are on the axis `axis` (-1 or -2)."""
        split = self.split_of(module)
        return split.take(tensor, axis) if split is not None and split.along is Along.OUTPUTS else tensor

    def is_partial(self, module: str) -> bool:
        """Whether a rank's outputs of a module are to be summed over the ranks."""
        split = self.split_of(module)
        return split is not None and split.along is Along.INPUTS

    def whole_shape(self, module: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape [.., out, in] of a weight of experts of which a rank's part has `shape`."""
        split = self.split_of(module)
        if split is None:
            return shape
        *rest, out, inner = shape
        return (*rest, out * self.size, inner) if split.along is Along.OUTPUTS else (*rest, out, inner * self.size)


_COLUMN, _ROW = Along.OUTPUTS, Along.INPUTS
_SPLITS: Splits = {
    "q_proj": (_COLUMN, ("heads",)),
    "k_proj": (_COLUMN, ("kv_heads",)),
    "v_proj": (_COLUMN, ("kv_heads",)),
    "qkv_proj": (_COLUMN, ("heads", "kv_heads", "kv_heads")),
    "o_proj": (_ROW, ("heads",)),
    "gate_proj": (_COLUMN, ("elements",)),
    "up_proj": (_COLUMN, ("elements",)),
    "gate_up_proj": (_COLUMN, ("elements", "elements")),
    "down_proj": (_ROW, ("elements",)),
    # of experts, in files that were written before transformers fused them
    "w1": (_COLUMN, ("elements",)),
    "w3": (_COLUMN, ("elements",)),
    "w2": (_ROW, ("elements",)),
}
"""Of the families of `SPECS`."""
EMBEDDINGS, HEADS = ("embed_tokens", "embed_in"), ("lm_head", "embed_out")
"""What files call embeddings and output heads."""
_OF_WORDS = (*EMBEDDINGS, *HEADS)
EVERYTHING = Shard(0, 1, 0, 0)
"""What the only rank holds."""
