"""Makes of a step's logits what the scheduler gets back."""

from collections.abc import Callable, Sequence

import torch

from lorafleet_inference.engine.messages import TokenLogprobs
from lorafleet_inference.engine.plan import Sampled, StepItem, StepResult
from lorafleet_inference.model.sampler import Draw, finite_rows, logprobs_of, sample


def result_of(
    items: Sequence[StepItem], logits: torch.Tensor, seed_of: Callable[[str], int], eos_token_ids: Sequence[int]
) -> StepResult:
    """Choose tokens and score prompts. logits [rows, vocabulary]: of each item one for each of `score`, then its last."""
    not_finite: set[str] = set()
    scored: dict[str, tuple[TokenLogprobs, ...]] = {}
    choosing: list[tuple[int, StepItem]] = []
    others: list[tuple[int, StepItem]] = []
    row = 0
    for item in items:
        if item.score:
            rows = logits[row : row + len(item.score)].float()
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
        tokens = sample(last, [_draw(item, seed_of) for _, item in choosing], eos_token_ids)
        for (_, item), token in zip(choosing, tokens, strict=True):
            if token is None:
                not_finite.add(item.request_id)
            else:
                sampled[item.request_id] = token
    for request_id in not_finite:
        scored.pop(request_id, None)
        sampled.pop(request_id, None)
    return StepResult(sampled, scored, frozenset(not_finite))


def _draw(item: StepItem, seed_of: Callable[[str], int]) -> Draw:
    assert item.sample is not None
    seed = item.sample.seed
    position = item.start + len(item.token_ids)
    seed = seed_of(item.request_id) if seed is None else seed
    return Draw(item.sample, seed, position, item.num_prompt, item.history)
