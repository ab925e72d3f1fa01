"""Which token ids a model knows, and the one rule that keeps all others out of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorafleet_inference.engine.messages import ModelFacts, ModuleKind, SamplingParams

PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids that the base model, or an adapter with rows of its own, can compute."""

    num_inputs: int
    """Rows of the embedding: ids below it may stand in a prompt."""
    num_outputs: int
    """Rows of the output head: ids below it may be chosen, biased, or end an answer."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A token id that is not of the vocabulary."""

    field: str
    token_id: int
    size: int

    @property
    def message(self) -> str:
        """One sentence for the client."""
        return f"{self.field}: token id {self.token_id} is not below the vocabulary's {self.size}"


def vocabulary_of(facts: ModelFacts) -> Vocabulary:
    """Return what the base model knows."""
    rows = [one.in_features for one in facts.side_modules if one.kind is ModuleKind.EMBEDDING]
    outputs = [one.out_features for one in facts.side_modules if one.kind is ModuleKind.LINEAR]
    return Vocabulary(min([facts.vocab_size, *rows]), min([facts.vocab_size, *outputs]))


def first_unknown(prompt: Sequence[int], sampling: SamplingParams, vocabulary: Vocabulary) -> Unknown | None:
    """Return the first token id of a request that is not of the vocabulary; None if all are."""
    biased = [token for token, _ in sampling.logit_bias]
    bad = [token for word in sampling.bad_words for token in word]
    for field, token_ids, size in (
        (PROMPT, prompt, vocabulary.num_inputs),
        ("stop_token_ids", sampling.stop_token_ids, vocabulary.num_outputs),
        ("eos_token_ids", sampling.eos_token_ids, vocabulary.num_outputs),
        ("logit_bias", biased, vocabulary.num_outputs),
        ("allowed_token_ids", sampling.allowed_token_ids, vocabulary.num_outputs),
        ("bad_words", bad, vocabulary.num_outputs),
    ):
        if token_ids and (max(token_ids) >= size or min(token_ids) < 0):
            return Unknown(field, next(one for one in token_ids if not 0 <= one < size), size)
    return None
