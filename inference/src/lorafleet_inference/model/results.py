"""Makes of a step's logits what the scheduler gets back."""

from collections.abc import Sequence

import torch

from lorafleet_inference.engine.messages import TokenLogprobs
from lorafleet_inference.engine.plan import Sampled, SamplingState, StepItem, StepResult
from lorafleet_inference.model.input_batch import InputBatch
from lorafleet_inference.model.sampler import Draw, finite_rows, logprobs_of, sample


def result_of(
    items: Sequence[StepItem],
    logits: torch.Tensor,
    rows: InputBatch,
    state: SamplingState,
    eos_token_ids: Sequence[int],
    *,
    num_outputs: Sequence[int] | None = None,
) -> StepResult:
    """Choose tokens and score prompts. logits [rows, vocabulary]: of each item one for each that it scores, then its last.

    `num_outputs`: of each item, how many tokens there are for it, where that is not the same for all.
    """
    widths = dict(zip([item.request_id for item in items], num_outputs or [], strict=False))
    not_finite: set[str] = set()
    scored: dict[str, tuple[TokenLogprobs, ...]] = {}
    choosing: list[tuple[int, StepItem]] = []
    others: list[tuple[int, StepItem]] = []
    at = 0
    for item in items:
        if item.num_score:
            some = logits[at : at + item.num_score, : widths.get(item.request_id)].float()
            if bool(finite_rows(some).all()):
                row = rows.row(item.request_id)
                follow = rows.tokens(row)[item.start + 1 : item.start + 1 + item.num_score].tolist()
                scored[item.request_id] = tuple(logprobs_of(some, follow, row.sampling.prompt_logprobs or 0))
            else:
                not_finite.add(item.request_id)
            at += item.num_score
        (choosing if item.samples else others).append((at, item))
        at += 1
    if others:
        flags = finite_rows(logits[[at for at, _ in others]]).tolist()
        not_finite.update(item.request_id for (_, item), is_finite in zip(others, flags, strict=True) if not is_finite)
    sampled: dict[str, Sampled] = {}
    if choosing:
        last = logits if len(choosing) == len(logits) else logits[[at for at, _ in choosing]]
        draws = [_draw(item, rows, state, widths.get(item.request_id)) for _, item in choosing]
        tokens = sample(last, draws, eos_token_ids)
        for (_, item), token in zip(choosing, tokens, strict=True):
            if token is None:
                not_finite.add(item.request_id)
            else:
                sampled[item.request_id] = token
    for request_id in not_finite:
        scored.pop(request_id, None)
        sampled.pop(request_id, None)
    return StepResult(sampled, scored, frozenset(not_finite))


def _draw(item: StepItem, rows: InputBatch, state: SamplingState, num_tokens: int | None) -> Draw:
    row = rows.row(item.request_id)
    sampling = row.sampling
    answer: tuple[int, ...] = ()
    if sampling.bad_words:
        longest = max(map(len, sampling.bad_words))
        answer = tuple(rows.tokens(row)[max(row.num_prompt, item.end - longest + 1) : item.end].tolist())
    if row.occurrences is not None:
        row.occurrences.see(rows.tokens(row)[: item.end])
    mask = None if sampling.grammar is None else state.mask(item.request_id)
    return Draw(sampling, sampling.seed or 0, item.end, row.num_prompt, answer, row.occurrences, mask, num_tokens)
