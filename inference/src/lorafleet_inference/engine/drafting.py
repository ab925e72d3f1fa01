"""Has a draft model propose tokens: a small model of the base's vocabulary, with KV of its own. No torch.

It is the base without adapters to all requests: whose answer it is matters to what is right of a proposal, and that the base with
the adapter says. A token is drawn from the draft model as the request would have it, with the same seed and position as the base
draws: where the two models think alike, so do the draws.

KV of the draft model follows what is known of a request when a proposal is asked for; nobody else computes it. So a request that is
never drafted costs nothing, and one that was preempted has lost nothing here.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from lorafleet_inference.engine.block_manager import BlockHash, BlockManager, chain_seed, next_hash
from lorafleet_inference.engine.messages import EngineBudgets, ModelFacts, SamplingParams
from lorafleet_inference.engine.plan import Drafted, DraftWanted, Growth, NewRequest, StepItem, StepPlan, StepResult
from lorafleet_inference.engine.steps import StepFailed
from lorafleet_inference.engine.vocabulary import Vocabulary, first_unknown, vocabulary_of

logger = logging.getLogger(__name__)
MAX_CATCH_UP_TOKENS = 512
"""Tokens of prompts and answers that the draft model has not seen, and computes before a step at most: they hold everybody up."""
MEMORY = 0.9
"""Weight of a round beside the one after it in what a round takes."""
FORGETTING = 0.995
"""What a round took counts so much less with each step before which none was: the machine may have been busy then."""


class DraftRunner(Protocol):
    """What computes the draft model."""

    @property
    def facts(self) -> ModelFacts:
        """Of the draft model."""

    @property
    def budgets(self) -> EngineBudgets:
        """Of its KV."""

    def compute(self, plan: StepPlan) -> StepResult:
        """Compute a step, and wait for it."""

    def know(self, chosen: Iterable[tuple[str, int, int]]) -> None:
        """Take in tokens that were chosen elsewhere: request, position, token."""

    def is_lost(self, error: Exception) -> bool:
        """Whether an error leaves the device unusable."""


@dataclass(slots=True, eq=False)
class _Kept:
    """What the draft model holds of a request."""

    salt: str
    blocks: list[int]
    computed: list[int]
    """Tokens whose KV lies in the blocks, from position 0 on; the last ones may be drafts that were wrong."""
    num_known: int
    """Tokens of the request when it was last proposed for: of `computed`, so many were no drafts."""
    hashes: list[BlockHash] = field(default_factory=list)
    """Of its full blocks, as far as anyone has asked."""
    num_published: int = 0


@dataclass(slots=True)
class _Making:
    """A proposal in the making."""

    wanted: DraftWanted
    kept: _Kept
    number: int
    drafted: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Step:
    """The first step of a proposal in the making."""

    room: int
    items: list[StepItem] = field(default_factory=list)
    new: list[NewRequest] = field(default_factory=list)
    grown: list[Growth] = field(default_factory=list)
    known: list[tuple[str, int, int]] = field(default_factory=list)


class Drafter:
    """Owns the KV blocks of the draft model. Every method is for the engine's thread."""

    def __init__(
        self,
        runner: DraftRunner,
        *,
        vocabulary: Vocabulary,
        max_requests: int,
        prefix_caching: bool,
        now: Callable[[], float],
    ) -> None:
        """`vocabulary`: of the base; nothing beyond it is proposed. `max_requests`: that can be held at once."""
        self._runner, self._now = runner, now
        self._max_requests, self._max_len = max_requests, runner.facts.max_model_len
        self._vocabulary = vocabulary_of(runner.facts)
        self._num_proposed = min(vocabulary.num_inputs, self._vocabulary.num_inputs)
        """Tokens that both models can go on from."""
        budgets = runner.budgets
        self._blocks = BlockManager(budgets.num_kv_blocks, budgets.kv_block_tokens, prefix_caching=prefix_caching)
        self._kept: dict[str, _Kept] = {}
        """The one that was proposed for the longest ago first."""
        self._gone: list[str] = []
        self._unfit: set[str] = set()
        """Requests that name tokens which the draft model has not."""
        self.round_seconds = 0.0
        """What a token for each request takes, lately; 0 where nothing is known."""

    @property
    def num_blocks_used(self) -> int:
        """Blocks that requests hold."""
        return self._blocks.num_used

    def propose(self, wanted: Sequence[DraftWanted]) -> dict[str, Drafted]:
        """Return what may follow, by request; none of what cannot be computed now.

        Raises:
            StepFailed: the device is lost.
        """
        if not wanted:
            self.round_seconds *= FORGETTING
            return {}
        try:
            return self._propose(wanted)
        except Exception as error:
            if self._runner.is_lost(error):
                raise StepFailed(f"the device is lost: {type(error).__name__}: {error}") from error
            logger.exception("the draft model fails; answers go on without")
            for request_id in list(self._kept):
                self._give_up(request_id)
            return {}

    def end(self, request_id: str) -> None:
        """A request has ended."""
        self._unfit.discard(request_id)
        self._give_up(request_id)

    def _give_up(self, request_id: str) -> None:
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            self._blocks.release(kept.blocks)
            self._gone.append(request_id)

    def _propose(self, wanted: Sequence[DraftWanted]) -> dict[str, Drafted]:
        asking = {one.request_id for one in wanted}
        step, making = _Step(MAX_CATCH_UP_TOKENS), list[_Making]()
        for asked in wanted:
            ready = self._begin(step, asked, asking)
            if ready is not None:
                making.append(ready)
        self._runner.know(step.known)
        result = self._compute(step.items, new=step.new, grown=step.grown)
        self._take(making, result)
        for one in making:
            self._publish(one)
        going_on = [one for one in making if self._goes_on(one)]
        while going_on:
            began = self._now()
            items = [
                StepItem(one.wanted.request_id, len(one.kept.computed), 1, samples=True, decode=True)
                for one in going_on
            ]
            for one in going_on:
                one.kept.computed.append(one.drafted[-1])
            self._take(going_on, self._compute(items))
            seconds = self._now() - began
            self.round_seconds = MEMORY * self.round_seconds + (1 - MEMORY) * seconds if self.round_seconds else seconds
            going_on = [one for one in going_on if self._goes_on(one)]
        return {one.wanted.request_id: tuple(one.drafted) for one in making if one.drafted}

    def _begin(self, step: _Step, wanted: DraftWanted, asking: set[str]) -> _Making | None:
        """Plan what the draft model has not seen of a request; return it if all of that is in the step."""
        token_ids, request_id = wanted.token_ids, wanted.request_id
        number = min(wanted.number, self._max_len - len(token_ids))
        if step.room < 1 or number < 1 or request_id in self._unfit:
            return None
        kept = self._kept.pop(request_id, None)
        if kept is None:
            kept = self._start(step, wanted, asking)
            if kept is None:
                return None
        else:
            self._correct(step, wanted, kept)
        self._kept[request_id] = kept  # as the last one
        start = len(kept.computed)
        end = min(len(token_ids), start + step.room)
        if any(token >= self._vocabulary.num_inputs for token in token_ids[start:end]):
            self._leave_out(request_id)
            return None
        is_all = end == len(token_ids)
        if not self._grow(step, request_id, kept, end + (number - 1 if is_all else 0), asking):
            self._give_up(request_id)
            return None
        step.items.append(StepItem(request_id, start, end - start, samples=is_all))
        step.room -= end - start
        kept.computed += token_ids[start:end]
        kept.num_known = len(token_ids)
        return _Making(wanted, kept, number) if is_all else None

    def _leave_out(self, request_id: str) -> None:
        """Propose nothing for a request: what it has of an adapter's own vocabulary, the draft model has not."""
        self._give_up(request_id)
        self._unfit.add(request_id)

    def _start(self, step: _Step, wanted: DraftWanted, asking: set[str]) -> _Kept | None:
        while len(self._kept) >= self._max_requests:
            if not self._make_room(asking):
                return None
        token_ids = wanted.token_ids
        if first_unknown((), wanted.sampling, self._vocabulary) is not None:
            self._unfit.add(wanted.request_id)
            return None
        kept = _Kept(wanted.cache_salt, [], [], len(token_ids))
        size = self._blocks.block_tokens
        known = self._blocks.match(self._hash(kept, token_ids, index) for index in range((len(token_ids) - 1) // size))
        self._blocks.share(known)
        kept.blocks, kept.num_published = list(known), len(known)
        kept.computed = list(token_ids[: len(known) * size])
        sampling = msgspec.structs.replace(wanted.sampling, num_logprobs=None, prompt_logprobs=None, grammar=None)
        step.new.append(_new(wanted, sampling, kept.blocks))
        return kept

    def _correct(self, step: _Step, wanted: DraftWanted, kept: _Kept) -> None:
        """Forget the drafts that were wrong, and have the runner know the tokens that came since."""
        token_ids, computed = wanted.token_ids, kept.computed
        right, most = min(kept.num_known, len(computed)), min(len(computed), len(token_ids) - 1)
        while right < most and computed[right] == token_ids[right]:
            right += 1
        del computed[min(right, most) :]
        step.known += [(wanted.request_id, at, token_ids[at]) for at in range(kept.num_known, len(token_ids))]

    def _grow(self, step: _Step, request_id: str, kept: _Kept, num_tokens: int, asking: set[str]) -> bool:
        """Give a request blocks for so many tokens; those that nobody asks for now make room."""
        num_before = len(kept.blocks)
        num_fresh = self._blocks.blocks_for(num_tokens) - num_before
        if num_fresh <= 0:
            return True
        while (fresh := self._blocks.take(num_fresh)) is None:
            if not self._make_room(asking):
                return False
        kept.blocks += fresh
        step.grown.append(Growth(request_id, num_before, tuple(fresh)))
        return True

    def _make_room(self, asking: set[str]) -> bool:
        """Give up what is kept of a request that is not asked for now; return whether there was one."""
        other = next((name for name in self._kept if name not in asking), None)
        if other is None:
            return False
        self._give_up(other)
        return True

    def _compute(
        self, items: Sequence[StepItem], new: Sequence[NewRequest] = (), grown: Sequence[Growth] = ()
    ) -> StepResult:
        if not items:
            return StepResult()
        names = {item.request_id for item in items}
        result = self._runner.compute(
            StepPlan(
                tuple(items),
                gone=tuple(self._gone),
                new=tuple(one for one in new if one.request_id in names),
                grown=tuple(one for one in grown if one.request_id in names),
            )
        )
        self._gone.clear()
        return result

    def _take(self, making: Sequence[_Making], result: StepResult) -> None:
        for one in making:
            sampled = result.sampled.get(one.wanted.request_id)
            if sampled is None or sampled.token_id >= self._num_proposed:
                one.number = len(one.drafted)
            else:
                one.drafted.append(sampled.token_id)

    def _goes_on(self, one: _Making) -> bool:
        return bool(one.drafted) and len(one.drafted) < one.number

    def _publish(self, one: _Making) -> None:
        """Let others find the blocks that are full of known tokens, which all are computed."""
        kept, token_ids = one.kept, one.wanted.token_ids
        for index in range(kept.num_published, len(token_ids) // self._blocks.block_tokens):
            self._blocks.publish(kept.blocks[index], self._hash(kept, token_ids, index))
            kept.num_published += 1

    def _hash(self, kept: _Kept, token_ids: Sequence[int], index: int) -> BlockHash:
        size = self._blocks.block_tokens
        while len(kept.hashes) <= index:
            begin = len(kept.hashes) * size
            previous = kept.hashes[-1] if kept.hashes else chain_seed(None, kept.salt)
            kept.hashes.append(next_hash(previous, token_ids[begin : begin + size]))
        return kept.hashes[index]


def _new(wanted: DraftWanted, sampling: SamplingParams, blocks: Sequence[int]) -> NewRequest:
    return NewRequest(wanted.request_id, None, tuple(wanted.token_ids), wanted.num_prompt, sampling, tuple(blocks))
