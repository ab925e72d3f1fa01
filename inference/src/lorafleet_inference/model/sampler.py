"""Chooses tokens from logits.

What a request asks for comes in this order: `logit_bias`, penalties, `bad_words` and `min_tokens`, `allowed_token_ids`
(`adjust.py`); then, unless it is greedy, temperature, `top_k`, `top_p`, `min_p`, `typical_p` (`truncate.py`), each over
what the ones before have left.

A row of logits whose largest value is not finite, NaN included, chooses no token; -inf elsewhere is a token of probability 0.
Whatever a request asks for, finite logits stay finite, and a chosen token is of the vocabulary.

A draw depends on the request's seed and the position alone, never on what else is in the batch: it is one uniform number
from a counter-based hash, put through the inverse of the cumulative distribution in token order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.engine.plan import Sampled, TokenMask
from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.model.adjust import Changes
from lorafleet_inference.model.occurrences import Occurrences
from lorafleet_inference.model.transfer import on_device
from lorafleet_inference.model.truncate import truncate
from lorafleet_inference.model.uniform import uniform
from lorafleet_inference.model.wanted import wanted_of

PIECE_ROWS = 32
"""Of logits that are ranked or made probabilities at once: each number takes some 50 bytes then."""


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


def finite_rows(logits: torch.Tensor) -> torch.Tensor:
    """Return [rows] bool: whether a token can be chosen from each row of logits [rows, vocabulary]."""
    return logits.amax(-1).isfinite()


@dataclass(frozen=True, slots=True)
class Scores:
    """What rows of logits say of a token each and of the most likely ones, largest first. Axes: rows, k tokens."""

    chosen: torch.Tensor
    """[rows] float32: log-probability of each row's token."""
    token_ids: torch.Tensor
    """[rows, k] int64"""
    values: torch.Tensor
    """[rows, k] float32"""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Scores":
        """Return what comes of its tensors."""
        return Scores(change(self.chosen), change(self.token_ids), change(self.values))

    def read(self) -> list[TokenLogprobs]:
        """Return them row by row; waits for the device if it is there that they are."""
        rows = zip(self.chosen.tolist(), self.token_ids.tolist(), self.values.tolist(), strict=True)
        return [TokenLogprobs(own, tuple(zip(ids, values, strict=True))) for own, ids, values in rows]


@dataclass(frozen=True, slots=True)
class Choice:
    """One token a row, chosen and not yet read."""

    draws: Sequence[Draw]
    token_ids: torch.Tensor
    """[rows] int64: also where a row is not finite a token that can be computed."""
    is_finite: torch.Tensor
    """[rows] bool"""
    scored: tuple[int, ...] = ()
    """Rows whose log-probabilities are wanted."""
    scores: Scores | None = None
    """Of those."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Choice":
        """Return what comes of its tensors."""
        scores = None if self.scores is None else self.scores.map(change)
        return Choice(self.draws, change(self.token_ids), change(self.is_finite), self.scored, scores)

    def read(self) -> list[Sampled | None]:
        """Return the tokens; None where the row is not finite. Waits for the device if it is there that they are."""
        logprobs: list[TokenLogprobs | None] = [None] * len(self.draws)
        if self.scores is not None:
            for row, one in zip(self.scored, self.scores.read(), strict=True):
                draw = self.draws[row]
                top = tuple(pair for pair in one.top if draw.knows(pair[0]))
                logprobs[row] = TokenLogprobs(one.chosen, top[: draw.params.num_logprobs])
        rows = zip(self.token_ids.tolist(), logprobs, self.is_finite.tolist(), strict=True)
        return [Sampled(token_id, one) if is_finite else None for token_id, one, is_finite in rows]


class Chooser(Protocol):
    """Chooses by kernels."""

    def __call__(self, logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens [rows] int64 and whether each row is finite, bool.

        logits [rows, vocabulary] of any float dtype; `wanted` [rows, 5] float64, as `wanted.py` says. Rows that are not
        finite have token 0.
        """


def choose(
    logits: torch.Tensor,
    draws: Sequence[Draw],
    eos_token_ids: Sequence[int] = (),
    chooser: Chooser | None = None,
    wanted: torch.Tensor | None = None,
) -> Choice:
    """Choose one token a row. logits [rows, vocabulary], any float dtype, on the device, which is not waited for.

    `chooser`: in place of plain torch; `wanted`: what it needs, where that is on the device already.
    """
    if chooser is not None:
        if wanted is None:
            asked = wanted_of([(draw.params, draw.seed, draw.position) for draw in draws])
            wanted = on_device(asked, logits.device)
        finite, chosen = _chosen_by(chooser, logits, wanted, draws, eos_token_ids)
    else:
        finite = finite_rows(logits)
        changed = _finite(logits, finite)
        if (changes := Changes.of(draws, eos_token_ids)) is not None:
            changed = changes.made(changed)
        chosen = changed.argmax(-1)
        _redraw(changed, finite, chosen, draws, [row for row, draw in enumerate(draws) if draw.params.temperature > 0])
    scored = tuple(row for row, draw in enumerate(draws) if draw.params.num_logprobs is not None)
    if not scored:
        return Choice(draws, chosen, finite)
    index = on_device(scored, logits.device)
    most = max(draws[row].params.num_logprobs or 0 for row in scored)
    # of the model's own distribution, before all that the request asks for
    return Choice(draws, chosen, finite, scored, scores_of(logits, chosen[index], most, index, finite))


def _finite(logits: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Return logits [rows, vocabulary] as float32, with rows that are not finite as zeros."""
    return logits.float().masked_fill(~finite[:, None], 0.0)


def _chosen_by(
    chooser: Chooser, logits: torch.Tensor, wanted: torch.Tensor, draws: Sequence[Draw], eos_token_ids: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which rows are finite, and the tokens; logits that nothing changes are read as they are."""
    changes = Changes.of(draws, eos_token_ids)
    if changes is None:
        chosen, finite = chooser(logits, wanted)
    else:
        finite = finite_rows(logits)
        logits = changes.made(_finite(logits, finite))
        chosen, _ = chooser(logits, wanted)
    params = enumerate(draw.params for draw in draws)
    _redraw(logits, finite, chosen, draws, [row for row, one in params if one.typical_p < 1.0 and one.temperature > 0])
    return finite, chosen


def _redraw(
    logits: torch.Tensor, finite: torch.Tensor, chosen: torch.Tensor, draws: Sequence[Draw], rows: Sequence[int]
) -> None:
    """Draw the tokens of some rows; changes `chosen`."""
    for at in range(0, len(rows), PIECE_ROWS):
        some = rows[at : at + PIECE_ROWS]
        index = on_device(some, logits.device)
        chosen[index] = _draw(_finite(logits[index], finite[index]), [draws[row] for row in some])


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """logits [rows, vocabulary] float32; returns [rows] int64."""
    device = logits.device
    temperature = on_device([draw.params.temperature for draw in draws], device)
    below_best = logits - logits.amax(-1, keepdim=True)  # a low temperature may make these -inf, but none of them inf
    scaled = truncate(below_best / temperature[:, None], [draw.params for draw in draws])
    # float64: over a large vocabulary a float32 sum would lose the unlikely tokens
    cumulative = scaled.softmax(-1, dtype=torch.float64).cumsum(-1)
    targets = on_device([uniform(draw.seed, draw.position) for draw in draws], device, torch.float64)[:, None]
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # a target that rounds up to the sum would find no token
    found = torch.searchsorted(cumulative, torch.minimum(targets * total, below), right=True)[:, 0]
    return found.clamp_(max=logits.shape[-1] - 1)


def scores_of(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    number: int,
    index: torch.Tensor | None = None,
    finite: torch.Tensor | None = None,
) -> Scores:
    """Return what each row says of its token and of the `number` most likely ones, of all rows or of those in `index` [rows].

    logits [rows, vocabulary], any float dtype; token_ids [rows] int64, on the device. `finite` [rows] bool: others count as zeros.
    """
    pieces = []
    for at in range(0, len(token_ids), PIECE_ROWS):
        piece = slice(at, at + PIECE_ROWS)
        rows = piece if index is None else index[piece]
        some = logits[rows].float() if finite is None else _finite(logits[rows], finite[rows])
        table = some.log_softmax(-1)
        best = table.topk(min(number, table.shape[-1]), dim=-1)
        pieces.append(Scores(table.gather(-1, token_ids[piece, None])[:, 0], best.indices, best.values))
    if len(pieces) == 1:
        return pieces[0]
    chosen, ids, values = zip(*((one.chosen, one.token_ids, one.values) for one in pieces), strict=True)
    return Scores(torch.cat(chosen), torch.cat(ids), torch.cat(values))
