"""Makes of a step's logits what the scheduler gets back: first on the device, and read once it is there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorafleet_inference.engine.plan import InFlight, Sampled, SamplingState, StepItem, StepResult
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.model.batch import ChoiceInputs
from lorafleet_inference.model.input_batch import InputBatch
from lorafleet_inference.model.pooling import Pooled
from lorafleet_inference.model.sampler import Choice, Chooser, Draw, Scores, choose, finite_rows, scores_of
from lorafleet_inference.model.transfer import HostCopies, on_device


@dataclass(frozen=True, slots=True)
class Scored:
    """The prompt tokens of an item that were scored."""

    item: StepItem
    is_finite: torch.Tensor
    """[tokens] bool"""
    scores: Scores


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step computes, not yet read: on the host if `copies` have arrived."""

    choosing: Sequence[StepItem]
    """Items that choose a token, in the order of `choice`; one with draft tokens has as many rows more there."""
    choice: Choice | None
    others: Sequence[StepItem]
    are_finite: torch.Tensor | None
    """[others] bool"""
    scored: Sequence[Scored]
    pooled: Pooled | None
    copies: HostCopies

    def read(self) -> StepResult:
        """Wait until all is computed, and return it."""
        self.copies.wait()
        not_finite = {one.item.request_id for one in self.scored if not all(one.is_finite.tolist())}
        if self.are_finite is not None:
            flags = self.are_finite.tolist()
            not_finite.update(item.request_id for item, flag in zip(self.others, flags, strict=True) if not flag)
        sampled: dict[str, Sampled] = {}
        further: dict[str, tuple[Sampled, ...]] = {}
        if self.choice is not None:
            tokens = iter(self.choice.read())
            for item in self.choosing:
                rows = [next(tokens) for _ in range(1 + len(item.draft_token_ids))]
                accepted = _accepted(rows, item.draft_token_ids)
                if accepted is None:
                    not_finite.add(item.request_id)
                    continue
                sampled[item.request_id] = accepted[0]
                if len(accepted) > 1:
                    further[item.request_id] = tuple(accepted[1:])
        scored: dict[str, tuple[TokenLogprobs, ...]] = {
            one.item.request_id: tuple(one.scores.read())
            for one in self.scored
            if one.item.request_id not in not_finite
        }
        pooled = (
            {} if self.pooled is None else dict(zip(self.pooled.request_ids, self.pooled.vectors.numpy(), strict=True))
        )
        not_finite.update(name for name, vector in pooled.items() if not np.isfinite(vector).all())
        for request_id in not_finite:
            sampled.pop(request_id, None)
            further.pop(request_id, None)
            pooled.pop(request_id, None)
        return StepResult(sampled, scored, pooled, frozenset(not_finite), further=further)


def _accepted(rows: Sequence[Sampled | None], draft: Sequence[int]) -> list[Sampled] | None:
    """Return the tokens that stand: of rows chosen one after the other those up to the first that is not as drafted.

    None where one of them is not finite; beyond these nothing was computed that counts.
    """
    accepted: list[Sampled] = []
    for at, row in enumerate(rows):
        if row is None:
            return None
        accepted.append(row)
        if at < len(draft) and row.token_id != draft[at]:
            break
    return accepted


class Computing(InFlight):
    """A step that the device computes, or has computed."""

    def __init__(
        self,
        items: Sequence[StepItem],
        logits: torch.Tensor,
        batch: InputBatch,
        eos_token_ids: Sequence[int],
        *,
        num_outputs: Sequence[int] | None = None,
        pooled: Pooled | None = None,
        chooser: Chooser | None = None,
        inputs: ChoiceInputs | None = None,
    ) -> None:
        """The arguments are those of `outcome_of`."""
        self._items, self._rows, self._batch = items, batch.rows(items), batch
        self._logits: torch.Tensor | None = logits
        self._eos_token_ids, self._num_outputs = eos_token_ids, num_outputs
        self._pooled, self._chooser, self._inputs = pooled, chooser, inputs
        self._outcome: Outcome | None = None

    @torch.inference_mode()
    def choose(self, state: SamplingState) -> None:
        """Have tokens chosen, before another step is submitted: the logits may be overwritten by it, and are given up."""
        logits, self._logits = self._logits, None
        assert logits is not None, "tokens are chosen once"
        self._outcome = outcome_of(
            self._items,
            logits,
            self._batch,
            state,
            self._eos_token_ids,
            num_outputs=self._num_outputs,
            pooled=self._pooled,
            chooser=self._chooser,
            inputs=self._inputs,
        )

    def collect(self) -> StepResult:
        """Wait for what was chosen, and note it."""
        assert self._outcome is not None, "tokens are chosen before they are read"
        result = self._outcome.read()
        self._batch.resolve(self._items, self._rows, result)
        return result


def outcome_of(
    items: Sequence[StepItem],
    logits: torch.Tensor,
    rows: InputBatch,
    state: SamplingState,
    eos_token_ids: Sequence[int],
    *,
    num_outputs: Sequence[int] | None = None,
    pooled: Pooled | None = None,
    chooser: Chooser | None = None,
    inputs: ChoiceInputs | None = None,
) -> Outcome:
    """Choose tokens and score prompts. logits [rows, vocabulary]: of each item one for each that it scores, then its last.

    `num_outputs`: of each item, how many tokens there are for it, where that is not the same for all. `pooled`: what the step
    gives to embeddings. `chooser`: the device's own; `inputs`: what it needs of each item.
    """
    widths = dict(zip([item.request_id for item in items], num_outputs or [], strict=False))
    copies = HostCopies()
    scored: list[Scored] = []
    choosing: list[tuple[int, StepItem]] = []
    sampling: list[StepItem] = []
    others: list[tuple[int, StepItem]] = []
    at = 0
    for item in items:
        if item.num_score:
            some = logits[at : at + item.num_score, : widths.get(item.request_id)]
            scored.append(_scored(item, some, rows, copies))
            at += item.num_score
        for _ in item.draft_token_ids:
            choosing.append((at, item))
            at += 1
        if item.samples:
            sampling.append(item)
        (choosing if item.samples else others).append((at, item))
        at += 1
    are_finite = choice = None
    if others:
        are_finite = copies.take(finite_rows(_some(logits, others)))
    if choosing:
        ends: dict[str, int] = {}
        draws = []
        for _, item in choosing:
            end = ends[item.request_id] = ends.get(item.request_id, item.end - len(item.draft_token_ids) - 1) + 1
            draws.append(_draw(item, end, rows, state, widths.get(item.request_id)))
        wanted = noted = None
        if inputs is not None and len(choosing) == len(sampling):  # else there are drafts, and more draws than items
            own = inputs.some([number for number, item in enumerate(items) if item.samples])
            wanted, noted = own.wanted, own.rows
        chosen = choose(_some(logits, choosing), draws, eos_token_ids, chooser, wanted)
        rows.note([item for _, item in choosing], chosen, noted)
        choice = chosen.map(copies.take)
    if pooled is not None:
        pooled = Pooled(pooled.request_ids, copies.take(pooled.vectors))
    copies.send(logits.device)
    kept = [item for _, item in others]
    return Outcome(sampling, choice, kept, are_finite, scored, pooled, copies)


def _some(logits: torch.Tensor, places: Sequence[tuple[int, StepItem]]) -> torch.Tensor:
    if len(places) == len(logits):
        return logits
    return logits[on_device([at for at, _ in places], logits.device)]


def _scored(item: StepItem, logits: torch.Tensor, rows: InputBatch, copies: HostCopies) -> Scored:
    """logits [tokens, vocabulary]"""
    row = rows.row(item.request_id)
    follow = rows.tokens(row)[item.start + 1 : item.start + 1 + item.num_score]
    followers = on_device(follow, logits.device, torch.int64)
    scores = scores_of(logits, followers, row.sampling.prompt_logprobs or 0)
    return Scored(item, copies.take(finite_rows(logits)), scores.map(copies.take))


def _draw(item: StepItem, end: int, rows: InputBatch, state: SamplingState, num_tokens: int | None) -> Draw:
    row = rows.row(item.request_id)
    sampling = row.sampling
    answer: tuple[int, ...] = ()
    if sampling.bad_words:
        longest = max(map(len, sampling.bad_words))
        answer = tuple(rows.tokens(row)[max(row.num_prompt, end - longest + 1) : end].tolist())
    if row.occurrences is not None:
        row.occurrences.see(rows.tokens(row)[:end])
    mask = None if sampling.grammar is None else state.mask(item.request_id, end - item.end + len(item.draft_token_ids))
    return Draw(sampling, sampling.seed or 0, end, row.num_prompt, answer, row.occurrences, mask, num_tokens)
