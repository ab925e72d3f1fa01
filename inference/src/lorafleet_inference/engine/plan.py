"""What the scheduler hands to whoever computes, and what it gets back."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lorafleet_inference.engine.messages import AdapterKey, SamplingParams, TokenLogprobs

TokenMask = npt.NDArray[np.uint8]
"""[ceil(vocabulary / 8)]: bit i of byte j, from the lowest, says whether the token 8 * j + i may be chosen."""


@dataclass(frozen=True, slots=True)
class StepItem:
    """Tokens of one sequence to compute in a step: those at positions `start` and up."""

    request_id: str
    adapter: AdapterKey | None
    start: int
    token_ids: tuple[int, ...]
    blocks: tuple[int, ...]
    """KV blocks of the sequence, from position 0 to at least the last token of the step."""
    sample: SamplingParams | None
    """Set when the last token's logits choose the next token, whose position is `start + len(token_ids)`."""
    score: tuple[int, ...] = ()
    """Tokens of the prompt whose log-probabilities are wanted: those that follow the step's first, second, … token."""
    num_prompt_logprobs: int = 0
    """How many of the most likely tokens beside each of `score`."""
    num_prompt: int = 0
    """Tokens of the prompt, which the answer follows."""
    history: tuple[int, ...] = ()
    """All known tokens, where choosing the next one needs them (`SamplingParams.uses_history`)."""
    rope_length: int = 0
    """Length that the rotary frequencies of all its tokens follow at least (`rope_length` of engine/rope.py)."""
    decode: bool = False
    """Whether this continues an answer by its last token."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Empty when nothing can be computed now."""

    items: tuple[StepItem, ...] = ()
    first_scheduled: tuple[str, ...] = ()
    """Requests that are computed for the first time."""
    preempted: tuple[str, ...] = ()
    """Requests that lost their blocks and wait again."""
    max_tokens: int = 0
    """Tokens that it could have had."""
    num_queried_tokens: int = 0
    """Tokens of sequences that start in this step, looked up in the prefix cache."""
    num_hit_tokens: int = 0
    """Those of them that were found there."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(len(item.token_ids) for item in self.items)

    @property
    def num_answer_tokens(self) -> int:
        """Those of them that continue an answer by its last token."""
        return sum(item.decode for item in self.items)


class SamplingState(Protocol):
    """What choosing tokens needs beside the plan, kept by the engine between steps."""

    def seed(self, request_id: str) -> int:
        """Return the seed of a request that gives none."""

    def mask(self, request_id: str) -> TokenMask | None:
        """Return which tokens may follow; None where any may. Waits for a mask that is still being computed."""


class Unconstrained(SamplingState):
    """Of requests of nobody."""

    def seed(self, _: str) -> int:
        """Return the same for all."""
        return 0

    def mask(self, _: str) -> TokenMask | None:
        """Any token may follow."""
        return None


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The chosen tokens of a step, by request id; one for each item with `sample` that is not in `not_finite`."""

    sampled: dict[str, Sampled] = field(default_factory=dict)
    scored: dict[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    """Likewise of items with `score`."""
    not_finite: frozenset[str] = frozenset()
    """Requests whose logits are not finite in this step: nothing that they computed in it may be used."""
    failed: dict[str, str] = field(default_factory=dict)
    """Requests that could not be computed, with the reason in a sentence; in none of the others."""
