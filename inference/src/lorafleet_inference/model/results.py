"""Makes of a step's logits what the scheduler gets back."""

from collections.abc import Sequence

import torch

from lorafleet_inference.engine.messages import TokenLogprobs
from lorafleet_inference.engine.plan import Sampled, SamplingState, StepItem, StepResult
from lorafleet_inference.model.sampler import Draw, finite_rows, logprobs_of, sample


def result_of(
    items: Sequence[StepItem],
    logits: torch.Tensor,
    state: SamplingState,
    eos_token_ids: Sequence[int],
    num_outputs: Sequence[int] | None = None,
) -> StepResult:
    """Choose tokens and score prompts. logits [rows, vocabulary]: of each item one for each of `score`, then its last.

    `num_outputs`: of each item, how many tokens there are for it, where that is not the same for all.
    """
    widths = dict(zip([item.request_id for item in items], num_outputs or [], strict=False))
    not_finite: set[str] = set()
    scored: dict[str, tuple[TokenLogprobs, ...]] = {}
    choosing: list[tuple[int, StepItem]] = []
    others: list[tuple[int, StepItem]] = []
    row = 0
    for item in items:
        if item.score:
            rows = logits[row : row + len(item.score), : widths.get(item.request_id)].float()
            if bool(finite_rows(rows).all()):
                scored[item.request_id] = tuple(logprobs_of(rows, item.score, item.num_prompt_logprobs))
            else:
                not_finite.add(item.request_id)
            row += len(item.score)
        (others if item.sample is None else choosing).append((row, item))
        row += 1
    if others:
        flags = finite_rows(logits[[row for row, _ in others]]).tolist()
        not_finite.update(item.request_id for (_, item), is_finite in zip(others, flags, strict=True) if not is_finite)
    sampled: dict[str, Sampled] = {}
    if choosing:
        last = logits if len(choosing) == len(logits) else logits[[row for row, _ in choosing]]
        draws = [_draw(item, state, widths.get(item.request_id)) for _, item in choosing]
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


def _draw(item: StepItem, state: SamplingState, num_tokens: int | None) -> Draw:
    assert item.sample is not None
    seed = item.sample.seed
    position = item.start + len(item.token_ids)
    seed = state.seed(item.request_id) if seed is None else seed
    mask = None if item.sample.grammar is None else state.mask(item.request_id)
    return Draw(item.sample, seed, position, item.num_prompt, item.history, mask, num_tokens)
