"""Takes out tokens that a request does not want drawn: top_k, top_p, min_p, typical_p, one after the other."""

from collections.abc import Sequence

import torch

from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.model.transfer import on_device


def truncate(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """scaled [rows, vocabulary] float32, after temperature; returns it with -inf for tokens that are out.

    Of equal tokens those with lower ids stay. The most likely one, or for typical_p the most typical one, always stays.
    """
    ranked = [row for row, one in enumerate(params) if one.top_k is not None or one.top_p < 1.0 or one.min_p > 0.0]
    if ranked:
        rows = on_device(ranked, scaled.device)
        scaled = _at(scaled, rows, _by_rank(scaled[rows], [params[row] for row in ranked]))
    typical = [row for row, one in enumerate(params) if one.typical_p < 1.0]
    if typical:
        rows = on_device(typical, scaled.device)
        scaled = _at(scaled, rows, _by_typicality(scaled[rows], [params[row].typical_p for row in typical]))
    return scaled


def _at(scaled: torch.Tensor, rows: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    kept = scaled.clone()
    kept[rows] = changed
    return kept


def _by_rank(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    size = scaled.shape[-1]
    ranked, order = scaled.sort(dim=-1, descending=True, stable=True)
    top_k = on_device([min(one.top_k or size, size) for one in params], scaled.device)
    ranked.masked_fill_(torch.arange(size, device=scaled.device)[None, :] >= top_k[:, None], float("-inf"))
    probabilities = ranked.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    top_p = on_device([one.top_p for one in params], scaled.device)
    min_p = on_device([one.min_p for one in params], scaled.device)
    dropped = (before >= top_p[:, None]) & (top_p < 1.0)[:, None]
    dropped |= probabilities < min_p[:, None] * probabilities[:, :1]
    dropped[:, 0] = False
    ranked.masked_fill_(dropped, float("-inf"))
    return torch.empty_like(ranked).scatter_(-1, order, ranked)


def _by_typicality(scaled: torch.Tensor, masses: Sequence[float]) -> torch.Tensor:
    logprobs = scaled.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(-1, keepdim=True)  # a token that is out counts nothing
    _, order = (-logprobs - entropy).abs().sort(dim=-1, stable=True)
    ranked = probabilities.gather(-1, order)
    before = ranked.cumsum(-1) - ranked
    dropped = before >= on_device(masses, scaled.device)[:, None]
    dropped[:, 0] = False
    return scaled.masked_fill(torch.empty_like(dropped).scatter_(-1, order, dropped), float("-inf"))
