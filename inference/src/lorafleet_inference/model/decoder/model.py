"""Our own code for the layers of some families, in place of transformers': fewer and larger operations for the same numbers.

transformers loads the model, and its code stays the truth: tests run both. What is as good there is taken as it is: embedding,
rotary frequencies, output head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from lorafleet_inference.kernels.layer_ops import LayerOps
from lorafleet_inference.model.decoder.layers import Fused, Layer, Norm, Rotation
from lorafleet_inference.model.decoder.linear import Total
from lorafleet_inference.model.decoder.spec import SPECS, Spec
from lorafleet_inference.model.decoder.words import Gather, Whole, WordEmbedding, WordHead, Words


@dataclass(frozen=True, slots=True)
class Output:
    """As transformers' output."""

    logits: torch.Tensor
    """[1, rows, vocabulary]"""


class Body(torch.nn.Module):
    """All but the head."""

    def __init__(self, source: Any, config: Any, spec: Spec) -> None:
        super().__init__()
        self.embed_tokens = source.embed_tokens
        self.layers = torch.nn.ModuleList()
        for number in range(config.num_hidden_layers):
            self.layers.append(Layer(source.layers[number], config, spec, number))
        self.norm = Norm(source.norm, spec)
        self.rotary_emb = source.rotary_emb
        self._kinds: list[str] = config.layer_types if spec.rotates_by_kind else []
        """Of layers, where frequencies differ by them."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor]:
        """input_ids and position_ids [1, T]; returns hidden states [1, T, hidden] after the last norm."""
        embedded = self.embed_tokens(input_ids)
        rotations = self._rotations(embedded, position_ids)
        residual = embedded[0]
        x: torch.Tensor | None = None
        for layer, rotation in zip(self.layers, rotations, strict=True):
            x = layer(x, residual, rotation)
        assert x is not None, "a model has layers"
        return (self.norm.add(x, residual)[None],)

    def _rotations(self, embedded: torch.Tensor, position_ids: torch.Tensor) -> list[Rotation]:
        """Return cosines and sines by layer."""
        if not self._kinds:
            cos, sin = self.rotary_emb(embedded, position_ids)
            return [(cos[0], sin[0])] * len(self.layers)
        made: dict[str, Rotation] = {}
        for kind in set(self._kinds):
            cos, sin = self.rotary_emb(embedded, position_ids, kind)
            made[kind] = (cos[0], sin[0])
        return [made[kind] for kind in self._kinds]


class Decoder(torch.nn.Module):
    """A model with a head, called as transformers' are called here."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes over the weights of a model that transformers loaded; there is nothing left of it."""
        super().__init__()
        self.config, self.generation_config = model.config, model.generation_config
        self.architecture = type(model).__name__
        spec = SPECS[self.architecture]
        self.model = Body(model.model, model.config, spec)
        self._logit_cap: float | None = model.config.final_logit_softcapping if spec.has_logit_cap else None
        self.lm_head = model.get_output_embeddings()

    @property
    def ops(self) -> LayerOps:
        """What computes between the products; may be set."""
        return self.model.norm.ops

    @ops.setter
    def ops(self, ops: LayerOps) -> None:
        for module in self.modules():
            if isinstance(module, Fused):
                module.ops = ops

    def split_words(self, words: Words, embedding: Whole, head: Whole) -> None:
        """Take embedding and head as a rank's, whose rows they have; `embedding` and `head` read the whole matrices."""
        self.model.embed_tokens = WordEmbedding(self.model.embed_tokens, words, embedding)
        self.lm_head = WordHead(self.lm_head, words, head)

    def work_in(self, total: Total, gather: Gather) -> None:
        """Have `total` sum what the ranks of a model give, each of which has a part of each layer, and `gather` the logits."""
        embedding, head = self.model.embed_tokens, self.lm_head
        assert isinstance(embedding, WordEmbedding), "nothing else is a rank's"
        assert isinstance(head, WordHead)
        embedding.total, head.gather = total, gather
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            layer.sum_over(total)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.model.norm.weight.dtype

    @property
    def base_model(self) -> Body:
        """All but the head, as transformers names it."""
        return self.model

    def get_decoder(self) -> Body:
        """Return the same."""
        return self.model

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> torch.nn.Module:
        """Return the head."""
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        use_cache: bool = False,  # noqa: ARG002  the pages are the cache
        logits_to_keep: int | torch.Tensor = 0,
    ) -> Output:
        """input_ids and position_ids [1, T]; `logits_to_keep`: rows of the step [rows] whose logits are wanted, or 0 for all."""
        hidden = self.model(input_ids, position_ids)[0]
        if isinstance(logits_to_keep, torch.Tensor):
            hidden = hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        if self._logit_cap is not None:
            logits = torch.tanh(logits / self._logit_cap) * self._logit_cap
        return Output(logits)
