"""What the scheduler hands to whoever computes, and what it gets back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from lorafleet_inference.engine.messages import AdapterKey, Pooling, SamplingParams
from lorafleet_inference.engine.token_events import TokenLogprobs

Vector = npt.NDArray[np.float32]
TokenMask = npt.NDArray[np.uint8]
"""[ceil(vocabulary / 8)]: bit i of byte j, from the lowest, says whether the token 8 * j + i may be chosen."""


class StepItem(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one sequence to compute in a step: `num_tokens` of them, from position `start` on."""

    request_id: str
    start: int
    num_tokens: int
    samples: bool = False
    """Whether the last token's logits choose the next token, whose position is `start + num_tokens`."""
    num_score: int = 0
    """Log-probabilities are wanted of so many tokens of the prompt: those that follow the step's first, second, … token."""
    decode: bool = False
    """Whether this continues an answer by its last token."""
    draft_token_ids: tuple[int, ...] = ()
    """The last ones of the tokens, where they are not known but drafted; then a token is chosen after each of them, and before."""

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + self.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows of logits that are wanted before that of the last token."""
        return self.num_score + len(self.draft_token_ids)


Drafted = tuple[int, ...]
"""What may follow the tokens of a request."""


@dataclass(frozen=True, slots=True)
class DraftWanted:
    """A request whose next tokens a draft model should propose."""

    request_id: str
    token_ids: Sequence[int]
    """All that are known; a live view."""
    num_prompt: int
    sampling: SamplingParams
    cache_salt: str
    number: int
    """Tokens to propose, at least one."""


class NewRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that runs from this step on, for the first time or again: all that the steps to come need of it."""

    request_id: str
    adapter: AdapterKey | None
    token_ids: tuple[int, ...]
    """Prompt, and the answer so far."""
    num_prompt: int
    sampling: SamplingParams
    blocks: tuple[int, ...]
    """KV blocks of the sequence, from position 0 on."""
    rope_length: int = 0
    """Length that the rotary frequencies of all its tokens follow at least (`rope_length` of engine/rope.py)."""
    adapter_from: int = 0
    """Position of the first token that the adapter is computed for (`activation` of engine/activation.py)."""
    pooling: Pooling | None = None
    """The embedding of its prompt is wanted."""


class Growth(msgspec.Struct, frozen=True, gc=False):
    """KV blocks that a running request has more from this step on."""

    request_id: str
    num_before: int
    """Blocks that it had."""
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: what changed since the step before, then what is computed. Empty when nothing can be computed now.

    Whoever computes keeps the tokens, blocks and parameters of running requests from step to step; the tokens that it
    chooses are known to it. A change that is applied twice is as good as one that is applied once.
    """

    items: tuple[StepItem, ...] = ()
    gone: tuple[str, ...] = ()
    """Requests that run no more: they ended, or lost their blocks. One may be among `new` again."""
    new: tuple[NewRequest, ...] = ()
    grown: tuple[Growth, ...] = ()
    adapters: frozenset[AdapterKey] = frozenset()
    """Whose weights the items need beside the base's."""
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
        return sum(item.num_tokens for item in self.items)

    @property
    def num_answer_tokens(self) -> int:
        """Those of them that continue an answer by its last token."""
        return sum(item.decode for item in self.items)

    @property
    def has_drafts(self) -> bool:
        """Whether its result decides how far some request is, as it has draft tokens."""
        return any(item.draft_token_ids for item in self.items)

    def alone(self, item: StepItem) -> "StepPlan":
        """Return a step of this item only, with the changes that concern no other item."""
        others = {one.request_id for one in self.items if one is not item}
        return StepPlan(
            items=(item,),
            gone=tuple(name for name in self.gone if name not in others),
            new=tuple(one for one in self.new if one.request_id == item.request_id),
            grown=tuple(one for one in self.grown if one.request_id == item.request_id),
        )


class SamplingState(Protocol):
    """What choosing tokens needs beside the plan, kept by the engine between steps."""

    def begin(self, drafts: Mapping[str, Drafted]) -> None:
        """Get ready for a step in which these requests choose a token, and one more after each of their draft tokens."""

    def mask(self, request_id: str, num_drafted: int = 0) -> TokenMask | None:
        """Return which tokens may follow, after so many draft tokens; None where any may.

        Waits for a mask that is still being computed.
        """


class Unconstrained(SamplingState):
    """Of requests of nobody."""

    def begin(self, _: Mapping[str, Drafted]) -> None:
        """There is nothing to get ready."""

    def mask(self, _: str, num_drafted: int = 0) -> TokenMask | None:  # noqa: ARG002  any may wherever it is
        """Any token may follow."""
        return None


class Sampled(msgspec.Struct, frozen=True, gc=False):
    """A chosen token."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The chosen tokens of a step, by request id; one for each item that samples and is not in `not_finite`."""

    sampled: dict[str, Sampled] = field(default_factory=dict)
    scored: dict[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    """Of items with `num_score`."""
    pooled: dict[str, Vector] = field(default_factory=dict)
    """[hidden size] of items whose embedding is wanted: the sum of their hidden states, or the one of the token that counts."""
    not_finite: frozenset[str] = frozenset()
    """Requests whose logits are not finite in this step: nothing that they computed in it may be used."""
    failed: dict[str, str] = field(default_factory=dict)
    """Requests that could not be computed, with the reason in a sentence; in none of the others."""
    further: dict[str, tuple[Sampled, ...]] = field(default_factory=dict)
    """Of items with draft tokens, the tokens that were chosen after the first: as many as were right of these."""


class InFlight(Protocol):
    """A step that is being computed. Both methods are called once, for one step after the other."""

    def choose(self, state: SamplingState) -> None:
        """Have its tokens chosen, when the results of all earlier steps are collected."""

    def collect(self) -> StepResult:
        """Wait until it is computed and return what came of it."""
