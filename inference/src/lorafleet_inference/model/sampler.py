"""Chooses tokens from logits.

What a request asks for comes in this order: `logit_bias`, penalties, `bad_words` and `min_tokens`, `allowed_token_ids`
(`adjust.py`); then, unless it is greedy, temperature, `top_k`, `top_p`, `min_p`, `typical_p` (`truncate.py`), each over
what the ones before have left.

A row of logits whose largest value is not finite, NaN included, chooses no token; -inf elsewhere is a token of probability 0.
Whatever a request asks for, finite logits stay finite, and a chosen token is of the vocabulary.

A draw depends on the request's seed and the position alone, never on what else is in the batch: it is one uniform number
from a counter-based hash, put through the inverse of the cumulative distribution in token order.
"""

from collections.abc import Sequence

import msgspec
import torch

from lorafleet_inference.engine.messages import SamplingParams, TokenLogprobs
from lorafleet_inference.engine.plan import Sampled, TokenMask
from lorafleet_inference.model.adjust import adjust
from lorafleet_inference.model.occurrences import Occurrences
from lorafleet_inference.model.truncate import truncate

_MASK = (1 << 64) - 1


class Draw(msgspec.Struct, frozen=True, gc=False):
    """How to choose the token at `position` of one sequence. `seed` stands for the request, given or made up."""

    params: SamplingParams
    seed: int
    position: int
    num_prompt: int = 0
    """So `position - num_prompt` tokens of the answer are known."""
    answer: tuple[int, ...] = ()
    """The last tokens of the answer, as many as `params.bad_words` look at."""
    occurrences: Occurrences | None = None
    """Of all known tokens, where `params.penalises`."""
    mask: TokenMask | None = None
    """Which tokens may be chosen at all."""
    num_tokens: int | None = None
    """How many tokens there are for this sequence; None: as many as the logits have columns."""

    def knows(self, token_id: int) -> bool:
        """Whether a token can be chosen at all: embeddings may have rows that heads have not."""
        return self.num_tokens is None or token_id < self.num_tokens


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that looks random and is always the same for the same arguments (SplitMix64 steps)."""
    state = _mix((seed & _MASK) ^ _mix(position + 1))
    return (state >> 11) / (1 << 53)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def finite_rows(logits: torch.Tensor) -> torch.Tensor:
    """Return [rows] bool: whether a token can be chosen from each row of logits [rows, vocabulary]."""
    return logits.amax(-1).isfinite()


def sample(logits: torch.Tensor, draws: Sequence[Draw], eos_token_ids: Sequence[int] = ()) -> list[Sampled | None]:
    """Choose one token a row; None where the row is not finite. logits [rows, vocabulary], any float dtype, on the device."""
    finite = finite_rows(logits)
    logits = logits.float().masked_fill(~finite[:, None], 0.0)
    wanted = adjust(logits, draws, eos_token_ids)
    chosen = wanted.argmax(-1)
    random = [row for row, draw in enumerate(draws) if draw.params.temperature > 0]
    if random:
        index = torch.tensor(random, device=logits.device)
        chosen[index] = _draw(wanted[index], [draws[row] for row in random])
    token_ids: list[int] = chosen.tolist()
    logprobs = _logprobs(logits, token_ids, draws)
    rows = zip(token_ids, logprobs, finite.tolist(), strict=True)
    return [Sampled(token_id, one) if is_finite else None for token_id, one, is_finite in rows]


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """logits [rows, vocabulary] float32; returns [rows] int64."""
    device = logits.device
    temperature = torch.tensor([draw.params.temperature for draw in draws], device=device)
    below_best = logits - logits.amax(-1, keepdim=True)  # a low temperature may make these -inf, but none of them inf
    scaled = truncate(below_best / temperature[:, None], [draw.params for draw in draws])
    # float64: over a large vocabulary a float32 sum would lose the unlikely tokens
    cumulative = scaled.softmax(-1, dtype=torch.float64).cumsum(-1)
    targets = torch.tensor([[uniform(draw.seed, draw.position)] for draw in draws], dtype=torch.float64, device=device)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # a target that rounds up to the sum would find no token
    found = torch.searchsorted(cumulative, torch.minimum(targets * total, below), right=True)[:, 0]
    return found.clamp_(max=logits.shape[-1] - 1)


def _logprobs(logits: torch.Tensor, token_ids: Sequence[int], draws: Sequence[Draw]) -> list[TokenLogprobs | None]:
    """Of the model's own distribution, before all that the request asks for."""
    answers: list[TokenLogprobs | None] = [None] * len(draws)
    wanted = [(row, draw.params.num_logprobs) for row, draw in enumerate(draws) if draw.params.num_logprobs is not None]
    if not wanted:
        return answers
    index = torch.tensor([row for row, _ in wanted], device=logits.device)
    most = max(number for _, number in wanted)
    found = logprobs_of(logits[index], [token_ids[row] for row, _ in wanted], most)
    for (row, number), one in zip(wanted, found, strict=True):
        top = tuple(pair for pair in one.top if draws[row].knows(pair[0]))
        answers[row] = TokenLogprobs(one.chosen, top[:number])
    return answers


def logprobs_of(logits: torch.Tensor, token_ids: Sequence[int], number: int) -> list[TokenLogprobs]:
    """Return what each row says of its token and of the most likely ones; logits [rows, vocabulary] float32."""
    table = logits.log_softmax(-1)
    chosen = table.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    best = table.topk(min(number, table.shape[-1]), dim=-1)
    rows = zip(chosen, best.indices.tolist(), best.values.tolist(), strict=True)
    return [TokenLogprobs(own, tuple(zip(ids, values, strict=True))) for own, ids, values in rows]
