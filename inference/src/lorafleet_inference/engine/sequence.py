"""One request on its way through the scheduler, and the queues of those that wait. Pure."""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from lorafleet_contract.openai import ErrorCode
from lorafleet_contract.reasons import Reason
from lorafleet_inference.engine.block_manager import BlockHash, activated, chain_seed, next_hash
from lorafleet_inference.engine.form import Form, FormDrafts
from lorafleet_inference.engine.messages import AdapterKey, PoolingKind, Submit
from lorafleet_inference.engine.plan import NewRequest, Sampled, StepItem, Vector
from lorafleet_inference.engine.pooling import embedding_of
from lorafleet_inference.engine.speculation import DraftLength
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent, TokenLogprobs


@dataclass(slots=True, eq=False)
class Sequence:
    """A request and how far it is. Waiting: no blocks, nothing computed. Running: blocks."""

    request: Submit
    arrival: int
    token_ids: list[int]
    """Prompt and answer so far."""
    form: Form | None = None
    adapter_from: int = 0
    """Position of the first token that the adapter is computed for; those before are the base's, in the prefix cache too."""
    num_computed: int = 0
    """Tokens whose KV lies in the blocks, or will when the steps in flight are computed."""
    num_ahead: int = 0
    """Tokens beyond `token_ids` that steps in flight choose, and that can be computed before they are known."""
    known_from: int = 0
    """With so many tokens it ends, or all is computed again: of the last of them nothing is computed before it is known."""
    epoch: int = 0
    """How often it lost its blocks: what a step of an earlier epoch computed is nothing to it."""
    num_charged: int = 0
    """Tokens that its adapter has been charged for: what is computed again after a preemption is not, again."""
    blocks: list[int] = field(default_factory=list)
    num_published: int = 0
    """Full blocks that others can find, computed or about to be."""
    rope_length: int = 0
    """Length that the rotary frequencies of all its tokens follow at least; 0 up to the limit of the base."""
    hashes: list[BlockHash] = field(default_factory=list)
    """Of its full blocks, computed or not, as far as anyone has asked."""
    num_cached: int | None = None
    """Prompt tokens found in the prefix cache when it first ran; None before."""
    scored: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens, where the request asks for them."""
    pooled: Vector | None = None
    """What the hidden states so far are for its embedding, where that is asked for."""
    drafts: DraftLength | None = None
    """How its next tokens are drafted, where that is wanted: a `Speculator` looks them up."""
    form_drafts: FormDrafts | None = None
    """Where drafts are wanted and there is a form: these go first."""
    proposed: tuple[DraftLength, int] | None = None
    """Who made the draft of the step in flight, and of how many tokens, with those that left the form."""
    spoke: bool = False
    """Whether an event was made."""
    request_id: str = field(init=False)
    adapter: AdapterKey | None = field(init=False)
    """Whose weights it needs beside the base's."""
    order: tuple[int, int] = field(init=False)
    """Its place among those of its adapter: by priority, then by arrival."""

    def __post_init__(self) -> None:
        self.request_id, self.adapter = self.request.request_id, self.request.adapter
        self.order = (self.request.priority, self.arrival)

    @property
    def num_pending(self) -> int:
        """Tokens that can be computed and are not: none while a step in flight has to tell the next one."""
        return len(self.token_ids) + self.num_ahead - self.num_computed

    @property
    def num_answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def is_scored(self) -> bool:
        """Whether the prompt's log-probabilities are wanted and not all there yet."""
        return self.request.sampling.prompt_logprobs is not None and not self.spoke

    @property
    def needs_all_computed(self) -> bool:
        """Whether no token of the prompt may be taken from the prefix cache, which has their KV and nothing else."""
        pooling = self.request.pooling
        return self.is_scored or (pooling is not None and pooling.kind is not PoolingKind.LAST)

    @property
    def continues_answer(self) -> bool:
        """Whether the next token is one of the answer, and its prompt needs nothing any more."""
        return self.num_computed >= len(self.request.prompt_token_ids) and not self.is_scored

    def block_hash(self, index: int, block_tokens: int) -> BlockHash:
        """Return the hash of a full block of its tokens; known tokens never change, so each is computed once."""
        while len(self.hashes) <= index:
            begin = len(self.hashes) * block_tokens
            previous = self.hashes[-1] if self.hashes else self._chain_seed()
            if self.adapter is not None and begin <= self.adapter_from < begin + block_tokens and self.adapter_from:
                previous = activated(previous, self.adapter, self.adapter_from)
            self.hashes.append(next_hash(previous, self.token_ids[begin : begin + block_tokens]))
        return self.hashes[index]

    def _chain_seed(self) -> BlockHash:
        adapter = None if self.adapter_from else self.adapter
        return chain_seed(adapter, self.request.cache_salt, self.rope_length)

    def num_to_score(self) -> int:
        """Return how many tokens of the prompt wait for their log-probabilities."""
        return max(0, len(self.request.prompt_token_ids) - 1 - self.num_computed) if self.is_scored else 0

    def item(self, num_tokens: int) -> StepItem:
        """Return its next tokens for a step."""
        start, num_all = self.num_computed, len(self.token_ids) + self.num_ahead
        end, num_prompt = start + num_tokens, len(self.request.prompt_token_ids)
        last = end == num_all
        num_score = max(0, min(end + 1, num_prompt) - start - 1) if self.is_scored else 0
        return StepItem(
            self.request_id, start, num_tokens, last, num_score, last and num_tokens == 1 and num_all > num_prompt
        )

    def pool(self, start: int, vector: Vector) -> None:
        """Take in what a step gives to its embedding; `start`: its first token there. From position 0 on all begins anew."""
        pooling = self.request.pooling
        assert pooling is not None, "nobody asked for it"
        if pooling.kind is PoolingKind.MEAN and start and self.pooled is not None:
            vector = self.pooled + vector
        self.pooled = vector

    def embedding(self) -> bytes | None:
        """Return its embedding as it is told; None where none was asked for."""
        pooling = self.request.pooling
        if pooling is None or self.pooled is None:
            return None
        return embedding_of(self.pooled, pooling, len(self.request.prompt_token_ids))

    def new(self) -> NewRequest:
        """Return what the steps need of it from now on."""
        request = self.request
        return NewRequest(
            self.request_id,
            self.adapter,
            tuple(self.token_ids),
            len(request.prompt_token_ids),
            request.sampling,
            tuple(self.blocks),
            self.rope_length,
            self.adapter_from,
            request.pooling,
        )

    def event(
        self,
        sampled: Sampled | None = None,
        finish: FinishReason | None = None,
        error: str | None = None,
        reason: Reason | None = None,
        code: ErrorCode | None = None,
        *,
        with_end: bool = False,
    ) -> TokenEvent:
        """Return its next event. `with_end`: whether the sampled token is its end token, no part of the answer."""
        num_cached = 0 if self.spoke else self.num_cached or 0
        prompt_logprobs = tuple(self.scored) if self.is_scored else None
        self.spoke = True
        return TokenEvent(
            self.request_id,
            token_ids=() if sampled is None else (sampled.token_id,),
            logprobs=None if sampled is None or sampled.logprobs is None else (sampled.logprobs,),
            with_end=with_end,
            prompt_logprobs=prompt_logprobs,
            finish=finish,
            error=error,
            reason=reason,
            code=code,
            embedding=self.embedding() if finish is FinishReason.STOP else None,
            num_cached_tokens=num_cached,
        )


class WaitingQueues:
    """Waiting sequences by adapter, each adapter's in their order."""

    def __init__(self) -> None:
        self._queues: dict[AdapterKey | None, list[Sequence]] = {}

    def __iter__(self) -> Iterator[AdapterKey | None]:
        """Adapters that have some."""
        return iter(self._queues)

    def __contains__(self, adapter: AdapterKey | None) -> bool:
        return adapter in self._queues

    def first(self, adapter: AdapterKey | None) -> Sequence:
        """The one that goes first."""
        return self._queues[adapter][0]

    def of(self, adapter: AdapterKey) -> tuple[Sequence, ...]:
        """All of one adapter."""
        return tuple(self._queues.get(adapter, ()))

    def add(self, sequence: Sequence) -> None:
        """Put one in its place, also one that ran before."""
        insort(self._queues.setdefault(sequence.adapter, []), sequence, key=lambda one: one.order)

    def remove(self, sequence: Sequence) -> None:
        """Take one out."""
        queue = self._queues[sequence.adapter]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.adapter]
