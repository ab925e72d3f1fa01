"""Embedding and output head of a rank: each has the rows of a part of the vocabulary.

An embedding looks up what it has and gives zeros for the rest, and the ranks' are summed; of the head, the first rank gathers the
logits. What adapters hold there is of the whole vocabulary: hooks see the sum, and on the first rank all logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.model.decoder.linear import Total

Gather = Callable[[torch.Tensor], Sequence[torch.Tensor] | None]
"""Returns what each rank has on the first one, None on the others."""
Whole = Callable[[], torch.Tensor]
"""Reads a matrix [vocabulary, hidden] of which a rank has some rows."""


@dataclass(frozen=True, slots=True)
class Words:
    """Which of the vocabulary's tokens a rank has: of as many on each rank, the last of which may be none."""

    num_tokens: int
    rank: int
    size: int

    @property
    def num_held(self) -> int:
        """Rows on each rank."""
        return -(-self.num_tokens // self.size)

    @property
    def first(self) -> int:
        """The first of this rank."""
        return self.rank * self.num_held

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rank's rows of [vocabulary, ..], or of such a slice of a safetensors file, with zeros where there are none."""
        end = min(self.first + self.num_held, self.num_tokens)
        found = tensor[min(self.first, end) : end]
        lacking = self.num_held - len(found)
        return found if not lacking else torch.cat((found, found.new_zeros(lacking, *found.shape[1:])))


class WordEmbedding(torch.nn.Embedding):
    """An embedding of which a rank has some rows."""

    def __init__(self, source: torch.nn.Embedding, words: Words, whole: Whole) -> None:
        """Takes the weight over: `source` has the rank's rows. `whole`: reads all of them."""
        torch.nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = words.num_tokens, source.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = None, None, 2.0
        self.scale_grad_by_freq, self.sparse = False, False
        self.register_parameter("weight", None)
        self.part = source.weight
        scale = getattr(source, "embed_scale", None)
        self.register_buffer("embed_scale", scale, persistent=False)
        self.plain_weight = whole
        self.total: Total | None = None
        """Sums over the ranks."""
        self._first = words.first

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids [.., T]; returns [.., T, hidden]. A copy with a weight of its own (`extras.py`) looks up in that."""
        own = self._parameters["weight"]
        if own is not None:
            return self._scaled(F.embedding(input_ids, own))
        local = input_ids - self._first
        is_held = (local >= 0) & (local < len(self.part))
        found = F.embedding(local.clamp(0, len(self.part) - 1), self.part) * is_held[..., None].to(self.part.dtype)
        return self._scaled(found if self.total is None else self.total(found))

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        scale = self.embed_scale
        return rows * scale.to(rows.dtype) if isinstance(scale, torch.Tensor) else rows


class WordHead(torch.nn.Linear):
    """A head of which a rank has some outputs. The first rank gives all of them, others none that mean anything."""

    def __init__(self, source: torch.nn.Linear, words: Words, whole: Whole, bias: torch.Tensor | None = None) -> None:
        """Takes the weight over, as `WordEmbedding`. `bias` [vocabulary]: of all outputs."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, words.num_tokens
        self.register_parameter("weight", None)
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias, requires_grad=False))
        self.part = source.weight
        self.plain_weight = whole
        self.gather: Gather | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [.., hidden]; returns [.., vocabulary]. A copy with a weight of its own (`extras.py`) computes with that."""
        own = self._parameters["weight"]
        if own is not None:
            return F.linear(x, own, self._parameters["bias"])
        local = F.linear(x, self.part)
        parts = None if self.gather is None or not local.numel() else self.gather(local)
        if parts is None:
            return local.new_zeros(*local.shape[:-1], self.out_features)
        logits = torch.cat(tuple(parts), -1)[..., : self.out_features]
        return logits if self.bias is None else logits + self.bias
