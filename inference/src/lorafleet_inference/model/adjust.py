"""Changes logits before a token is chosen, greedy or not: bias, penalties, bad words, no end before `min_tokens`.

Finite logits stay finite: what would be larger than a float32 can be is the largest float32. Only tokens that are not
among the allowed ones become -inf.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from lorafleet_inference.model.transfer import on_device

if TYPE_CHECKING:
    from lorafleet_inference.model.sampler import Draw

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Changes:
    """What requests want changed in the logits of a step. Numbers are rows."""

    draws: Sequence["Draw"]
    biased: Sequence[tuple[int, int, float]]
    """Row, token, and what is added."""
    penalised: Sequence[int]
    held: Sequence[tuple[int, int]]
    """Rows and tokens that are chosen only where all are held."""
    restricted: Sequence[int]
    masked: Sequence[int]

    @classmethod
    def of(cls, draws: Sequence["Draw"], eos_token_ids: Sequence[int]) -> "Changes | None":
        """Return what the draws want, in the order of the logits' rows; None where all take them as they are."""
        held = [
            (row, token)
            for row, draw in enumerate(draws)
            if draw.position - draw.num_prompt < draw.params.min_tokens
            for token in (
                *draw.params.stop_token_ids,
                *(() if draw.params.ignore_eos else (*eos_token_ids, *draw.params.eos_token_ids)),
            )
            if draw.knows(token)
        ]
        held += [(row, token) for row, draw in enumerate(draws) for token in _ends_of_bad_words(draw)]
        changes = cls(
            draws,
            biased=[(row, *pair) for row, draw in enumerate(draws) for pair in draw.params.logit_bias],
            penalised=[row for row, draw in enumerate(draws) if draw.params.penalises],
            held=held,
            restricted=[row for row, draw in enumerate(draws) if draw.params.allowed_token_ids],
            masked=[row for row, draw in enumerate(draws) if draw.mask is not None],
        )
        found = changes.biased or changes.penalised or changes.held or changes.restricted or changes.masked
        return changes if found else None

    def made(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits [rows, vocabulary] float32 as requests want them; the given ones stay as they are."""
        changed = logits.clone()
        if self.biased:
            rows, tokens, values = zip(*self.biased, strict=True)
            changed.index_put_((_ids(rows, changed), _ids(tokens, changed)), _there(values, changed), accumulate=True)
        if self.penalised:
            _penalise(changed, self.penalised, self.draws)
        if self.held:
            rows, tokens = zip(*self.held, strict=True)
            # not -inf: where a request holds every token, one of them has to be chosen
            changed[_ids(rows, changed), _ids(tokens, changed)] = -LARGEST
        if self.restricted:
            _restrict(changed, self.restricted, self.draws)
        if self.masked:
            _mask(changed, self.masked, self.draws)
        return changed


def _ends_of_bad_words(draw: "Draw") -> list[int]:
    """Return the tokens that would complete a bad word."""
    words = draw.params.bad_words
    if not words:
        return []
    return [word[-1] for word in words if len(word) == 1 or draw.answer[1 - len(word) :] == word[:-1]]


def _restrict(logits: torch.Tensor, rows: Sequence[int], draws: Sequence["Draw"]) -> None:
    """Take out what is not among a row's allowed tokens, of which one can be chosen whatever its logit; in place."""
    pairs = [(row, token) for row in rows for token in draws[row].params.allowed_token_ids]
    where_row, where_token = zip(*pairs, strict=True)
    index = (_ids(where_row, logits), _ids(where_token, logits))
    kept = logits[index].clamp_(min=-LARGEST)
    logits[_ids(rows, logits)] = float("-inf")
    logits[index] = kept


def _mask(logits: torch.Tensor, rows: Sequence[int], draws: Sequence["Draw"]) -> None:
    """Take out what a row's grammar does not allow, of which one can be chosen whatever its logit; in place.

    It goes last: where nothing is left that the request allows otherwise, the grammar decides.
    """
    allowed = np.zeros((len(rows), logits.shape[-1]), bool)
    for number, row in enumerate(rows):
        mask = draws[row].mask
        assert mask is not None
        bits = np.unpackbits(mask, bitorder="little")[: allowed.shape[1]]
        allowed[number, : len(bits)] = bits
        if draws[row].num_tokens is not None:
            allowed[number, draws[row].num_tokens :] = False
    index = _ids(rows, logits)
    kept = logits[index].clamp_(min=-LARGEST)
    logits[index] = kept.masked_fill_(~on_device(allowed, logits.device), float("-inf"))


def _penalise(logits: torch.Tensor, rows: Sequence[int], draws: Sequence["Draw"]) -> None:
    """One entry for each distinct token of each row; changes logits in place."""
    params, sizes, tokens, counts = [], [], [], []
    for row in rows:
        draw = draws[row]
        assert draw.occurrences is not None, "who penalises knows what occurred"
        token_ids, numbers = draw.occurrences.token_ids, draw.occurrences.counts
        if draw.num_tokens is not None:
            known = token_ids < draw.num_tokens
            token_ids, numbers = token_ids[known], numbers[known]
        params.append(draw.params)
        sizes.append(len(token_ids))
        tokens.append(token_ids)
        counts.append(numbers)

    def each(values: Sequence[float]) -> npt.NDArray[np.float64]:
        return np.repeat(np.array(values, np.float64), sizes)

    count = np.concatenate(counts)
    subtracted = each([one.frequency_penalty for one in params]) * count
    subtracted += each([one.presence_penalty for one in params]) * (count > 0)
    index = (_ids(np.repeat(np.array(rows), sizes), logits), _ids(np.concatenate(tokens), logits))
    some, factor = logits[index], _there(each([one.repetition_penalty for one in params]), logits)
    some = torch.where(some > 0, some / factor, some * factor)
    logits[index] = (some - _there(subtracted, logits)).clamp_(-LARGEST, LARGEST)


def _there(values: Sequence[float] | npt.NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    return on_device(values, like.device, like.dtype)


def _ids(values: Sequence[int] | npt.NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    return on_device(values, like.device, torch.int64)
